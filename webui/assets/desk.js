// The desk: one strip a LoRA. The channels live here, in props.value; Python reads them with an order and may replace
// them. A moved fader stays in the browser: nothing listens to a change of the value.
//
// Events: "sweep" {name, from, to, count}, "grid" {rows, columns, theme}. On the window, from the stage: "desk:set" {name, strength}; to it: "stage:ask".

const LOW = -1, HIGH = 2, LIMIT = 10;
const TICKS = [2, 1.5, 1, 0.5, 0, -0.5, -1];
const SNAPS = [0, 1], SNAP_WITHIN = 0.04;
const t = facts.texts;
const strips = element.querySelector(".strips");
const menu = element.querySelector(".menu");
const add = element.querySelector("#desk-add");
const sweeps = new Map();  // name -> {from, to, count}, as last set
let sweeping = null;  // the channel whose sweep is being set

const channels = () => props.value || [];
// What all faders are multiplied by goes with every channel, for Python reads nothing but channels.
let master = 1;
const commit = (list) => { props.value = list.map((channel) => ({ ...channel, master })); };
const patch = (name, values) => {
  commit(channels().map((channel) => (channel.name === name ? { ...channel, ...values } : channel)));
  refresh();
};

function said(strength) {
  const text = strength.toFixed(Math.abs(strength * 100 - Math.round(strength * 100)) > 1e-6 ? 3 : 2);
  return text.replace("-", "\u2212");
}

function typed(text) {
  const number = Number(text.trim().replace("\u2212", "-").replace(",", "."));
  return text.trim() === "" || !Number.isFinite(number) ? null : Math.max(-LIMIT, Math.min(LIMIT, number));
}

const rounded = (number) => Math.round(number * 1000) / 1000;
const place = (strength) => (Math.max(LOW, Math.min(HIGH, strength)) - LOW) / (HIGH - LOW);

function thumb(channel) {
  if (channel.thumb) return make("img", { class: "thumb", src: channel.thumb, alt: "", loading: "lazy", draggable: "false" });
  return make("span", { class: "thumb letter", "aria-hidden": "true" }, channel.name.split("/").pop().slice(0, 1));
}

// --- one strip ------------------------------------------------------------------------------------------------------

function strip(channel) {
  const name = channel.name;
  const short = name.split("/").pop();
  const range = make("input", {
    type: "range", min: LOW, max: HIGH, step: 0.01, value: channel.strength, "aria-label": `Strength of ${name}`,
  });
  const number = make("input", {
    class: "value", type: "text", inputmode: "decimal", autocomplete: "off", "aria-label": `Strength of ${name}, typed`,
  });
  const fader = make("div", { class: "fader" },
    make("div", { class: "ticks", "aria-hidden": "true" },
      ...TICKS.map((tick) => make("span", { style: `--at:${place(tick)}`, class: tick === 0 ? "zero" : "" },
        String(tick).replace("-", "\u2212")))),
    make("div", { class: "slot" }, make("i", { class: "groove" }), make("i", { class: "fill" }), range));
  const mute = make("button", { type: "button", "data-act": "mute", "aria-label": `Mute ${name}`, title: "Mute" }, "M");
  const solo = make("button", { type: "button", "data-act": "solo", "aria-label": `Solo ${name}`, title: "Solo: only this" }, "S");
  const side = make("div", { class: "side" }, number, make("div", { class: "switches" }, mute, solo));
  side.append(make("button", { type: "button", class: "more", "data-act": "more", "aria-haspopup": "dialog", "aria-expanded": "false" },
    make("span", { class: "row" }, make("span", {}, t.text), make("b", { class: "of-text" })),
    curve(), make("span", { class: "of-blocks" }), make("span", { class: "word" }, t.more)));
  if (channel.trigger) {
    side.append(make("button", {
      type: "button", class: "say", "data-act": "say", title: `Add "${channel.trigger}" to the prompt`,
    }, make("span", {}, "Say "), make("b", {}, channel.trigger)));
  }
  side.append(make("div", { class: "sweep-place" }));
  side.append(make("button", { type: "button", "data-act": "sweep" }, "Sweep"));
  const head = make("header", { draggable: "true" }, thumb(channel),
    make("div", { class: "names" }, make("b", { title: name }, short), make("span", {}, channel.kind || "LoRA")),
    make("button", { type: "button", "data-act": "remove", "aria-label": `Remove ${name}`, title: "Remove" }, "\u00d7"));
  return make("section", { class: "strip", "data-adapter": name, "aria-label": name }, head, make("div", { class: "body" }, fader, side));
}

