// What the scripts of the page's own components share: making parts of the document, reading what was typed.

// An element with attributes (true: there, false and nothing: not there) and children; texts stay texts.
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// A button that does something; the attributes may hold classes, labels, data.
function act_button(label, act, attributes = {}) {
  const button = make("button", { type: "button", ...attributes }, label);
  button.addEventListener("click", act);
  return button;
}

// A field with its label above: `kind` is text, number, area, or a list of [value, label] to choose from.
function field(name, label, kind, value = "", attributes = {}) {
  let input;
  if (Array.isArray(kind)) {
    input = make("select", { name, ...attributes },
      ...kind.map(([key, text]) => make("option", { value: key, selected: String(key) === String(value) }, text)));
  } else if (kind === "area") {
    input = make("textarea", { name, rows: 2, spellcheck: "false", ...attributes });
    input.value = value;
  } else {
    input = make("input", { name, type: "text", autocomplete: "off", inputmode: kind === "number" ? "decimal" : null, ...attributes });
    input.value = value;
  }
  return make("label", { class: "part-field" }, make("span", {}, label), input);
}

// What stands in the fields of a form, by their names.
const values = (form) => Object.fromEntries([...form.querySelectorAll("[name]")].map((input) => [input.name, input.value]));

// A message in place: what is wrong, or what was done.
function tell_in(place, text, wrong = false) {
  place.textContent = text || "";
  place.classList.toggle("wrong", !!wrong);
}

// "{count} pictures" with {count: 3} -> "3 pictures"
const filled = (text, facts) => text.replace(/\{(\w+)\}/g, (whole, name) => (name in facts ? facts[name] : whole));

// Ask Python; what it cannot answer because nobody is there is told as a problem too.
async function asked(call) {
  try {
    return await call();
  } catch {
    return { problem: "The page's own process does not answer: start it again." };
  }
}
