// A set of pictures: captions edited in place and saved while they are typed, bulk edits with undo, what is wrong, how
// pictures will be cropped, their masks, and the captioner. Python sends which sets there are as props.value; the set that is open,
// what is searched for and typed is known here alone.
//
// Event: "train" {folder}.

const t = facts.texts;
const q = (selector) => element.querySelector(selector);
const wall = q(".pictures"), chooser = q(".set"), search = q(".search"), sheet = q(".sheet");
const AT_ONCE = 240;
let set = null, filter = new Set(), limit = AT_ONCE, crops = null, crops_shown = false, tokens = new Map(), room = 0;
let checked = null, stale = false, known_sets = "", opening = 0, polling = null;

const base = () => (props.value || {}).base || "pocket";
const announce = (text, wrong = false) => tell_in(q(".wall > .told"), text, wrong);
const item_of = (name) => set?.items.find((item) => item.name === name);
const card_of = (name) => wall.querySelector(`[data-picture="${CSS.escape(name)}"]`);

search.placeholder = t.search;
search.setAttribute("aria-label", t.search);
chooser.setAttribute("aria-label", t.set);
for (const [act, label] of [["edit", t.edit], ["undo", t.undo], ["new", t.new], ["add", t.add]]) q(`[data-act=${act}]`).textContent = label;
for (const [box, label] of [["problems", t.problems], ["words", t.words], ["crops", t.crops], ["captioner", t.captioner]]) q(`.${box} h3`).textContent = label;

// --- which set --------------------------------------------------------------------------------------------------------

function take() {
  const { sets = [] } = props.value || {};
  const told = JSON.stringify([sets, base()]);
  if (told === known_sets) return;
  known_sets = told;
  list();
  if (!set && sets.length) open(sets[0][1]);
  else if (set && crops) measure();
}

function list() {
  const { sets = [] } = props.value || {};
  const rows = sets.map(([label, folder]) => make("option", { value: folder, selected: folder === set?.folder }, label));
  if (set?.folder && !sets.some(([, folder]) => folder === set.folder)) rows.unshift(make("option", { value: set.folder, selected: true }, set.name));
  rows.push(make("option", { value: "" }, t.other));
  chooser.replaceChildren(...rows);
}

chooser.addEventListener("change", () => {
  if (chooser.value) return open(chooser.value);
  list();
  ask_line(t.path, "", t.open, async (path) => { await open(path); });
});

async function open(folder, keep = false) {
  const turn = ++opening, asking = set ? sheet.firstChild : null;  // the first set opens by itself: what is asked stays
  const found = await asked(() => server.open(folder));
  if (turn !== opening) return;
  if (!found.problem && !found.there) found.problem = found.empty;
  if (found.problem) { list(); return announce(found.problem, true); }
  const other = found.folder !== set?.folder;
  set = found;
  if (other && !keep) { filter = new Set(); search.value = ""; limit = AT_ONCE; checked = null; stale = false; crops_shown = false; announce(found.shipped ? t.shipped : ""); }
  if (other) masks.close();
  if (other && !keep && sheet.firstChild === asking) sheet.replaceChildren();  // what was begun meanwhile stays
  tokens = new Map();
  list();
  draw();
  follow();
  count_tokens(set.items.map((item) => item.caption));
  measure();
  if (!keep || !checked) check();
}

// --- the pictures -----------------------------------------------------------------------------------------------------

function shown() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  return (set?.items || []).filter((item) => {
    const caption = item.caption.toLowerCase();
    const said = words_of(item.caption);
    return words.every((word) => caption.includes(word) || item.name.toLowerCase().includes(word)) && [...filter].every((word) => said.includes(word));
  });
}

function card(item) {
  const area = make("textarea", { rows: 2, spellcheck: "false", placeholder: t.no_caption, "aria-label": filled(t.caption_of, { name: item.name }) });
  area.value = item.caption;
  const image = make("img", { loading: "lazy", decoding: "async", src: item.src, alt: item.caption || item.name, draggable: "false" });
  const remove = make("button", { type: "button", class: "quiet remove", "data-act": "remove", "aria-label": filled(t.remove, { name: item.name }), title: filled(t.remove, { name: item.name }) }, "\u00d7");
  const mask = make("button", { type: "button", class: "mask", "data-act": "mask" }, t.mask);
  say_mask(mask, item);
  return make("div", { class: "card", "data-picture": item.name }, make("div", { class: "frame" }, image), mask, remove, area,
    make("div", { class: "foot" }, make("span", { class: "told tokens" }), make("span", { class: "told state", "aria-live": "polite" })));
}