const set_to = (value) => value !== null && value !== undefined;

// The course over the steps as a small line: flat where nothing is said.
function curve() {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 100 16");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS(svg.namespaceURI, "polyline"));
  return svg;
}

function bend(svg, course) {
  const points = course || [1, 1];
  const low = Math.min(0, ...points), high = Math.max(1, ...points);
  svg.querySelector("polyline").setAttribute("points", points.map((factor, index) =>
    `${(index / (points.length - 1)) * 100},${2 + 12 * (1 - (factor - low) / (high - low))}`).join(" "));
}

const named = (choices, text) => choices.find(([value]) => value === (text || ""))?.[1] || text;

// Everything that a value changes, and nothing that would take the focus or the pointer away.
function show(node, channel, quiet) {
  const range = node.querySelector("input[type=range]");
  const number = node.querySelector(".value");
  const at = place(channel.strength);
  if (!quiet) range.value = channel.strength;
  range.setAttribute("aria-valuetext", said(channel.strength));
  node.style.setProperty("--at", at);
  node.style.setProperty("--low", Math.min(at, place(0)));
  node.style.setProperty("--high", Math.max(at, place(0)));
  if (document.activeElement !== number) number.value = said(channel.strength);
  const soloed = channels().some((other) => other.solo);
  node.classList.toggle("silent", channel.muted || (soloed && !channel.solo));
  node.querySelector("[data-act=mute]").setAttribute("aria-pressed", String(!!channel.muted));
  node.querySelector("[data-act=solo]").setAttribute("aria-pressed", String(!!channel.solo));
  const text = said(set_to(channel.text) ? channel.text : channel.strength);
  node.querySelector(".of-text").textContent = text;
  node.querySelector(".more").classList.toggle("own-text", set_to(channel.text));
  bend(node.querySelector(".more svg"), channel.course);
  const told = [channel.area ? told_area(channel) : "", channel.blocks ? named(facts.blocks, channel.blocks) : ""].filter(Boolean);
  node.querySelector(".of-blocks").textContent = told.join(", ");
  const about = [filled(t.more_of, { name: channel.name, text }), ...told, channel.steps ? named(facts.steps, channel.steps) : ""];
  node.querySelector(".more").setAttribute("aria-label", about.filter(Boolean).join(", "));
}

function refresh() {
  for (const channel of channels()) {
    const node = find(channel.name);
    if (node) show(node, channel);
  }
  show_note();
}

const find = (name) => [...strips.children].find((node) => node.dataset.adapter === name);
const channel_of = (node) => channels().find((channel) => channel.name === node.dataset.adapter);

function draw() {
  const focused = strips.contains(document.activeElement) ? document.activeElement.closest(".strip")?.dataset.adapter : null;
  strips.replaceChildren(...channels().map(strip));
  element.classList.toggle("bare", channels().length === 0);
  master = channels().find((channel) => typeof channel.master === "number")?.master ?? 1;
  refresh();
  show_master();
  if (sweeping && find(sweeping)) set_sweep(sweeping);
  if (focused && find(focused)) find(focused).querySelector("input[type=range]").focus({ preventScroll: true });
}

// --- sweep ----------------------------------------------------------------------------------------------------------

function set_sweep(name) {
  for (const old of strips.querySelectorAll(".sweep-place")) old.replaceChildren();
  for (const old of strips.querySelectorAll(".strip")) old.classList.toggle("sweeping", old.dataset.adapter === name);
  sweeping = name;
  const node = find(name);
  if (!node) return;
  const chosen = sweeps.get(name);
  const field = (id, label, value) => make("label", {}, make("span", {}, label),
    make("input", { id, type: "text", inputmode: "decimal", autocomplete: "off", value }));
  node.querySelector(".sweep-place").replaceChildren(
    make("div", { class: "sweep-head" }, make("b", {}, "Sweep"),
      make("button", { type: "button", "data-act": "sweep-close", "aria-label": "Close the sweep's settings" }, "\u00d7")),
    field("sweep-from", "from", chosen.from), field("sweep-to", "to", chosen.to), field("sweep-count", "in", chosen.count),
    make("button", { type: "button", id: "sweep-go" }, "Draw"));
}

