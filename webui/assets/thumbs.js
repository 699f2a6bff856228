// The small pictures of the form: a click on one, or on "Edit captions", opens the captions at that picture.
element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  trigger("click", {});
  const name = button.dataset.picture;
  if (!name) return;
  let looks = 0;
  const find = () => {
    const card = document.querySelector(`#train-pictures [data-picture="${CSS.escape(name)}"]`);
    if (card && card.offsetParent) card.querySelector("textarea").focus();
    else if (looks++ < 20) setTimeout(find, 100);
  };
  find();
});
