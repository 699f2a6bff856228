// Painting an area: strokes on a canvas that lies over whatever is to be seen below it. White is inside, and goes out
// as a grey PNG; the paint itself is the accent's colour, half as thick as the picture, so that both are seen.

const PAINT_PX = 256;  // of the longer side: no area of a drawing needs more, latents are smaller still

function painter(canvas, changed, most_px = PAINT_PX) {
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  let last = null, erase = false, share = 0.12;

  function shape(ratio) {
    const kept = canvas.width && canvas.height ? png() : "";
    canvas.width = Math.round(ratio >= 1 ? most_px : most_px * ratio);
    canvas.height = Math.round(ratio >= 1 ? most_px / ratio : most_px);
    if (kept) load(kept);
  }

  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width * canvas.width, (event.clientY - box.top) / box.height * canvas.height];
  };

  const colour = () => getComputedStyle(canvas).getPropertyValue("--accent").trim() || "#f4a63a";

  function stroke(to) {
    pen.globalCompositeOperation = erase ? "destination-out" : "source-over";
    pen.strokeStyle = colour();
    pen.lineWidth = share * Math.max(canvas.width, canvas.height);
    pen.lineCap = pen.lineJoin = "round";
    pen.beginPath();
    pen.moveTo(...(last || to));
    pen.lineTo(to[0] + 0.01, to[1]);
    pen.stroke();
    last = to;
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    last = null;
    stroke(place(event));
  });
  canvas.addEventListener("pointermove", (event) => { if (last) stroke(place(event)); });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, () => { if (last) { last = null; changed(); } });
  }

  // What is painted as a grey PNG in base64; "" where nothing is.
  function png() {
    const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
    const grey = new ImageData(canvas.width, canvas.height);
    let any = false;
    for (let at = 0; at < data.length; at += 4) {
      const inside = data[at + 3];
      any ||= inside > 8;
      grey.data.set([inside, inside, inside, 255], at);
    }
    if (!any) return "";
    const paper = make("canvas", { width: canvas.width, height: canvas.height });
    paper.getContext("2d").putImageData(grey, 0, 0);
    return paper.toDataURL("image/png").split(",")[1];
  }

  async function load(encoded) {
    pen.clearRect(0, 0, canvas.width, canvas.height);
    if (!encoded) return;
    const image = new Image();
    image.src = `data:image/png;base64,${encoded}`;
    await image.decode();
    pen.globalCompositeOperation = "source-over";
    pen.drawImage(image, 0, 0, canvas.width, canvas.height);
    const seen = pen.getImageData(0, 0, canvas.width, canvas.height);
    for (let at = 0; at < seen.data.length; at += 4) seen.data[at + 3] = seen.data[at];
    pen.putImageData(seen, 0, 0);
    pen.globalCompositeOperation = "source-in";
    pen.fillStyle = colour();
    pen.fillRect(0, 0, canvas.width, canvas.height);
  }

  return {
    shape, png, load,
    brush(size) { share = size; },
    erasing(on) { erase = on; },
    clear() { pen.clearRect(0, 0, canvas.width, canvas.height); changed(); },
    box([left, top, right, bottom]) {
      pen.globalCompositeOperation = "source-over";
      pen.fillStyle = colour();
      pen.fillRect(left * canvas.width, top * canvas.height, (right - left) * canvas.width, (bottom - top) * canvas.height);
      changed();
    },
  };
}

// The tools beside the canvas; whoever cannot paint fills a part by its name.
function paint_tools(paint, words, parts) {
  const brush = make("input", { type: "range", min: 0.03, max: 0.4, step: 0.01, value: 0.12, "aria-label": words.brush });
  brush.addEventListener("input", () => paint.brush(Number(brush.value)));
  const erase = act_button(words.erase, () => {
    const on = erase.getAttribute("aria-pressed") !== "true";
    erase.setAttribute("aria-pressed", String(on));
    paint.erasing(on);
  }, { "aria-pressed": "false", "data-act": "erase" });
  const fill = make("select", { "aria-label": words.fill }, make("option", { value: "" }, words.fill),
    ...Object.keys(parts).map((name) => make("option", { value: name }, words[`part_${name}`] || name)));
  fill.addEventListener("change", (event) => {
    event.stopPropagation();
    if (fill.value) paint.box(parts[fill.value]);
    fill.value = "";
  });
  return make("div", { class: "paint-tools" }, make("label", {}, make("span", {}, words.brush), brush), erase,
    act_button(words.clear, () => paint.clear(), { "data-act": "clear" }), fill);
}
