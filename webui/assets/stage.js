// The stage: the pictures of one order, from the first glimpse on. Python sends what it shows as props.value; which
// picture is chosen, and how large the pictures can be, is found here.
//
// Events: "restore" {name}. On the window, to the desk: "desk:set" {name, strength}; to the film strip: "stage:chosen"
// {name}; from the desk: "stage:ask".

const q = (selector) => element.querySelector(selector);
const cells = q(".cells");
const GAP = 12, CAPTION = 28, NARROWEST_OF_ROW = 64;
let chosen = null, alone = false, shown_order = null;
let current = { phase: "empty", cells: [] };

const view = () => current;
const finished = () => !["waiting", "drawing"].includes(view().phase);

function take() {
  const got = props.value || { phase: "empty", cells: [] };
  // What is wrong with an order is told over the pictures that are there; glimpses of a drawing given up go.
  const kept = (current.cells || []).filter((cell) => cell.name);
  current = got.keep ? { ...current, ...got, cells: kept, lines: [], examples: [], notes: [], told: "" } : got;
  draw();
}

// An order is under way from the click on, not from the first answer on.
function ask() {
  current = { ...current, phase: "waiting", order: "asked", told: "", text: "", notes: [] };
  draw();
}

window.addEventListener("stage:ask", ask);
document.addEventListener("click", (event) => { if (event.target.closest?.("#generate-go")) ask(); });

function draw() {
  const { phase, order, title, told, text, notes = [], cells: wanted = [], progress, figures, sweep } = view();
  if (order !== shown_order) {
    shown_order = order;
    chosen = null;
    alone = false;
  }
  if (wanted.length === 1) chosen = 0;
  element.dataset.phase = phase;
  element.dataset.order = order ?? "";
  document.querySelector("#generate-page")?.setAttribute("data-phase", phase);
  q(".title").textContent = title || "";
  q(".told").textContent = told || "";
  q(".bar-top i").style.width = `${Math.round((progress || 0) * 1000) / 10}%`;
  const lines = notes.map((note) => make("p", { class: "careful" }, note));
  if (text) lines.unshift(make("p", { class: phase === "failed" ? "stopped" : "" }, text));
  q(".notes").replaceChildren(...lines);
  q(".figures").textContent = figures || "";
  while (cells.children.length > wanted.length) cells.lastChild.remove();
  wanted.forEach((cell, index) => fill(cells.children[index] || cells.appendChild(blank()), cell));
  q(".empty-stage").replaceChildren(...(phase === "empty" ? invitation() : []));
  element.classList.toggle("swept", !!sweep);
  element.classList.toggle("bare", !wanted.length);
  choose(chosen, false);
  arrange();
}

function blank() {
  return make("figure", { tabindex: "0", role: "button" }, make("div", { class: "frame" }, make("img", { alt: "", draggable: "false" })), make("figcaption"));
}

function fill(figure, cell) {
  const image = figure.querySelector("img");
  figure.classList.toggle("blank", !cell.src);
  figure.classList.toggle("glimpse", !!cell.src && !cell.name);
  figure.setAttribute("aria-label", cell.alt || "");
  image.alt = cell.alt || "";
  if (cell.src && image.getAttribute("src") !== cell.src) {
    // The glimpse stays until the picture is there.
    const next = new Image();
    figure.dataset.next = cell.src;
    next.src = cell.src;
    const swap = () => { if (figure.dataset.next === cell.src) image.setAttribute("src", cell.src); };
    next.decode().then(swap, swap);
  }
  if (!cell.src) image.removeAttribute("src");
  figure.querySelector("figcaption").textContent = cell.caption || "";
}

function invitation() {
  const { examples = [], lines = [] } = view();
  return [
    make("b", {}, lines[0] || ""), ...lines.slice(1).map((line) => make("p", {}, line)),
    make("div", { class: "examples" }, ...examples.map((prompt) => {
      const button = make("button", { type: "button", "data-act": "example" }, prompt);
      button.addEventListener("click", () => {
        const field = document.querySelector("#prompt textarea, #prompt input");
        field.value = prompt;
        field.dispatchEvent(new Event("input", { bubbles: true }));
        field.focus();
      });
      return button;
    })),
  ];
}

// --- choosing -------------------------------------------------------------------------------------------------------

function choose(index, tell = true) {
  const { cells: wanted = [], sweep, hint } = view();
  chosen = index !== null && index < wanted.length ? index : null;
  if (chosen === null) alone = false;
  [...cells.children].forEach((figure, place) => {
    figure.classList.toggle("chosen", place === chosen && wanted.length > 1);
    figure.setAttribute("aria-pressed", String(place === chosen));
  });
  element.classList.toggle("alone", alone);
  const cell = chosen === null ? null : wanted[chosen];
  element.classList.toggle("has-choice", !!cell?.name);
  q(".hint").textContent = cell?.name ? "" : (finished() ? hint || "" : "");
  if (cell?.name) {
    q("[data-act=download]").setAttribute("href", cell.src);
    q("[data-act=download]").setAttribute("download", cell.name);
  }
  window.dispatchEvent(new CustomEvent("stage:chosen", { detail: { name: cell?.name ?? null } }));
  if (tell && cell && sweep && typeof cell.value === "number") {
    window.dispatchEvent(new CustomEvent("desk:set", { detail: { name: sweep, strength: cell.value } }));
  }
}

