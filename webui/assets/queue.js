// A click on a button of a row: where to go with its run, or what to do with it.
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-act]");
  if (!button) return;
  const asked = { act: button.dataset.act, run: button.closest("[data-run]").dataset.run };
  if (asked.act === "show" || asked.act === "open") trigger("select", asked);
  else trigger("click", asked);
});