function read_sweep() {
  const number = (id) => {
    const input = element.querySelector(`#${id}`);
    const value = typed(input.value);
    input.classList.toggle("wrong", value === null);
    return value;
  };
  const chosen = { from: number("sweep-from"), to: number("sweep-to"), count: number("sweep-count") };
  const input = element.querySelector("#sweep-count");
  const count = Number(input.value);
  const fits = Number.isInteger(count) && count >= 2 && count <= 64;
  input.classList.toggle("wrong", !fits);
  input.title = fits ? "" : "2 to 64 pictures";
  return chosen.from === null || chosen.to === null || !fits ? null : { ...chosen, count };
}

function sweep_go() {
  const chosen = read_sweep();
  if (!chosen) return;
  sweeps.set(sweeping, chosen);
  window.dispatchEvent(new Event("stage:ask"));
  trigger("sweep", { name: sweeping, ...chosen });
}

// --- more: what a strip has no room for ---------------------------------------------------------------------------------

const more = element.querySelector("#desk-more");
let told_of = null;  // the channel whose rest is shown

function open_more(name) {
  const node = find(name), channel = channel_of(node);
  told_of = name;
  const text = make("input", { type: "range", min: LOW, max: HIGH, step: 0.05, name: "text-fader", "aria-label": t.text_encoder,
    value: set_to(channel.text) ? channel.text : channel.strength });
  const knob = (key, attributes) => make("input", { type: "text", autocomplete: "off", spellcheck: "false", name: key, ...attributes });
  const chosen = (key, choices) => make("select", { name: `${key}-choice`, "aria-label": t[key] },
    ...choices.map(([value, label]) => make("option", { value }, label)), make("option", { value: "by hand" }, t.by_hand));
  const part = (label, ...inside) => make("div", { class: "part-field" }, make("span", {}, label), ...inside);
  more.setAttribute("aria-label", filled(t.more_of, { name, text: said(set_to(channel.text) ? channel.text : channel.strength) }));
  more.replaceChildren(
    make("header", {}, make("b", {}, name), act_button("\u00d7", () => more.hidePopover(), { class: "close", "aria-label": t.close })),
    part(t.text_encoder, make("div", { class: "across" }, text,
      knob("text", { inputmode: "decimal", placeholder: t.as_fader, "aria-label": filled(t.text_typed, { name }) }))),
    part(t.blocks, make("div", { class: "across" }, chosen("blocks", facts.blocks),
      knob("blocks", { placeholder: t.blocks_hint, "aria-label": t.blocks_typed }))),
    part(t.steps, make("div", { class: "across" }, chosen("steps", facts.steps),
      knob("steps", { placeholder: t.steps_hint, "aria-label": t.steps_typed })), curve()),
    part(t.area, make("div", { class: "across" },
      make("select", { name: "area-choice", "aria-label": t.area }, ...area_choices().map(([value, label]) => make("option", { value }, label))),
      knob("box", { placeholder: "0,0,0.5,1", "aria-label": t.box_typed })),
      make("div", { class: "area-place" }), knob("words", { placeholder: t.area_words, "aria-label": t.area_words })),
    part(t.negative, knob("negative", { inputmode: "decimal", placeholder: t.the_same, "aria-label": t.negative })),
    make("div", { class: "across" }, act_button(t.earlier, () => move(-1), { "data-act": "earlier" }),
      act_button(t.later, () => move(1), { "data-act": "later" })),
    make("p", { class: "told", role: "alert" }));
  area_paint = null;
  fill_more(channel);
  more.showPopover();
  node.querySelector("[data-act=more]").setAttribute("aria-expanded", "true");
  beside(more, node.querySelector("[data-act=more]"));
  text.focus({ preventScroll: true });
}

// Strips change places without being dragged, too.
function move(by) {
  const list = [...channels()], at = list.findIndex((channel) => channel.name === told_of);
  if (at < 0 || at + by < 0 || at + by >= list.length) return;
  [list[at], list[at + by]] = [list[at + by], list[at]];
  commit(list);
  draw();
  find(told_of).querySelector("[data-act=more]").setAttribute("aria-expanded", "true");
  find(told_of).scrollIntoView({ block: "nearest", inline: "nearest" });
}

// --- where a channel acts: a part by its name, a box, or what is painted ---

const area_choices = () => [["", t.area_], ...Object.keys(facts.boxes).map((name) => [name, t[`part_${name}`] || name]),
  ["box", t.area_box], ["painted", t.area_painted]];