function draw() {
  const rows = shown();
  const nodes = rows.slice(0, limit).map(card);
  if (!nodes.length) {
    const none = (set?.items || []).length > 0;
    nodes.push(make("div", { class: "empty" }, make("strong", {}, none ? t.none_found : t.empty), none ? t.none_found_text : t.empty_text));
  }
  if (rows.length > limit) nodes.push(act_button(filled(t.more, { count: rows.length - limit }), () => { limit += AT_ONCE; draw(); }, { class: "more" }));
  wall.replaceChildren(...nodes);
  for (const item of rows.slice(0, limit)) say_tokens(item.name);
  q(".count").textContent = set ? String(set.items.length) : "";
  if (crops_shown) frame_all();
  around();
}

// What stands beside the pictures and follows from the captions.
function around() {
  const undo = q("[data-act=undo]");
  undo.disabled = !set?.undo;
  undo.title = set?.undo ? filled(t.undo_what, { what: set.undo }) : "";
  draw_words();
  draw_problems();
  draw_captioner();
}

search.addEventListener("input", () => { limit = AT_ONCE; draw(); });

// --- captions ---------------------------------------------------------------------------------------------------------

const waiting = new Map();
let line = Promise.resolve();

wall.addEventListener("input", (event) => {
  const area = event.target.closest("textarea");
  if (!area) return;
  state(area, "");
  clearTimeout(waiting.get(area));
  waiting.set(area, setTimeout(() => save(area), 500));
});
wall.addEventListener("focusout", (event) => { if (waiting.has(event.target)) save(event.target); });
wall.addEventListener("keydown", (event) => {
  if (event.target.tagName !== "TEXTAREA" || event.key !== "Enter") return;
  event.preventDefault();
  const all = [...wall.querySelectorAll("textarea")];
  (all[all.indexOf(event.target) + (event.shiftKey ? -1 : 1)] || event.target).focus();
});

const state = (area, text, wrong = false) => tell_in(area.closest(".card").querySelector(".state"), text, wrong);

function save(area) {
  clearTimeout(waiting.get(area));
  waiting.delete(area);
  const picture = area.closest(".card").dataset.picture, caption = area.value.split(/\s+/).filter(Boolean).join(" ");
  // One at a time: the first edit of a shipped set makes one copy, and what follows goes into it.
  line = line.then(async () => {
    const told = await asked(() => server.save({ folder: set.folder, picture, caption }));
    const now = card_of(picture)?.querySelector("textarea") || area;
    if (told.problem) return state(now, told.problem, true);
    const item = item_of(picture);
    if (item) item.caption = caption;
    state(now, t.saved);
    if (told.folder !== set.folder) moved(told.folder);
    await count_tokens([caption]);
    around();
  });
}

// A shipped set was copied: the copy is what is open now, and what is being typed stays.
function moved(folder) {
  set.folder = folder;
  set.shipped = false;
  set.name = folder.split(/[\\/]/).pop();
  list();
  announce(t.copied);
}

async function count_tokens(captions) {
  const wanted = [...new Set(captions)].filter((caption) => caption && !tokens.has(caption));
  if (!wanted.length) return set.items.forEach((item) => say_tokens(item.name));
  const told = await asked(() => server.tokens({ base: base(), captions: wanted }));
  if (told.problem || !told.room) return;
  room = told.room;
  wanted.forEach((caption, index) => tokens.set(caption, told.tokens[index]));
  for (const item of set.items) say_tokens(item.name);
}

function say_tokens(name) {
  const place = card_of(name)?.querySelector(".tokens"), known = tokens.get(item_of(name)?.caption);
  if (!place) return;
  place.classList.toggle("careful", !!known?.[1]);
  place.textContent = !known ? "" : known[1] ? filled(t.cut, { count: known[0], cut: known[1] }) : filled(t.tokens, { count: known[0] });
}

// --- words ------------------------------------------------------------------------------------------------------------

const SMALL = new Set("a an and are as at by for from has in is it its of on or that the this to with".split(" "));

