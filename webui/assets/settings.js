// Every setting beyond the form's own fields. props.value holds what was changed, by key; Python sends `preset`, what
// each would be otherwise, with it.

const t = facts.texts;
const rows = element.querySelector(".rows"), find = element.querySelector(".find");
find.placeholder = t.find;
find.setAttribute("aria-label", t.find);
const changed = () => (props.value || {}).changed || {};
const preset = () => (props.value || {}).preset || {};
let drawn = "";

function input_of(setting) {
  const value = changed()[setting.key] ?? "", usual = preset()[setting.key] ?? "";
  const about = { name: setting.key, title: setting.allowed, "aria-label": setting.key };
  if (setting.kind === "text") return make("input", { type: "text", autocomplete: "off", value, placeholder: usual, ...about });
  const words = setting.kind === "yes" ? ["true", "false"] : setting.choices;
  return make("select", about, make("option", { value: "" }, usual ? `${usual} (${t.usual})` : t.usual),
    ...words.map((word) => make("option", { value: word, selected: word === value }, word)));
}

function draw() {
  const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
  let table = "";
  const nodes = [];
  for (const setting of facts.declared) {
    if (!words.every((word) => `${setting.key} ${setting.help}`.toLowerCase().includes(word))) continue;
    const [head, leaf] = setting.key.split(".");
    if (head !== table) nodes.push(make("h4", {}, table = head));
    nodes.push(make("label", { class: setting.key in changed() ? "changed" : null },
      make("span", {}, make("b", {}, leaf), make("i", {}, setting.help)), input_of(setting)));
  }
  rows.replaceChildren(...nodes);
}

function take() {
  const told = JSON.stringify(props.value);
  if (told === drawn) return;
  drawn = told;
  draw();
}

rows.addEventListener("change", (event) => {
  const { name, value } = event.target;
  const next = { ...changed() };
  if (value.trim() === "") delete next[name]; else next[name] = value.trim();
  props.value = { ...props.value, changed: next };
  drawn = JSON.stringify(props.value);
  event.target.closest("label").classList.toggle("changed", name in next);
});
find.addEventListener("input", draw);

watch("value", take);
take();
