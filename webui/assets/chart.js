// A closer look at the curve of a run: drag over a stretch of it, or press Closer, which halves what is seen towards the
// newest step; Whole, a double click or Escape shows everything again. The curve is drawn anew with every step; what is
// looked at stays.
() => {
  const LEAST = 0.01;  // of the whole course: closer than that there is nothing to see
  const WHOLE = [0, 1];
  let run = "", seen = WHOLE;

  const of = (selector) => document.querySelector(`#train-chart ${selector}`);
  const points = (line) => [...line.points].map(({ x, y }) => ({ x, y }));
  const rounded = (value, span) => value.toFixed(Math.max(0, Math.min(6, 1 - Math.floor(Math.log10(span)))));

  function label(text, side, percent) {
    const span = document.createElement("span");
    span.textContent = text;
    span.style[side] = `${percent}%`;
    return span;
  }

  function apply() {
    const plot = of(".plot");
    if (!plot) return;
    if (plot.dataset.run !== run) { run = plot.dataset.run; seen = WHOLE; }
    const closer = of('[data-act="closer"]'), whole = of('[data-act="whole"]');
    whole.hidden = seen === WHOLE;
    plot.classList.toggle("closer", seen !== WHOLE);
    closer.disabled = seen[1] - seen[0] <= 2 * LEAST;
    if (seen === WHOLE || plot.dataset.seen === seen.join()) return;
    plot.dataset.seen = seen.join();
    const svg = plot.querySelector("svg"), low = Number(plot.dataset.low), high = Number(plot.dataset.high);
    const [left, right] = seen.map((share) => 1000 * share);
    const there = ["raw", "smooth", "held"].flatMap((name) => [...svg.querySelectorAll(`.${name}`)].flatMap(points))
      .filter(({ x }) => x >= left && x <= right).map(({ y }) => y);
    if (!there.length) return;
    let top = Math.min(...there), bottom = Math.max(...there);
    const air = Math.max(2, 0.08 * (bottom - top));
    [top, bottom] = [top - air, bottom + air];
    svg.setAttribute("viewBox", `${left} ${top} ${right - left} ${bottom - top}`);
    const shares = [0, 0.25, 0.5, 0.75, 1];
    const loss = (share) => high - (top + share * (bottom - top)) / 1000 * (high - low);
    const span = loss(0) - loss(1), steps = Number(plot.dataset.steps) * (seen[1] - seen[0]);
    of(".y").replaceChildren(...shares.map((share) => label(rounded(loss(share), span), "top", 100 * share)));
    of(".x").replaceChildren(...shares.map((share) => label(rounded(
      Number(plot.dataset.steps) * seen[0] + share * steps, 10 * steps), "left", 100 * share)));
    svg.querySelector(".grid").replaceChildren(...shares.map((share) => {
      const line = document.createElementNS("http://www.w3.org/2000/svg", "line"), y = top + share * (bottom - top);
      for (const [name, value] of Object.entries({ x1: left, x2: right, y1: y, y2: y })) line.setAttribute(name, value);
      return line;
    }));
    const now = plot.querySelector(".now"), last = points(svg.querySelector(".smooth")).at(-1);
    now.hidden = last.x < left || last.x > right + 1;
    now.style.left = `${100 * (last.x - left) / (right - left)}%`;
    now.style.top = `${100 * (last.y - top) / (bottom - top)}%`;
  }

  function look(from, to) {
    if (to - from >= LEAST) seen = [from, to];
    apply();
  }

  function whole() {
    if (seen === WHOLE) return;
    seen = WHOLE;
    // The server's drawing is the whole one: it is kept beside, as it came.
    const chart = of(".chart");
    if (chart?.dataset.whole) chart.innerHTML = chart.dataset.whole;
    apply();
  }

  function keep() {
    const chart = of(".chart");
    if (chart && !chart.dataset.whole) chart.dataset.whole = chart.innerHTML;
    apply();
  }

  // Where a place on the screen lies in the whole course, 0 to 1.
  const share_at = (plot, x) => {
    const { left, width } = plot.getBoundingClientRect();
    const inside = Math.min(1, Math.max(0, (x - left) / width));
    return seen[0] + inside * (seen[1] - seen[0]);
  };

  document.addEventListener("pointerdown", (event) => {
    const plot = event.target.closest?.("#train-chart .plot");
    if (!plot || event.button !== 0 || event.pointerType === "touch") return;
    event.preventDefault();
    const began = event.clientX, band = document.createElement("i");
    band.className = "band";
    const drag = ({ clientX }) => {
      const { left } = plot.getBoundingClientRect();
      Object.assign(band.style, { left: `${Math.min(began, clientX) - left}px`, width: `${Math.abs(clientX - began)}px` });
      if (!band.isConnected) plot.append(band);
    };
    const end = ({ clientX }) => {
      removeEventListener("pointermove", drag);
      band.remove();
      if (Math.abs(clientX - began) > 4) look(...[share_at(plot, began), share_at(plot, clientX)].sort((a, b) => a - b));
    };
    addEventListener("pointermove", drag);
    addEventListener("pointerup", end, { once: true });
  });
  document.addEventListener("dblclick", (event) => { if (event.target.closest?.("#train-chart .plot")) whole(); });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && event.target.closest?.("#train-chart")) whole();
  });
  document.addEventListener("click", (event) => {
    const act = event.target.closest?.("#train-chart [data-act]")?.dataset.act;
    if (act === "whole") whole();
    if (act !== "closer") return;
    const last = points(of(".smooth")).at(-1).x / 1000, to = seen === WHOLE ? last : Math.min(seen[1], last);
    look(to - (to - seen[0]) / 2, to);
  });
  new MutationObserver(keep).observe(document.body, { childList: true, subtree: true });
  keep();
}
