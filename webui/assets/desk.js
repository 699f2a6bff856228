// The desk: one strip a LoRA. The channels live here, in props.value; Python reads them with an order and may replace
// them. A moved fader stays in the browser: nothing listens to a change of the value.
//
// Events: "sweep" {name, from, to, count}. On the window, from the stage: "desk:set" {name, strength}; to it: "stage:ask".

const LOW = -1, HIGH = 2, LIMIT = 10;
const TICKS = [2, 1.5, 1, 0.5, 0, -0.5, -1];
const SNAPS = [0, 1], SNAP_WITHIN = 0.04;
const strips = element.querySelector(".strips");
const menu = element.querySelector(".menu");
const add = element.querySelector("#desk-add");
const sweeps = new Map();  // name -> {from, to, count}, as last set
let sweeping = null;  // the channel whose sweep is being set

const channels = () => props.value || [];
const commit = (list) => { props.value = list; };
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
  if (channel.text !== null && channel.text !== undefined) {
    side.append(make("div", { class: "text", title: "Strength in the text encoder" }, "Text", make("b", {}, said(channel.text))));
  }
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
}

function refresh() {
  for (const channel of channels()) {
    const node = find(channel.name);
    if (node) show(node, channel);
  }
}

const find = (name) => [...strips.children].find((node) => node.dataset.adapter === name);
const channel_of = (node) => channels().find((channel) => channel.name === node.dataset.adapter);

function draw() {
  const focused = strips.contains(document.activeElement) ? document.activeElement.closest(".strip")?.dataset.adapter : null;
  strips.replaceChildren(...channels().map(strip));
  element.classList.toggle("bare", channels().length === 0);
  refresh();
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
