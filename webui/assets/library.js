// The library: cards of all LoRAs, and beside them what is in the chosen one and what can be made of it. Python sends
// the cards as props.value and answers questions; which card is chosen and what is typed is known here alone.
//
// Events: "select" {name} puts one on the desk, "like" {name} trains one like it.

const t = facts.texts;
const q = (selector) => element.querySelector(selector);
const cards = q(".cards"), about = q(".about"), search = q(".search"), families = q(".families");
let chosen = null, details = null, form = null, family = "", drawn = "";

const all = () => (props.value || {}).cards || [];
const card_of = (name) => all().find((card) => card.name === name);

search.placeholder = t.search;
search.setAttribute("aria-label", t.search);
q("[data-act=import]").textContent = t.import;
q("[data-act=import]").title = t.import_help;
q("[data-act=extract]").textContent = t.extract;
q("[data-act=extract]").title = t.extract_help;

// --- the cards ------------------------------------------------------------------------------------------------------

function shown() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  return all().filter((card) => (!family || card.family === family) && words.every((word) => card.words.includes(word)));
}

function picture(card, kind) {
  if (card.thumb) return make("img", { class: kind, src: card.thumb, alt: "", loading: "lazy", draggable: "false" });
  return make("span", { class: `${kind} letter`, "aria-hidden": "true" }, card.title.slice(0, 1));
}

function tile(card) {
  const tags = card.tags.slice(0, 3).join(", ");
  return make("button", {
    type: "button", class: `tile${card.problem ? " broken" : ""}`, role: "option", "data-lora": card.name,
    "aria-selected": String(card.name === chosen), title: card.problem || tags || null,
  }, picture(card, "preview"), make("span", { class: "names" },
    make("b", {}, card.title), make("span", {}, card.problem || card.about || "LoRA")));
}