function words_of(caption) {
  const parts = caption.toLowerCase().split(",").map((part) => part.trim()).filter(Boolean);
  if (parts.length > 3) return parts;
  const words = caption.toLowerCase().match(/[\p{L}\p{N}'-]+/gu) || [];
  return [...new Set(words.filter((word) => !SMALL.has(word) && word.length > 1))];
}

function draw_words() {
  const counted = new Map();
  for (const item of set?.items || []) for (const word of new Set(words_of(item.caption))) counted.set(word, (counted.get(word) || 0) + 1);
  const top = [...counted].sort((one, other) => other[1] - one[1] || one[0].localeCompare(other[0])).slice(0, 16);
  for (const word of filter) if (!top.some(([known]) => known === word)) top.push([word, counted.get(word) || 0]);
  const chips = top.map(([word, count]) => {
    const chip = act_button(word, () => { filter.has(word) ? filter.delete(word) : filter.add(word); limit = AT_ONCE; draw(); },
      { class: "chip", "aria-pressed": String(filter.has(word)) });
    chip.append(make("span", {}, String(count)));
    return chip;
  });
  q(".words .body").replaceChildren(...(chips.length ? chips : [make("p", { class: "told" }, t.words_none)]));
}

// --- problems ---------------------------------------------------------------------------------------------------------

async function check() {
  const folder = set.folder;
  if (!set.items.length) { checked = null; return draw_problems(); }
  checked = "waiting";
  stale = false;
  draw_problems();
  const told = await asked(() => server.check({ folder, base: base() }));
  if (set.folder !== folder && !set.items.length) return;
  checked = told;
  draw_problems();
}

function row(kind, text, label, act) {
  return make("li", {}, make("i", { class: `dot ${kind}` }), make("span", {}, text), label ? act_button(label, act, { class: "link" }) : null);
}

function draw_problems() {
  const rows = [];
  const bare = (set?.items || []).filter((item) => !item.caption);
  if (bare.length) rows.push(row("careful", bare.length === 1 ? t.bare_one : filled(t.bare, { count: bare.length }), t.act_caption, () => focus_on(bare[0].name)));
  if (checked === "waiting") rows.push(row("", t.checking));
  else if (checked?.problem) rows.push(row("stopped", checked.problem));
  else if (checked) {
    for (const problem of checked.problems.filter((one) => !["no caption", "mask"].includes(one.kind)).slice(0, 12)) {
      const pair = problem.other && item_of(problem.other) && item_of(problem.picture);
      const there = item_of(problem.picture);
      rows.push(row(problem.left_out ? "stopped" : "careful", problem.text, pair ? t.act_compare : there ? t.act_show : "",
        pair ? () => compare(problem) : () => focus_on(problem.picture)));
    }
    if (!rows.length) rows.push(row("good", t.fine));
  }
  const masked = (set?.items || []).filter((item) => item.mask).length;
  if (masked) rows.push(row("", masked === 1 ? t.masked_one : filled(t.masked, { count: masked })));
  if (set?.items.length && checked !== "waiting") rows.push(row("", stale ? t.unchecked : "", t.check, check));
  q(".problems .body").replaceChildren(make("ul", {}, ...rows));
}

function focus_on(name) {
  if (!shown().some((item) => item.name === name)) { search.value = ""; filter = new Set(); }
  const at = shown().findIndex((item) => item.name === name);
  if (at >= limit) limit = at + 1;
  draw();
  const node = card_of(name);
  node?.scrollIntoView({ block: "center" });
  node?.querySelector("textarea").focus({ preventScroll: true });
}

function compare(problem) {
  const sides = [problem.picture, problem.other].map((name) => make("figure", {}, make("img", { src: item_of(name).src, alt: name }),
    make("figcaption", {}, name), act_button(t.act_remove, () => { remove(name); sheet.replaceChildren(); })));
  sheet.replaceChildren(make("div", { class: "compare" }, make("p", {}, problem.text), make("div", { class: "sides" }, ...sides), act_button(t.close, () => sheet.replaceChildren(), { class: "quiet" })));
  sheet.scrollIntoView({ block: "nearest" });
}

async function remove(name) {
  const told = await asked(() => server.remove({ folder: set.folder, picture: name }));
  if (told.problem) return announce(told.problem, true);
  if (told.folder !== set.folder) moved(told.folder);
  set.items = set.items.filter((item) => item.name !== name);
  changed();
  announce(filled(t.removed, { name }));
}

function changed() {
  stale = true;
  draw();
  measure();
}

wall.addEventListener("click", (event) => {
  const picture = event.target.closest(".card")?.dataset.picture;
  if (event.target.closest("[data-act=remove]")) remove(picture);
  if (event.target.closest("[data-act=mask]")) masks.open(picture);
});

// --- masks ------------------------------------------------------------------------------------------------------------

// In line with what else is written: a shipped set is copied once.
const in_line = (act) => {
  const done = line.then(act);
  line = done;
  return done;
};

const masks = mask_view(element, t, facts.parts, {
  look: (picture) => asked(() => server.mask({ folder: set.folder, picture })),
  save: (picture, painted) => in_line(async () => with_masks(await asked(() => server.save_mask({ folder: set.folder, picture, painted })), filled(t.mask_saved, { name: picture }))),
  remove: (picture) => in_line(async () => with_masks(await asked(() => server.remove_mask({ folder: set.folder, picture })), filled(t.mask_removed, { name: picture }))),
});

// What the page shows once a mask has changed; the answer goes on to who asked.
function with_masks(told, words) {
  if (told.problem) return told;
  announce(words);
  if (told.folder !== set.folder) moved(told.folder);
  set.undo = told.undo;
  for (const item of set.items) {
    item.mask = told.masked.includes(item.name);
    const button = card_of(item.name)?.querySelector("[data-act=mask]");
    if (button) say_mask(button, item);
  }
  around();
  return told;
}

function say_mask(button, item) {
  button.classList.toggle("has", item.mask);
  button.title = filled(item.mask ? t.mask_of : t.mask_none, { name: item.name });
  button.setAttribute("aria-label", button.title);
}

// --- crops ------------------------------------------------------------------------------------------------------------

async function measure() {
  const box = q(".crops .body");
  if (!set.items.length) { crops = null; return box.replaceChildren(); }
  const folder = set.folder;
  const told = await asked(() => server.shapes({ folder, base: base() }));
  if (set.folder !== folder || told.problem) return box.replaceChildren(make("p", { class: "told" }, told.problem || ""));
  crops = told;
  const most = Math.max(...told.buckets.map(([, count]) => count));
  const bars = told.buckets.slice(0, 5).map(([name, count]) => make("div", { title: `${name}: ${count}` },
    make("i", { style: `height:${Math.max(3, Math.round(64 * count / most))}px` }), make("span", {}, name)));
  const many = Object.values(told.pictures).filter((where) => where[4] > 0.1).length;
  box.replaceChildren(make("div", { class: "bars" }, ...bars), make("p", { class: "told" }, many ? filled(t.crops_told, { count: many }) : t.crops_fine),
    act_button(crops_shown ? t.crops_hide : t.crops_show, () => { crops_shown = !crops_shown; draw(); measure(); }, { class: "link" }));
  if (crops_shown) frame_all();
}

// The part of a picture that is trained on stays bright.
function frame_all() {
  for (const node of wall.querySelectorAll(".card")) {
    const where = crops?.pictures[node.dataset.picture];
    const frame = node.querySelector(".frame");
    frame.classList.toggle("whole", !!where);
    frame.querySelector(".kept")?.remove();
    if (!where) continue;
    const [width, height, wide, high] = where, box = frame.clientWidth / frame.clientHeight;
    const [w, h] = width / height > box ? [1, box * height / width] : [width / height / box, 1];
    const aspect = wide / high;
    const [kept_w, kept_h] = width / height > aspect ? [w * aspect * height / width, h] : [w, h * (width / height) / aspect];
    frame.append(make("i", { class: "kept", style: `left:${50 * (1 - kept_w)}%;top:${50 * (1 - kept_h)}%;width:${100 * kept_w}%;height:${100 * kept_h}%` }));
  }
}

// --- all captions at once -----------------------------------------------------------------------------------------------

function table(rows) {
  return make("table", {}, make("thead", {}, make("tr", {}, make("th", { scope: "col" }, t.before), make("th", { scope: "col" }, t.after))),
    make("tbody", {}, ...rows.map(([name, before, after]) => make("tr", { title: name }, make("td", {}, before || t.no_caption), make("td", {}, after)))));
}

q("[data-act=edit]").addEventListener("click", () => {
  if (sheet.querySelector("[data-form=edit]")) return sheet.replaceChildren();
  const kinds = ["replace", "remove", "prefix", "tags", "regex"].map((kind) => [kind, t[`kind_${kind}`]]);
  const told = make("p", { class: "told", role: "status" }), result = make("div");
  const go = make("button", { type: "submit", class: "go", disabled: true }, t.apply);
  const form = make("form", { "data-form": "edit", class: "line" }, field("kind", t.kind, kinds), field("find", t.find, "text"), field("put", t.put, "text"), go,
    act_button(t.cancel, () => sheet.replaceChildren(), { class: "quiet" }));
  let turn = 0, timer = null;
  const look = async () => {
    const order = values(form), mine = ++turn;
    form.querySelector("[name=find]").closest("label").hidden = order.kind === "tags";
    form.querySelector("[name=put]").closest("label").hidden = ["remove", "prefix", "tags"].includes(order.kind);
    if (order.kind !== "tags" && !order.find.trim()) { tell_in(told, ""); go.disabled = true; return result.replaceChildren(); }
    const answer = await asked(() => server.edit({ folder: set.folder, dry: true, ...order }));
    if (mine !== turn) return;
    go.disabled = !answer.changed;
    tell_in(told, answer.problem || filled(t.would, { count: answer.changed }), !!answer.problem);
    result.replaceChildren(...(answer.shown?.length ? [table(answer.shown)] : []));
  };
  form.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(look, 300); });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    go.disabled = true;
    const answer = await asked(() => server.edit({ folder: set.folder, ...values(form) }));
    if (answer.problem) return tell_in(told, answer.problem, true);
    sheet.replaceChildren();
    await open(answer.folder, true);
    announce([filled(t.changed, { count: answer.changed }), ...(answer.problems || [])].join(" "));
  });
  sheet.replaceChildren(make("div", { class: "edit" }, form, told, result));
  look();
  form.querySelector("[name=find]").focus();
});

