// Where the mask of one picture is painted: over the page, so that nothing on it moves. What is asked of Python is
// `ask`: look(picture) -> {src, size, mask}, save(picture, painted), remove(picture); each may answer {problem}.

function mask_view(element, t, parts, ask) {
  const view = make("dialog", { class: "mask-view" });
  let turn = 0, leave = () => {};
  view.addEventListener("cancel", (event) => { event.preventDefault(); leave(); });
  element.append(view);

  function close() {
    ++turn;  // what is still on its way is for nobody
    if (view.open) view.close();
  }

  async function open(picture) {
    const mine = ++turn, name = filled(t.mask_of, { name: picture });
    const told = make("p", { class: "told", role: "status", "aria-live": "polite" });
    const place = make("div", { class: "mask-place" });
    const side = make("div", { class: "mask-side" }, make("h3", {}, name), make("p", {}, t.mask_told));
    let changed = false, warned = false;
    leave = () => {
      if (!changed || warned) return close();
      warned = true;  // what is painted is not lost by one key
      return tell_in(told, t.mask_unsaved, true);
    };
    const end = act_button(t.close, () => leave(), { class: "quiet", "data-act": "close-mask" });
    side.append(end, told);
    view.setAttribute("aria-label", name);
    view.replaceChildren(place, side);
    tell_in(told, t.mask_wait);
    view.showModal();

    const found = await ask.look(picture);
    if (mine !== turn) return;
    if (found.problem) return tell_in(told, found.problem, true);
    const [width, height] = found.size;
    const image = make("img", { src: found.src, alt: "", draggable: "false" });
    const canvas = make("canvas", { role: "img", "aria-label": t.mask_painted });
    const paint = painter(canvas, () => { changed = true; warned = save.disabled = false; tell_in(told, ""); }, Math.max(width, height));
    const save = act_button(t.mask_save, () => send(() => ask.save(picture, paint.png())), { class: "go", disabled: true, "data-act": "save-mask" });
    const remove = act_button(t.mask_remove, () => send(() => ask.remove(picture)), { "data-act": "remove-mask", hidden: !found.mask });
    const send = async (order) => {
      save.disabled = remove.disabled = true;
      const answer = await order();
      if (mine !== turn) return;
      if (!answer.problem) return close();
      save.disabled = !changed;
      remove.disabled = false;
      tell_in(told, answer.problem, true);
    };
    paint.shape(width / height);
    await Promise.all([image.decode(), paint.load(found.mask)]);
    if (mine !== turn) return;
    place.replaceChildren(make("div", { class: "canvas", style: `--ratio:${width / height}` }, image, canvas));
    end.before(paint_tools(paint, t, parts), save, remove);
    tell_in(told, "");
  }

  return { open, close };
}