const kind_of_area = (area) => (!area || area === "painted" || area in facts.boxes ? area || "" : "box");
const told_area = (channel) => area_choices().find(([value]) => value === kind_of_area(channel.area))[1];
let area_paint = null;

function fill_area(channel) {
  const kind = kind_of_area(channel.area), place = more.querySelector(".area-place");
  of_more("area-choice").value = kind;
  put_in("box", kind === "box" ? channel.area : "");
  of_more("box").hidden = kind !== "box";
  put_in("words", channel.words || "");
  of_more("words").hidden = !kind;
  if (kind !== "painted") { place.replaceChildren(); area_paint = null; return; }
  if (area_paint) return;
  const width = Number(document.querySelector("#width input")?.value) || 1, height = Number(document.querySelector("#height input")?.value) || 1;
  const sheet = make("div", { class: "canvas", style: `--ratio:${width / height}` }), canvas = make("canvas", { role: "img", "aria-label": t.painted });
  const below = document.querySelector("#stage figure.chosen img[src], #stage figure:only-child img[src]");
  if (below) sheet.append(make("img", { src: below.src, alt: "", draggable: "false" }));
  sheet.append(canvas);
  area_paint = painter(canvas, () => patch(told_of, { mask: area_paint.png() }));
  place.replaceChildren(sheet, paint_tools(area_paint, t, facts.boxes));
  area_paint.shape(width / height);
  area_paint.load(channel.mask);
}

function take_area(name, input) {
  if (input.name === "words") return patch(name, { words: input.value.trim() });
  if (input.name === "area-choice") return patch(name, { area: input.value === "box" ? "0,0,0.5,1" : input.value });
  const sides = input.value.split(",").map((side) => typed(side));
  const [left, top, right, bottom] = sides;
  const fits = sides.length === 4 && !sides.includes(null) && left >= 0 && left < right && right <= 1 && top >= 0 && top < bottom && bottom <= 1;
  if (fits) return patch(name, { area: sides.join(",") });
  tell_in(more.querySelector(".told"), `${t.box_typed}: 0,0,0.5,1`, true);
  return null;
}

// Above what was clicked, or beside its strip where there is no room above; inside the window.
function beside(panel, button) {
  const at = button.getBoundingClientRect(), size = panel.getBoundingClientRect();
  const strip = button.closest(".strip")?.getBoundingClientRect();
  const right = strip && size.height > at.top - 16 && strip.right + size.width + 16 < window.innerWidth;
  panel.style.left = `${Math.max(8, Math.min(right ? strip.right + 8 : at.left, window.innerWidth - size.width - 8))}px`;
  panel.style.top = `${Math.max(8, Math.min(at.top - size.height - 8, window.innerHeight - size.height - 8))}px`;
}

const of_more = (name) => more.querySelector(`[name="${name}"]`);

// What is being typed is left alone.
const put_in = (name, value) => { if (document.activeElement !== of_more(name)) of_more(name).value = value; };

function fill_more(channel) {
  of_more("text-fader").value = set_to(channel.text) ? channel.text : channel.strength;
  put_in("text", set_to(channel.text) ? said(channel.text) : "");
  put_in("negative", set_to(channel.negative) ? said(channel.negative) : "");
  for (const [key, choices] of [["blocks", facts.blocks], ["steps", facts.steps]]) {
    put_in(key, channel[key] || "");
    of_more(`${key}-choice`).value = choices.some(([value]) => value === (channel[key] || "")) ? channel[key] || "" : "by hand";
  }
  bend(more.querySelector("svg"), channel.course);
  fill_area(channel);
  tell_in(more.querySelector(".told"), "");
}