q("[data-act=undo]").addEventListener("click", async () => {
  const answer = await asked(() => server.undo({ folder: set.folder }));
  if (!answer.problem) await open(set.folder, true);
  announce(answer.problem || answer.told, !!answer.problem);
});

// --- the captioner ------------------------------------------------------------------------------------------------------

const asks = { captioner: "embedded", prefix: "", policy: "missing" };

function draw_captioner() {
  const box = q(".captioner .body"), work = set?.work;
  if (!box.firstChild) {
    const form = make("form", {}, field("captioner", "", "text", asks.captioner, { title: t.captioner_help, "aria-label": t.captioner }),
      make("div", { class: "pair" }, field("policy", t.policy, ["missing", "overwrite", "append"].map((kind) => [kind, t[kind]])), field("prefix", t.prefix, "text")));
    form.addEventListener("input", () => { Object.assign(asks, values(form)); draw_captioner(); });
    form.addEventListener("submit", (event) => event.preventDefault());
    box.append(form, make("div", { class: "progress", hidden: true }, make("span", { class: "bar" }, make("i")), make("span", { class: "told", role: "status" })),
      make("div", { class: "go-row" }, act_button(t.go, caption, { class: "primary", id: "dataset-caption" }), act_button(t.preview, preview, { "data-act": "preview" }), act_button(t.stop, stop, { "data-act": "stop" })),
      make("p", { class: "told problem", role: "status" }), act_button(t.train, () => trigger("train", { folder: set.folder }), { id: "dataset-train" }));
  }
  const busy = !!work && !work.ended, bare = (set?.items || []).filter((item) => !item.caption).length, all = (set?.items || []).length;
  const go = box.querySelector(".primary");
  go.textContent = asks.policy !== "missing" ? filled(t.go_all, { count: all }) : bare === 1 ? t.go_missing_one : bare ? filled(t.go_missing, { count: bare }) : t.go;
  go.hidden = busy;
  go.disabled = !(asks.policy === "missing" ? bare : all);
  box.querySelector("[data-act=preview]").hidden = busy;
  box.querySelector("[data-act=preview]").disabled = go.disabled;
  box.querySelector("[data-act=stop]").hidden = !busy;
  box.querySelector("#dataset-train").disabled = !all;
  const progress = box.querySelector(".progress");
  progress.hidden = !busy;
  if (busy) {
    progress.querySelector(".bar i").style.width = `${work.total ? 100 * work.done / work.total : 0}%`;
    progress.querySelector(".told").textContent = work.done ? filled(t.captioning, work) : t.loading;
  }
}

