// A card's button leads to its tab.
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-tab]");
  if (button) trigger("select", { tab: button.dataset.tab });
});