function press(figure) {
  const index = [...cells.children].indexOf(figure);
  const many = (view().cells || []).length > 1;
  if (index === chosen && many) { alone = !alone; choose(index, false); } else choose(index);
  arrange();
}

cells.addEventListener("click", (event) => {
  const figure = event.target.closest("figure");
  if (figure) press(figure);
});

cells.addEventListener("keydown", (event) => {
  const figure = event.target.closest("figure");
  if (!figure || event.ctrlKey || event.metaKey) return;
  if (event.key === "Enter" || event.key === " ") { event.preventDefault(); press(figure); }
  if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
    const next = event.key === "ArrowRight" ? figure.nextElementSibling : figure.previousElementSibling;
    if (next) { event.preventDefault(); next.focus(); choose([...cells.children].indexOf(next)); arrange(); }
  }
  if (event.key === "Escape" && alone) { alone = false; choose(chosen, false); arrange(); }
});

// --- size -----------------------------------------------------------------------------------------------------------

// The columns with which the pictures are largest; a sweep stays one row as long as it can be seen there.
function arrange() {
  const { cells: wanted = [], ratio = 1, sweep } = view();
  if (!wanted.length) return;
  const width = cells.clientWidth, height = cells.clientHeight;
  if (!width || !height) return;
  const count = alone ? 1 : wanted.length;
  const caption = wanted.some((cell) => cell.caption) ? CAPTION : 0;
  const side = (columns) => {
    const rows = Math.ceil(count / columns);
    const across = (width - GAP * (columns - 1)) / columns;
    const down = (height - GAP * (rows - 1)) / rows - caption;
    return Math.floor(Math.min(across, down * ratio));
  };
  let best = 1;
  for (let columns = 2; columns <= count; columns += 1) if (side(columns) > side(best)) best = columns;
  const in_row = Math.min(side(count), Math.floor((width - 6 * (count - 1)) / count));
  if (sweep && !alone && in_row >= NARROWEST_OF_ROW) best = count;
  const size = Math.max(48, side(best));
  cells.style.setProperty("--columns", best);
  cells.style.setProperty("--side", `${size}px`);
  cells.style.setProperty("--ratio", ratio);
}

new ResizeObserver(arrange).observe(cells);

// --- the chosen picture's buttons -------------------------------------------------------------------------------------

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // No clipboard for pages over plain http: the old way.
    const area = make("textarea", { style: "position:fixed;opacity:0" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

q(".actions").addEventListener("click", async (event) => {
  const button = event.target.closest("[data-act]");
  const cell = view().cells?.[chosen];
  if (!button || !cell?.name) return;
  if (button.dataset.act === "restore") trigger("restore", { name: cell.name });
  if (button.dataset.act === "command") {
    const text = await server.command_of(cell.name);
    await copy(text);
    button.dataset.copied = text;
    const before = "Copy as command";
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = before; }, 1600);
  }
});

// --- the page around ------------------------------------------------------------------------------------------------

const here = () => element.offsetParent !== null;

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && here()) {
    event.preventDefault();
    document.activeElement?.dispatchEvent(new Event("change", { bubbles: true }));
    document.querySelector("#generate-go")?.click();
  }
});

// A picture dropped anywhere on the tab brings its settings back.
const carries_file = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
document.addEventListener("dragover", (event) => {
  if (!here() || !carries_file(event)) return;
  event.preventDefault();
  document.querySelector("#generate-page")?.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.querySelector("#generate-page")?.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  document.querySelector("#generate-page")?.classList.remove("dropping");
  if (!here() || !carries_file(event) || event.target.closest("#drop-settings")) return;
  event.preventDefault();
  const input = document.querySelector("#drop-settings input[type=file]");
  if (!input || !event.dataTransfer.files.length) return;
  stale();
  input.files = event.dataTransfer.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
}, true);

// --- the command under the form holds only as long as nothing is changed ----------------------------------------------

const stale = () => document.querySelector("#generate-form")?.removeAttribute("data-copied");
document.querySelector("#generate-page")?.addEventListener("input", stale);
document.querySelector("#generate-page")?.addEventListener("click", (event) => {
  if (event.target.closest("#desk button, #seed-roll, [data-act=restore]")) stale();
});

watch("value", take);
take();
server.start().then((first) => {
  if (!current.order) { props.value = first; take(); }
});