const at_captioner = (text, wrong = false) => tell_in(q(".captioner .problem"), text, wrong);

async function caption() {
  at_captioner("");
  const told = await asked(() => server.caption({ folder: set.folder, ...asks }));
  if (told.problem) return at_captioner(told.problem, true);
  if (told.folder !== set.folder) moved(told.folder);
  set.work = { done: 0, total: 0 };
  draw_captioner();
  follow();
}

async function preview() {
  at_captioner(t.previewing);
  const folder = set.folder;
  const told = await asked(() => server.preview({ folder, ...asks }));
  at_captioner(told.problem || "", !!told.problem);
  if (told.problem || set.folder !== folder) return;
  sheet.replaceChildren(make("div", { class: "edit" }, table(told.shown), act_button(t.close, () => sheet.replaceChildren(), { class: "quiet" })));
}

async function stop() {
  await asked(() => server.stop({ folder: set.folder }));
}

// While a captioner is at work its words are looked for once a second.
function follow() {
  clearTimeout(polling);
  if (!set?.work || set.work.ended) return;
  polling = setTimeout(async () => {
    const folder = set.folder;
    const told = element.offsetParent ? await asked(() => server.captions(folder)) : null;
    if (set.folder !== folder) return;
    if (!told || told.problem) return follow();
    set.work = told.work;
    set.undo = told.undo;
    for (const item of set.items) {
      const now = told.captions[item.name] ?? item.caption;
      if (now === item.caption) continue;
      item.caption = now;
      const area = card_of(item.name)?.querySelector("textarea");
      if (area && area !== document.activeElement && !waiting.has(area)) area.value = now;
    }
    await count_tokens(set.items.map((item) => item.caption));
    around();
    if (told.work?.ended) { at_captioner(told.work.told, told.work.wrong); set.work = null; around(); stale = true; draw_problems(); }
    else if (!told.work) { around(); }
    follow();
  }, 1000);
}

