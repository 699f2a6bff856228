// The film strip: every picture of the workspace, newest first. A click asks Python to put one on the stage.
//
// Event: "select" {name}. From the stage: "stage:chosen" {name} on the window.

const film = element.querySelector(".film");
let chosen = null;

function frame(picture) {
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.name = picture.name;
  button.dataset.src = picture.src;
  button.setAttribute("role", "option");
  const image = document.createElement("img");
  image.loading = "lazy";
  image.decoding = "async";
  image.draggable = false;
  image.alt = picture.name;
  image.src = picture.src;
  button.append(image);
  return button;
}

function draw() {
  const { pictures = [], more = 0 } = props.value || {};
  const known = new Map([...film.querySelectorAll("button")].map((button) => [button.dataset.src, button]));
  const rows = pictures.map((picture) => known.get(picture.src) || frame(picture));
  if (!rows.length) rows.push(line("Pictures land here."));
  if (more) rows.push(line(`${more} older in the pictures folder`));
  const at_start = film.scrollTop < 8 && film.scrollLeft < 8;
  // A list of choices has choices in it: an empty one is a sentence.
  film.setAttribute("role", pictures.length ? "listbox" : "group");
  film.replaceChildren(...rows);
  if (at_start) film.scrollTo(0, 0);
  mark();
}

function line(text) {
  const node = document.createElement("p");
  node.textContent = text;
  node.setAttribute("role", "none");
  return node;
}

function mark() {
  for (const button of film.querySelectorAll("button")) {
    button.setAttribute("aria-selected", String(button.dataset.name === chosen));
  }
}

film.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  chosen = button.dataset.name;
  mark();
  trigger("select", { name: chosen });
});

film.addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
  const button = event.target.closest("button");
  if (!step || !button) return;
  event.preventDefault();
  const next = step > 0 ? button.nextElementSibling : button.previousElementSibling;
  if (next?.dataset?.name) { next.focus(); next.click(); }
});

window.addEventListener("stage:chosen", (event) => {
  chosen = event.detail.name;
  mark();
});

watch("value", draw);
draw();