async function take_more(input) {
  const name = told_of, now = () => channels().find((channel) => channel.name === name);
  if (input.name === "text-fader") patch(name, { text: rounded(Number(input.value)) });
  if (input.name === "text" || input.name === "negative") {
    const value = typed(input.value);
    if (value !== null || input.value.trim() === "") patch(name, { [input.name]: value === null ? null : rounded(value) });
  }
  if (["area-choice", "box", "words"].includes(input.name) && take_area(name, input) === null) return;
  const key = input.name.replace("-choice", "");
  if (key === "blocks" || key === "steps") {
    const value = input.value === "by hand" ? of_more(key).value : input.value;
    const before = now()[key] || "";
    // Set at once, for a picture may be asked for before the answer is there; what is wrong is taken back.
    patch(name, { [key]: value });
    const answer = await asked(() => server.looked_at({ name, [key]: value }));
    if (!now()) return;
    if (answer.problem) {
      if (now()[key] === value) patch(name, { [key]: before });
      if (told_of === name) tell_in(more.querySelector(".told"), answer.problem, true);
      return;
    }
    if (now()[key] !== value) return;
    // Only what was asked about: the other may have been changed meanwhile.
    patch(name, key === "steps" ? { steps: answer.steps, course: answer.course } : { blocks: answer.blocks });
    if (input.value === "by hand" && told_of === name) { fill_more(now()); of_more(`${key}-choice`).value = "by hand"; of_more(key).focus(); return; }
  }
  if (told_of !== name || !now()) return;
  fill_more(now());
  beside(more, find(name).querySelector("[data-act=more]"));
}

more.addEventListener("change", (event) => take_more(event.target));
more.addEventListener("input", (event) => {
  if (event.target.name === "text-fader") of_more("text").value = said(Number(event.target.value));
});
more.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target.type === "text" && !event.ctrlKey && !event.metaKey) take_more(event.target);
});
more.addEventListener("toggle", (event) => {
  if (event.newState !== "closed") return;
  const button = find(told_of)?.querySelector("[data-act=more]");
  button?.setAttribute("aria-expanded", "false");
  if (!document.activeElement || document.activeElement === document.body || more.contains(document.activeElement)) button?.focus({ preventScroll: true });
  told_of = null;
  area_paint = null;
});

// --- what a person does -----------------------------------------------------------------------------------------------

let shift = false;
window.addEventListener("keydown", (event) => { shift = event.shiftKey; }, true);
window.addEventListener("keyup", (event) => { shift = event.shiftKey; }, true);

strips.addEventListener("input", (event) => {
  if (event.target.type !== "range") return;
  const node = event.target.closest(".strip");
  let strength = Number(event.target.value);
  if (!shift) for (const snap of SNAPS) if (Math.abs(strength - snap) < SNAP_WITHIN) strength = snap;
  event.target.value = strength;
  show(node, { ...channel_of(node), strength }, true);
});

strips.addEventListener("change", (event) => {
  const node = event.target.closest(".strip");
  if (event.target.type === "range") patch(node.dataset.adapter, { strength: rounded(Number(event.target.value)) });
  if (event.target.classList.contains("value")) take_typed(node, event.target);
});

function take_typed(node, input) {
  const strength = typed(input.value);
  if (strength !== null) patch(node.dataset.adapter, { strength: rounded(strength) });
  else input.value = said(channel_of(node).strength);
}

strips.addEventListener("focusin", (event) => {
  if (event.target.classList.contains("value")) event.target.select();
});

strips.addEventListener("focusout", (event) => {
  if (event.target.classList.contains("value")) event.target.value = said(channel_of(event.target.closest(".strip")).strength);
});

strips.addEventListener("keydown", (event) => {
  const node = event.target.closest(".strip");
  if (!node) return;
  if (event.target.closest(".sweep-place")) {
    if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) { event.preventDefault(); sweep_go(); }
    if (event.key === "Escape") close_sweep(node);
    return;
  }
  if (event.target.classList.contains("value")) {
    if (event.key === "Enter") { take_typed(node, event.target); event.target.blur(); }
    if (event.key === "Escape") { event.target.value = said(channel_of(node).strength); event.target.blur(); }
  }
  const fader = event.target.type === "range";
  if (!fader && !event.target.classList.contains("value")) return;
  const up = event.key === "ArrowUp" || (fader && event.key === "ArrowRight");
  const down = event.key === "ArrowDown" || (fader && event.key === "ArrowLeft");
  if (!up && !down) return;
  event.preventDefault();
  const by = (up ? 1 : -1) * (event.shiftKey ? 0.01 : 0.05);
  const strength = Math.max(LOW, Math.min(HIGH, rounded(channel_of(node).strength + by)));
  patch(node.dataset.adapter, { strength });
  if (!fader) event.target.value = said(strength);
});

strips.addEventListener("dblclick", (event) => {
  if (event.target.type === "range") patch(event.target.closest(".strip").dataset.adapter, { strength: 1 });
});

function close_sweep(node) {
  sweeping = null;
  node.querySelector(".sweep-place").replaceChildren();
  node.classList.remove("sweeping");
  node.querySelector("[data-act=sweep]").focus();
}

