// A click on a button of a row: which, and of which run.
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-act]");
  if (button) trigger("click", { act: button.dataset.act, run: button.closest("[data-run]").dataset.run });
});