// --- new sets and pictures ------------------------------------------------------------------------------------------------

// A line that asks for one text; `act` returns what is wrong with it, or nothing.
function ask_line(label, value, go, act) {
  const told = make("p", { class: "told", role: "status" });
  const form = make("form", { class: "line" }, field("text", label, "text", value), make("button", { type: "submit", class: "go" }, go), act_button(t.cancel, () => sheet.replaceChildren(), { class: "quiet" }));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const wrong = await act(values(form).text);
    if (wrong) return tell_in(told, wrong, true);
    sheet.replaceChildren();
  });
  sheet.replaceChildren(make("div", { class: "edit" }, form, told));
  form.querySelector("input").focus();
}

q("[data-act=new]").addEventListener("click", () => ask_line(t.new_name, "my-pictures", t.make, async (name) => {
  const told = await asked(() => server.create({ name }));
  if (told.problem) return told.problem;
  await open(told.folder);
  return "";
}));

q("[data-act=add]").addEventListener("click", () => q(".add-files").click());
q(".add-files").addEventListener("change", (event) => { bring([...event.target.files]); event.target.value = ""; });

async function sent(file, query) {
  try {
    const answer = await fetch(`${query}&name=${encodeURIComponent(file.name)}`, { method: "POST", body: file });
    return await answer.json();
  } catch {
    return { problem: `${file.name} could not be sent: the page does not answer.` };
  }
}

async function bring(files) {
  const wrong = [];
  let added = 0, folder = set?.folder || "";
  for (const file of files) {
    announce(filled(t.adding, { name: file.name }));
    const zip = file.name.toLowerCase().endsWith(".zip");
    const told = await sent(file, zip ? "upload/zip?" : `upload/picture?set=${encodeURIComponent(folder)}`);
    if (told.problem) { wrong.push(told.problem); continue; }
    folder = told.folder;
    added += told.count;
  }
  await open(folder, !!checked && folder === set?.folder);
  stale = true;
  draw_problems();
  announce([filled(t.added, { count: added }), ...wrong].join(" "), !added && wrong.length > 0);
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

window.addEventListener("resize", () => { if (crops_shown) frame_all(); });
window.addEventListener("dataset:open", (event) => open(event.detail.folder));

watch("value", take);
take();