strips.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const node = button.closest(".strip");
  const name = node.dataset.adapter;
  if (button.id === "sweep-go") return sweep_go();
  if (button.dataset.act === "sweep-close") return close_sweep(node);
  const channel = channel_of(node);
  if (button.dataset.act === "mute") patch(name, { muted: !channel.muted });
  if (button.dataset.act === "solo") patch(name, { solo: !channel.solo });
  if (button.dataset.act === "say") say(channel.trigger);
  if (button.dataset.act === "more") open_more(name);
  if (button.dataset.act === "remove") {
    commit(channels().filter((other) => other.name !== name));
    if (sweeping === name) sweeping = null;
    draw();
  }
  if (button.dataset.act === "sweep") {
    if (!sweeps.has(name)) sweeps.set(name, { from: 0, to: 1.2, count: 7 });
    set_sweep(name);
    sweep_go();
  }
});

function say(word) {
  const prompt = document.querySelector("#prompt textarea, #prompt input");
  if (!prompt) return;
  if (!prompt.value.toLowerCase().includes(word.toLowerCase())) {
    const before = prompt.value.trim();
    prompt.value = before ? `${before.replace(/,$/, "")}, ${word}` : word;
    prompt.dispatchEvent(new Event("input", { bubbles: true }));
  }
  prompt.focus();
}

// Strips change places by their heads.
let carried = null;
strips.addEventListener("dragstart", (event) => {
  const head = event.target.closest?.("header");
  if (!head) return;
  carried = head.closest(".strip").dataset.adapter;
  event.dataTransfer.effectAllowed = "move";
  event.dataTransfer.setData("text/plain", carried);
  head.closest(".strip").classList.add("carried");
});
strips.addEventListener("dragover", (event) => {
  if (!carried) return;
  event.preventDefault();
  const over = event.target.closest(".strip");
  const node = find(carried);
  if (!over || over === node) return;
  const box = over.getBoundingClientRect();
  const sideways = box.width < box.height * 1.5;
  const late = sideways ? event.clientX > box.left + box.width / 2 : event.clientY > box.top + box.height / 2;
  over[late ? "after" : "before"](node);
});
strips.addEventListener("drop", (event) => { if (carried) event.preventDefault(); });
strips.addEventListener("dragend", () => {
  if (!carried) return;
  find(carried)?.classList.remove("carried");
  carried = null;
  const order = [...strips.children].map((node) => node.dataset.adapter);
  commit([...channels()].sort((one, other) => order.indexOf(one.name) - order.indexOf(other.name)));
});

// --- the whole desk -----------------------------------------------------------------------------------------------------

const whole = element.querySelector(".whole"), level = element.querySelector("#desk-master");
whole.setAttribute("aria-label", t.whole);
whole.querySelector(".name").textContent = t.whole;
whole.querySelector(".of-every").textContent = t.of_every;
level.setAttribute("aria-label", t.master);

function show_master(at = master) {
  level.value = at;
  level.setAttribute("aria-valuetext", `${Math.round(at * 100)} %`);
  level.style.setProperty("--at", at / 2);
  whole.querySelector(".percent").textContent = `${Math.round(at * 100)}%`;
}

function set_master(value) {
  master = Math.round(value * 100) / 100;
  commit(channels());
  show_master();
}

level.addEventListener("input", () => {
  const at = Number(level.value);
  show_master(!shift && Math.abs(at - 1) < SNAP_WITHIN ? 1 : at);
});
level.addEventListener("change", () => set_master(Number(level.value)));
level.addEventListener("dblclick", () => set_master(1));
level.addEventListener("keydown", (event) => {
  const by = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1 }[event.key];
  if (!by) return;
  event.preventDefault();
  set_master(Math.max(0, Math.min(2, master + by * (event.shiftKey ? 0.01 : 0.05))));
});

// How two LoRAs meet is measured at strength 1 when somebody asks; what the faders make of it is reckoned here.
const note = whole.querySelector(".note p"), meet = whole.querySelector("[data-act=meet]");
const APART = 0.1, MOST_STRENGTH = 1.5;
const met = new Map();  // "a\nb" -> {cosine, norm_a, norm_b}
let mending = null;  // what the button beside the note would set

function heard() {
  const soloed = channels().some((channel) => channel.solo);
  return channels().filter((channel) => !channel.muted && (channel.solo || !soloed) && channel.strength);
}

