// What a drawing begins with: words alone, a picture, a painted part of it, or a second, larger pass. It lives here, in
// props.value; Python reads it with an order and may replace it.
//
// From the stage, on the window: "source:set" {mode, picture}.

const t = facts.texts;
const modes = element.querySelector(".modes"), body = element.querySelector(".of-mode");
modes.setAttribute("aria-label", t.modes);
let shown = "", paint = null;

const state = () => ({ ...facts.nothing, ...(props.value || {}) });
// What is changed here need not be drawn anew: only what comes from elsewhere.
const keep = (values) => { props.value = { ...state(), ...values }; shown = JSON.stringify(props.value); };

function draw() {
  const { mode } = state();
  modes.replaceChildren(...facts.modes.map((name) => {
    const input = make("input", { type: "radio", name: "source-mode", value: name });
    input.checked = name === mode;
    return make("label", {}, input, make("span", {}, t[`mode_${name}`]));
  }));
  body.replaceChildren(...({ text: () => [], image: of_image, inpaint: of_image, upscale: of_upscale })[mode]());
  body.hidden = mode === "text";
  if (paint) paint.load(state().mask);
}

const percent = (value) => `${Math.round(value * 100)}%`;

// A slider that says its value in words.
function slider(name, label, low, high, step, say) {
  const value = make("b", {}, say(state()[name]));
  const input = make("input", { type: "range", name, min: low, max: high, step, value: state()[name], "aria-valuetext": say(state()[name]) });
  input.addEventListener("input", () => {
    value.textContent = say(Number(input.value));
    input.setAttribute("aria-valuetext", value.textContent);
    keep({ [name]: Number(input.value) });
  });
  return make("label", { class: "part-field" }, make("span", { class: "pair-of" }, label, value), input);
}

function of_image() {
  const { mode, picture } = state();
  const file = make("input", { type: "file", accept: "image/png,image/jpeg,image/webp", "aria-label": t.choose });
  file.addEventListener("change", () => { if (file.files.length) send(file.files[0]); });
  const place = make("label", { class: "pick" }, file, make("span", {}, picture ? t.other : t.choose));
  const told = make("p", { class: "told", role: "status" });
  paint = null;
  if (!picture) return [make("p", { class: "told" }, t.none), place, told];
  const ratio = picture.width && picture.height ? picture.width / picture.height : 1;
  const sheet = make("div", { class: "canvas" }, make("img", { src: picture.src, alt: t.begins, draggable: "false" }));
  sheet.style.setProperty("--ratio", ratio);
  const nodes = [sheet];
  if (mode === "inpaint") {
    const canvas = make("canvas", { role: "img", "aria-label": t.painted });
    sheet.append(canvas);
    paint = painter(canvas, () => keep({ mask: paint.png() }));
    paint.shape(ratio);
    const alone = make("input", { type: "checkbox", name: "only_masked" });
    alone.checked = !!state().only_masked;
    alone.addEventListener("change", () => keep({ only_masked: alone.checked }));
    nodes.push(paint_tools(paint, t, facts.boxes), make("label", { class: "check" }, alone, t.only_masked),
      slider("blur", t.blur, 0, 64, 1, (value) => `${value} px`));
  }
  return [...nodes, slider("strength", t.strength, 0.05, 1, 0.05, percent), place, told];
}

function of_upscale() {
  const names = facts.upscalers.includes(state().upscaler) ? facts.upscalers : [...facts.upscalers, state().upscaler];
  const how = field("upscaler", t.upscaler, names.map((name) => [name, t[`upscaler_${name}`] || name]), state().upscaler);
  how.querySelector("select").addEventListener("change", (event) => keep({ upscaler: event.target.value }));
  paint = null;
  return [make("p", { class: "told" }, t.upscale_told), slider("scale", t.scale, 1.25, 4, 0.25, (value) => `${value}\u00d7`), how,
    slider("again", t.again, 0.05, 1, 0.05, percent)];
}

modes.addEventListener("change", (event) => {
  keep({ mode: event.target.value });
  draw();
  modes.querySelector(`[value=${state().mode}]`).focus({ preventScroll: true });
});

// A picture of a person's own, no larger than the engine wants it; the server keeps it, so that it goes once.
async function send(file) {
  const told = body.querySelector("[role=status]");
  let image;
  try {
    image = await createImageBitmap(file);
  } catch {
    return tell_in(told, filled(t.unreadable, { name: file.name }), true);
  }
  const scale = Math.min(1, facts.most_px / Math.max(image.width, image.height));
  const paper = make("canvas", { width: Math.round(image.width * scale), height: Math.round(image.height * scale) });
  paper.getContext("2d").drawImage(image, 0, 0, paper.width, paper.height);
  const answer = await asked(() => server.keep(paper.toDataURL("image/png")));
  if (answer.problem) return tell_in(told, answer.problem, true);
  take_picture(answer);
}

function take_picture(picture, mode = state().mode) {
  keep({ picture, mask: "", mode });
  draw();
  if (picture.width && picture.height) {
    // It is drawn at its own size, to what the base can draw.
    for (const [name, side] of [["width", picture.width], ["height", picture.height]]) {
      const input = document.querySelector(`#${name} input`);
      input.value = Math.max(64, Math.round(side / 8) * 8);
      input.dispatchEvent(new Event("input", { bubbles: true }));
    }
  }
}

window.addEventListener("source:set", async (event) => {
  const { mode, name } = event.detail;
  if (mode === "upscale") { keep({ mode }); return draw(); }
  const answer = await asked(() => server.picture(name));
  if (answer.problem) {
    keep({ mode });
    draw();
    return tell_in(body.querySelector("[role=status]"), answer.problem, true);
  }
  take_picture(answer, mode);
  body.scrollIntoView({ block: "nearest" });
});

function take() {
  const told = JSON.stringify(props.value);
  if (told === shown) return;
  shown = told;
  draw();
}

watch("value", take);
take();
