// The stage: the pictures of one order, from the first glimpse on. Python sends what it shows as props.value; which
// picture is chosen, and how large the pictures can be, is found here.
//
// Events: "restore" {name}. On the window, to the desk: "desk:set" {name, strength}; to the film strip: "stage:chosen"
// {name}; to what a drawing begins with: "source:set" {mode, name}; from the desk: "stage:ask".

const q = (selector) => element.querySelector(selector);
const t = facts.texts;
const cells = q(".cells");
const GAP = 12, CAPTION = 28, NARROWEST_OF_ROW = 64;
let chosen = null, alone = false, shown_order = null, on_sheet = false;
let kept = null;  // the picture that another one is compared with
let current = { phase: "empty", cells: [] };

const view = () => current;
const finished = () => !["waiting", "drawing"].includes(view().phase);

function take() {
  const got = props.value || { phase: "empty", cells: [] };
  // What is wrong with an order is told over the pictures that are there; glimpses of a drawing given up go.
  const finished_ones = (current.cells || []).filter((cell) => cell.name);
  current = got.keep ? { ...current, ...got, cells: finished_ones, lines: [], examples: [], notes: [], told: "" } : got;
  draw();
}

// An order is under way from the click on, not from the first answer on.
function ask() {
  kept = null;
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
    on_sheet = false;
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
  show_sheet();
  arrange();
}

// A grid's sheet, in the place of its pictures.
function show_sheet() {
  const { sheet = "" } = view(), image = q(".sheet");
  on_sheet = on_sheet && !!sheet;
  element.classList.toggle("has-sheet", !!sheet);
  element.classList.toggle("on-sheet", on_sheet);
  image.hidden = !on_sheet;
  if (on_sheet) { image.src = sheet; image.alt = t.sheet_alt; }
  q("[data-act=sheet]").textContent = on_sheet ? t.hide_sheet : t.show_sheet;
  q("[data-act=sheet]").setAttribute("aria-pressed", String(on_sheet));
  const link = q("[data-act=sheet-download]");
  link.textContent = t.download_sheet;
  link.hidden = !on_sheet;
  if (sheet) { link.href = sheet; link.download = sheet.split("?")[0].split("/").pop(); }
}

q("[data-act=sheet]").addEventListener("click", () => { on_sheet = !on_sheet; show_sheet(); arrange(); });

// --- two pictures in one place, with an edge between them that is moved ---

const compare = q(".compare"), edge = q(".compare input");
edge.setAttribute("aria-label", t.compare_where);
q("[data-act=send]").append(...[["", t.send], ["image", t.send_image], ["inpaint", t.send_inpaint], ["upscale", t.send_upscale]]
  .map(([value, label]) => make("option", { value }, label)));
q("[data-act=send]").setAttribute("aria-label", t.send);

const picture_here = () => { const cell = view().cells?.[chosen]; return cell?.name ? cell : null; };

function show_compare() {
  const cell = picture_here(), button = q("[data-act=compare]");
  const both = !!kept && !!cell && cell.src !== kept.src;
  button.textContent = kept ? t.compare_end : t.compare;
  button.setAttribute("aria-pressed", String(!!kept));
  element.classList.toggle("comparing", both);
  compare.hidden = !both;
  if (kept) q(".hint").textContent = both ? "" : t.compare_with;
  element.classList.toggle("has-hint", !!kept && !both);
  if (!both) {
    for (const image of compare.querySelectorAll("img")) image.removeAttribute("src");
    return;
  }
  compare.style.setProperty("--ratio", view().ratio || 1);
  for (const [name, picture] of [["one", kept], ["other", cell]]) {
    q(`.compare .${name}`).src = picture.src;
    q(`.compare .${name}`).alt = picture.alt || picture.name;
  }
  move_edge();
}

function move_edge() {
  compare.style.setProperty("--edge", `${edge.value}%`);
  edge.setAttribute("aria-valuetext", `${edge.value} %`);
}

edge.addEventListener("input", move_edge);

function end_compare() {
  kept = null;
  choose(chosen, false);
  arrange();
}

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !kept || !here() || document.querySelector(":popover-open")) return;
  end_compare();
  q("[data-act=compare]").focus();
});

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
  show_compare();
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
  const { cells: wanted = [], ratio = 1, sweep, columns: fixed = 0 } = view();
  if (!wanted.length || on_sheet) return;
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
  if (fixed && !alone) best = fixed;
  if (sweep && !alone && in_row >= NARROWEST_OF_ROW) best = count;
  const size = Math.max(fixed ? 24 : 48, side(best));
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
  if (button.dataset.act === "compare") {
    if (kept) return end_compare();
    kept = cell;
    choose(chosen, false);
    edge.value = 50;
    return;
  }
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

q("[data-act=send]").addEventListener("change", (event) => {
  const mode = event.target.value, cell = picture_here();
  event.target.value = "";
  if (!mode || !cell) return;
  // Drawn larger is the picture itself: with its own words and seed.
  if (mode === "upscale") trigger("restore", { name: cell.name, mode });
  else window.dispatchEvent(new CustomEvent("source:set", { detail: { mode, name: cell.name } }));
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