function show_note() {
  const on = heard();
  const pairs = on.flatMap((a, at) => on.slice(at + 1).map((b) => ({ a, b, known: met.get(`${a.name}\n${b.name}`) })))
    .filter(({ a, b }) => !a.area || !b.area || a.area === b.area);
  mending = null;
  note.classList.remove("careful", "wrong");
  meet.hidden = pairs.length === 0;
  meet.textContent = t.meet;
  note.textContent = "";
  if (!pairs.length || pairs.some(({ known }) => !known)) return;
  const [worst] = pairs.sort((one, other) => Math.abs(other.known.cosine) - Math.abs(one.known.cosine));
  const cosine = worst.known.cosine * Math.sign(worst.a.strength * worst.b.strength);
  if (Math.abs(cosine) < APART) { note.textContent = t.meet_apart; meet.hidden = true; return; }
  const x = Math.abs(worst.a.strength) * worst.known.norm_a, y = Math.abs(worst.b.strength) * worst.known.norm_b;
  const gain = Math.sqrt(Math.max(0, 1 + 2 * x * y * cosine / (x * x + y * y)));
  note.classList.add("careful");
  note.textContent = filled(cosine > 0 ? t.meet_same : t.meet_against,
    { a: worst.a.name, b: worst.b.name, cosine: said(cosine), gain: gain.toFixed(2) });
  const factor = 1 / (1 + cosine);
  meet.hidden = !(factor > 0 && factor <= MOST_STRENGTH);
  meet.textContent = t.balance;
  mending = () => [worst.a, worst.b].forEach((one) => patch(one.name, { strength: rounded(one.strength * factor) }));
}

meet.addEventListener("click", async () => {
  if (mending) {
    const mend = mending;
    mend();
    // Balanced they are, and still pull the same way: the note stays away until something is moved again.
    note.textContent = "";
    meet.hidden = true;
    return;
  }
  note.textContent = t.meeting;
  meet.disabled = true;
  const answer = await asked(() => server.meetings({ names: heard().map((channel) => channel.name) }));
  meet.disabled = false;
  if (answer.problem) { tell_in(note, answer.problem, true); return; }
  for (const { a, b, ...known } of answer.pairs) {
    met.set(`${a}\n${b}`, known);
    met.set(`${b}\n${a}`, { ...known, norm_a: known.norm_b, norm_b: known.norm_a });
  }
  show_note();
});

// A grid: two axes, each of something that changes and the values it takes.
const grid = element.querySelector("#desk-grid-form"), grid_button = element.querySelector("#desk-grid");
const axes = { rows: { key: "strength", name: "", values: "" }, columns: { key: "seed", name: "", values: "" } };
grid_button.textContent = t.grid;
grid.setAttribute("aria-label", t.grid_title);

const kind_of = (key) => facts.axes.find(([word]) => word === key);

function draw_grid() {
  const names = channels().map((channel) => channel.name);
  const side = (which) => {
    const axis = axes[which], [, , of_lora, example] = kind_of(axis.key);
    if (!names.includes(axis.name)) axis.name = names[0] || "";
    const usable = facts.axes.filter(([, , needs]) => !needs || names.length);
    return make("fieldset", { "data-side": which }, make("legend", {}, t[which]),
      field("key", t.axis, usable.map(([word, label]) => [word, label]), axis.key),
      of_lora ? field("name", t.of_lora, names.map((name) => [name, name]), axis.name) : null,
      field("values", t.axis_values, "text", axis.values || example));
  };
  if (!names.length) for (const axis of Object.values(axes)) if (kind_of(axis.key)[2]) Object.assign(axis, { key: "guidance", values: "" });
  grid.replaceChildren(
    make("header", {}, make("b", {}, t.grid_title), act_button("\u00d7", () => grid.hidePopover(), { class: "close", "aria-label": t.close })),
    side("rows"), side("columns"), make("p", { class: "told", role: "status" }),
    make("button", { type: "submit", class: "go", id: "grid-go" }, t.grid_draw));
  tell_grid();
}

const listed = (text) => text.split(/(?<!\\),/).map((value) => value.trim()).filter(Boolean);