function draw() {
  const present = [...new Set(all().map((card) => card.family).filter(Boolean))].sort();
  if (family && !present.includes(family)) family = "";
  const base = (props.value || {}).base_family;
  const offered = [["", t.every], ...present.map((name) => [name, name === base ? `${t.fits}` : name.replace("Stable Diffusion", "SD")])];
  families.hidden = present.length < 2;
  families.replaceChildren(...offered.map(([key, label]) =>
    act_button(label, () => { family = key; draw(); }, { "aria-pressed": String(key === family), title: key || null })));
  const found = shown();
  const rows = found.map(tile);
  if (!rows.length) {
    const none = all().length > 0;
    rows.push(make("div", { class: "empty" }, make("strong", {}, none ? t.none_found : t.empty),
      none ? t.none_found_text : filled(t.empty_text, { folder: (props.value || {}).folder || "loras" })));
  }
  const focused = cards.contains(document.activeElement) ? document.activeElement.dataset.lora : null;
  // A list of choices has choices in it: an empty one is a sentence.
  cards.setAttribute("role", found.length ? "listbox" : "group");
  cards.replaceChildren(...rows);
  if (focused) cards.querySelector(`[data-lora="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  if (chosen && !card_of(chosen) && all().length) choose(null);
  if (!chosen && !form) nothing();
}

// A new list is drawn only when it says something new: a button under the pointer must not be swapped.
function take() {
  const told = JSON.stringify(props.value);
  if (told === drawn) return;
  drawn = told;
  draw();
}

search.addEventListener("input", draw);
cards.addEventListener("click", (event) => {
  const node = event.target.closest("[data-lora]");
  if (node) choose(node.dataset.lora);
});
cards.addEventListener("dblclick", (event) => {
  const node = event.target.closest("[data-lora]");
  if (node && !card_of(node.dataset.lora)?.problem) trigger("select", { name: node.dataset.lora });
});
cards.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  const node = event.target.closest("[data-lora]");
  if (!step || !node) return;
  event.preventDefault();
  const next = step > 0 ? node.nextElementSibling : node.previousElementSibling;
  if (next?.dataset?.lora) { next.focus(); choose(next.dataset.lora); }
});

// --- the chosen one ---------------------------------------------------------------------------------------------------

function nothing() {
  about.hidden = !all().length;
  about.replaceChildren(make("p", { class: "empty" }, t.choose));
}

async function choose(name) {
  chosen = name;
  form = null;
  details = null;
  for (const node of cards.querySelectorAll("[data-lora]")) node.setAttribute("aria-selected", String(node.dataset.lora === name));
  if (!name) return nothing();
  const found = await asked(() => server.details(name));
  if (chosen !== name) return;
  details = found;
  show();
}

function show() {
  const card = card_of(chosen);
  if (!card || !details) return;
  const head = make("header", {}, picture(card, "small"), make("div", {},
    make("h2", { title: card.name }, card.title),
    card.trigger ? make("p", {}, `${t.say} `, make("b", { class: "word" }, card.trigger)) : null));
  if (details.problem) {
    about.replaceChildren(head, make("p", { class: "wrong" }, details.problem), actions(card, true), make("div", { class: "place" }));
    return;
  }
  const facts = make("dl", { class: "facts" }, ...details.rows.flatMap(([label, value]) => [make("dt", {}, label), make("dd", {}, value)]));
  const spectrum = make("div", { class: "spectrum" }, make("h3", {}, t.spectrum), make("p", { class: "told" }, t.spectrum_wait));
  const warnings = details.warnings.map((text) => make("p", { class: "careful" }, text));
  about.replaceChildren(head, ...warnings, facts, spectrum, actions(card, false), make("div", { class: "place" }), notes(), report());
  plot(spectrum, chosen);
}

function report() {
  const rows = details.report.flatMap(([label, value]) => [make("dt", {}, label), make("dd", {}, value)]);
  const left = details.unread.length ? make("pre", { "aria-label": t.unread }, details.unread.slice(0, 200).join("\n")) : null;
  return make("details", {}, make("summary", {}, t.report), make("dl", {}, ...rows), left);
}

async function plot(place, name) {
  const told = await asked(() => server.spectrum(name));
  if (chosen !== name || !place.isConnected) return;
  const line = place.querySelector(".told");
  if (told.problem) return tell_in(line, told.problem, true);
  const most = Math.max(...told.bars, 1e-12), many = told.bars.length;
  const width = 100 / many;
  const ns = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(ns, "svg");
  svg.setAttribute("viewBox", "0 0 100 40");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  const whole = told.rank_95 >= told.rank;
  const sentence = whole ? t.spectrum_whole : filled(t.spectrum_told, { rank: told.rank_95, size: told.sizes[told.rank_95] });
  svg.setAttribute("aria-label", sentence);
  told.bars.forEach((share, index) => {
    const bar = document.createElementNS(ns, "rect");
    const height = Math.max(0.6, 40 * share / most);
    for (const [key, value] of Object.entries({ x: index * width + width * 0.12, y: 40 - height, width: width * 0.76, height })) bar.setAttribute(key, value);
    bar.setAttribute("class", index < told.rank_95 ? "kept" : "");
    svg.append(bar);
  });
  const at = Math.min(86, Math.max(12, (told.rank_95 - 0.5) * width));
  const axis = make("div", { class: "axis" }, make("span", {}, "1"),
    whole ? null : make("span", { class: "mark", style: `left:${at}%` }, filled(t.hold, { rank: told.rank_95 })),
    make("span", {}, filled(t.rank_of, { rank: told.rank })));
  details.rank_95 = told.rank_95;
  place.replaceChildren(make("h3", {}, t.spectrum), svg, axis, make("p", { class: "told" }, sentence),
    ...told.notes.map((note) => make("p", { class: "told" }, note)));
}

function notes() {
  const own = details.own;
  const line = make("span", { class: "told", role: "status" });
  const inputs = [["words", t.note_words, "text"], ["weight", t.note_weight, "number"], ["text", t.note_text, "area"]].map(
    ([name, label, kind]) => field(name, label, kind, details.notes[name], { readonly: !own }));
  const box = make("div", { class: "notes" }, make("h3", {}, t.notes, line), make("div", { class: "pair" }, inputs[0], inputs[1]), inputs[2]);
  if (details.description) box.append(make("p", { class: "told description" }, details.description));
  if (details.note_problem) tell_in(line, details.note_problem, true);
  const waiting = new Map();
  const name = chosen;
  const save = async (input) => {
    clearTimeout(waiting.get(input));
    waiting.delete(input);
    const told = await asked(() => server.note({ name, field: input.name, value: input.value }));
    tell_in(line, told.problem || t.saved, !!told.problem);
  };
  box.addEventListener("input", (event) => {
    tell_in(line, "");
    clearTimeout(waiting.get(event.target));
    waiting.set(event.target, setTimeout(() => save(event.target), 600));
  });
  box.addEventListener("focusout", (event) => { if (waiting.has(event.target)) save(event.target); });
  return box;
}

// --- what can be made of it -------------------------------------------------------------------------------------------

function actions(card, broken) {
  const row = make("div", { class: "buttons" });
  if (!broken) {
    row.append(act_button(t.put, () => trigger("select", { name: card.name }), { class: "primary", "data-act": "put" }));
    for (const act of ["resize", "merge", "convert", "compare"]) row.append(act_button(t[act], () => open_form(act), { "data-act": act }));
    row.append(act_button(t.like, () => trigger("like", { name: card.name }), { "data-act": "like" }));
  }
  if (details.own ?? true) {
    row.append(act_button(t.rename, () => open_form("rename"), { "data-act": "rename" }));
    row.append(act_button(t.delete, () => open_form("delete"), { "data-act": "delete" }));
  } else {
    row.append(make("p", { class: "told" }, t.adopted));
  }
  return row;
}

const others = () => all().filter((card) => !card.problem && card.name !== chosen).map((card) => [card.name, card.name]);

const FORMS = {
  resize: () => [field("rank", t.rank, "number", details.rank_95 ?? 8), field("energy", t.rank_energy, "number"), field("out", t.new_name, "text", details.free_name)],
  merge: () => [
    field("other", t.with, others()),
    field("strength", filled(t.strength_this, { name: card_of(chosen).title }), "number", 1), field("other_strength", t.strength_other, "number", 1),
    field("how", t.how, ["concat", "svd", "linear", "ties", "dare"].map((how) => [how, t[`how_${how}`]])),
    field("rank", t.rank, "number", 16), field("out", t.new_name, "text", `${card_of(chosen).title}-mix`),
  ],
  convert: () => [
    field("to", t.names, [["kohya", t.names_kohya], ["peft", t.names_peft]]),
    field("dtype", t.numbers, [["", t.as_it_is], ["fp16", "fp16"], ["bf16", "bf16"], ["fp32", "fp32"]]),
    field("out", t.new_name, "text", `${card_of(chosen).title}-copy`),
  ],
  compare: () => [
    field("other", t.with, others()),
    field("strength", filled(t.strength_this, { name: card_of(chosen).title }), "number", 1), field("other_strength", t.strength_other, "number", 1),
  ],
  rename: () => [field("to", t.new_name, "text", card_of(chosen).title)],
  delete: () => [make("p", {}, filled(t.delete_sure, { name: card_of(chosen).title }))],
  extract: () => [
    field("tuned", t.tuned, "text", "", { list: "library-bases" }), field("base", t.from_base, "text", (props.value || {}).base || "", { list: "library-bases" }),
    make("datalist", { id: "library-bases" }, ...((props.value || {}).bases || []).map((name) => make("option", { value: name }))),
    field("rank", t.rank, "number", 16), field("out", t.new_name, "text", "extracted"),
  ],
};

function open_form(act) {
  if (act === "extract") { choose(null); about.replaceChildren(make("h2", {}, t.extract), make("p", { class: "told" }, t.extract_help), make("div", { class: "place" })); }
  about.hidden = false;
  const place = about.querySelector(".place");
  const line = make("p", { class: "told", role: "status" });
  const go = make("button", { type: "submit", class: "go" }, act === "delete" ? t.delete_yes : t[`do_${act}`]);
  form = make("form", { class: "work", "data-form": act }, ...FORMS[act](), line,
    make("div", { class: "pair" }, go, act_button(act === "delete" ? t.keep : t.cancel, close_form)));
  form.addEventListener("submit", (event) => { event.preventDefault(); carry_out(act, form, line, go); });
  place.replaceChildren(form);
  place.scrollIntoView({ block: "nearest" });
  (form.querySelector("input, select") || go).focus({ preventScroll: true });
}

function close_form() {
  form?.remove();
  form = null;
  if (!chosen) nothing();
}

async function carry_out(act, work, line, go) {
  const name = chosen;
  go.disabled = true;
  tell_in(line, t.working);
  const order = { name, ...values(work) };
  const told = await asked(() => (act === "delete" ? server.delete(name) : server[act](order)));
  go.disabled = false;
  if (told.problem) return tell_in(line, told.problem, true);
  if (act === "compare") return work.isConnected && show_comparison(line, told);
  await renew();
  if (act === "delete") { close_form(); choose(null); return announce(filled(t.delete_done, { name })); }
  if (act === "rename") return choose(told.name);
  announce([filled(t.made, { name: told.name }), lost(told), ...(told.notes || [])].join(" "));
  if (chosen === name) choose(told.name);
}

function lost(told) {
  if (typeof told.error !== "number") return "";
  return told.error < 0.0005 ? t.nothing_lost : filled(t.lost, { percent: (100 * told.error).toFixed(told.error < 0.1 ? 1 : 0) });
}

function show_comparison(line, told) {
  tell_in(line, [told.advice, ...told.notes].join(" "));
  line.parentElement.querySelector("table")?.remove();
  const head = make("tr", {}, ...[t.block, t.cosine, t.verdict].map((text) => make("th", { scope: "col" }, text)));
  const rows = told.blocks.map((block) => make("tr", {}, make("th", { scope: "row" }, block.name), make("td", {}, block.cosine), make("td", {}, block.verdict)));
  line.after(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
}

const announce = (text, wrong = false) => tell_in(q(".shelf > .told"), text, wrong);

async function renew() {
  const fresh = await asked(() => server.cards());
  if (!fresh.problem) { props.value = fresh; take(); }
}

// --- coming from outside ------------------------------------------------------------------------------------------------

q("[data-act=extract]").addEventListener("click", () => open_form("extract"));
q("[data-act=import]").addEventListener("click", () => q(".import-file").click());
q(".import-file").addEventListener("change", (event) => { bring([...event.target.files]); event.target.value = ""; });

async function bring(files) {
  for (const file of files) {
    announce(filled(t.importing, { name: file.name }));
    let told;
    try {
      const answer = await fetch(`upload/lora?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file });
      told = await answer.json();
    } catch {
      told = { problem: `${file.name} could not be sent: the page does not answer.` };
    }
    if (told.problem) return announce(told.problem, true);
    await renew();
    announce(filled(t.imported, { name: told.name }));
    choose(told.name);
  }
}

const with_files = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
element.addEventListener("dragover", (event) => { if (with_files(event)) { event.preventDefault(); element.classList.add("dropping"); } });
element.addEventListener("dragleave", (event) => { if (!element.contains(event.relatedTarget)) element.classList.remove("dropping"); });
element.addEventListener("drop", (event) => {
  element.classList.remove("dropping");
  if (!with_files(event)) return;
  event.preventDefault();
  bring([...event.dataTransfer.files]);
});

watch("value", take);
take();