// What the form says as axes the library reads; nothing where a side is empty or there are too many.
function tell_grid() {
  const found = {};
  let count = 1;
  for (const place of grid.querySelectorAll("fieldset")) {
    const axis = { name: "", ...values(place) };
    Object.assign(axes[place.dataset.side], axis);
    const several = listed(axis.values);
    count *= several.length;
    found[place.dataset.side] = `${axis.key}${kind_of(axis.key)[2] ? `:${axis.name}` : ""}=${several.join(",")}`;
  }
  const wrong = !count ? t.grid_empty : count > facts.most ? filled(t.grid_many, { count, most: facts.most }) : "";
  tell_in(grid.querySelector(".told"), wrong || filled(t.grid_told, { count }), wrong);
  grid.querySelector("#grid-go").disabled = !!wrong;
  return wrong ? null : found;
}

grid_button.addEventListener("click", () => {
  if (grid.matches(":popover-open")) return grid.hidePopover();
  draw_grid();
  grid.showPopover();
  grid_button.setAttribute("aria-expanded", "true");
  beside(grid, grid_button);
  grid.querySelector("select").focus({ preventScroll: true });
});
grid.addEventListener("toggle", (event) => { if (event.newState === "closed") grid_button.setAttribute("aria-expanded", "false"); });
grid.addEventListener("input", tell_grid);
grid.addEventListener("change", (event) => {
  if (event.target.name !== "key") return;
  const side = event.target.closest("fieldset").dataset.side;
  Object.assign(axes[side], { key: event.target.value, values: "" });
  draw_grid();
  grid.querySelector(`[data-side=${side}] [name=key]`).focus({ preventScroll: true });
});
grid.addEventListener("submit", (event) => {
  event.preventDefault();
  const wanted = tell_grid();
  if (!wanted) return;
  grid.hidePopover();
  window.dispatchEvent(new Event("stage:ask"));
  trigger("grid", { ...wanted, theme: document.body.classList.contains("dark") ? "dark" : "light" });
});

// --- adding ---------------------------------------------------------------------------------------------------------

add.addEventListener("click", async () => {
  if (menu.matches(":popover-open")) return menu.hidePopover();
  let found;
  try {
    found = await server.loras();
  } catch {
    found = { loras: [], title: "The list cannot be read", text: "The page's own process does not answer: start it again." };
  }
  const taken = new Set(channels().map((channel) => channel.name));
  const rows = found.loras.map((lora) => {
    const row = make("button", { type: "button", "data-add": lora.name, disabled: !!lora.problem, title: lora.problem || null },
      thumb(lora), make("span", { class: "names" }, make("b", {}, lora.name),
        make("span", {}, lora.problem || (taken.has(lora.name) ? "on the desk" : lora.kind || "LoRA"))));
    row.addEventListener("click", () => put(lora));
    return row;
  });
  if (!rows.length) {
    rows.push(make("p", { class: "none" }, make("b", {}, found.title), found.text));
  }
  menu.replaceChildren(...rows);
  menu.showPopover();
  const at = add.getBoundingClientRect(), size = menu.getBoundingClientRect();
  const left = Math.max(8, Math.min(at.left + at.width / 2 - size.width / 2, window.innerWidth - size.width - 8));
  const top = at.top - size.height - 8;
  menu.style.left = `${left}px`;
  menu.style.top = `${Math.max(8, top)}px`;
  menu.querySelector("button:not(:disabled)")?.focus({ preventScroll: true });
});

menu.addEventListener("keydown", (event) => {
  if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
  event.preventDefault();
  const rows = [...menu.querySelectorAll("button:not(:disabled)")];
  const next = rows.indexOf(document.activeElement) + (event.key === "ArrowDown" ? 1 : -1);
  rows[(next + rows.length) % rows.length]?.focus();
});

function put(lora) {
  menu.hidePopover();
  if (!channels().some((channel) => channel.name === lora.name)) {
    commit([...channels(), {
      name: lora.name, strength: lora.weight ? rounded(lora.weight) : 1, text: null, muted: false, solo: false,
      kind: lora.kind, trigger: lora.trigger, thumb: lora.thumb,
    }]);
    draw();
  }
  const node = find(lora.name);
  node.scrollIntoView({ block: "nearest", inline: "nearest" });
  node.querySelector("input[type=range]").focus({ preventScroll: true });
}

// --- from elsewhere -----------------------------------------------------------------------------------------------------

window.addEventListener("desk:set", (event) => {
  if (channels().some((channel) => channel.name === event.detail.name)) {
    patch(event.detail.name, { strength: rounded(event.detail.strength) });
  }
});

watch("value", draw);
draw();
