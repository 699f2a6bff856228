// Captions are saved while they are typed: half a second after the last key, and when the field is left. One at a time,
// so that the first edit of a shipped set makes one copy, and what follows goes into it.
const waiting = new Map();
let folder = null;
let line = Promise.resolve();

const notes = new Map();

const told = (card, text, problem = false) => {
  notes.set(card.dataset.picture, [text, problem]);
  const place = card.querySelector(".told");
  place.textContent = text;
  place.classList.toggle("problem", problem);
};

// The copy of a shipped set is drawn anew: what was told of its captions stays.
watch("value", () => {
  const copied = folder && element.querySelector("[data-folder]")?.dataset.folder === folder.to;
  if (!copied) return notes.clear();
  for (const card of element.querySelectorAll("[data-picture]")) {
    if (notes.has(card.dataset.picture)) told(card, ...notes.get(card.dataset.picture));
  }
});

const save = (area) => {
  clearTimeout(waiting.get(area));
  waiting.delete(area);
  const card = area.closest("[data-picture]");
  line = line.then(async () => {
    const shown = element.querySelector("[data-folder]").dataset.folder;
    const before = folder && folder.from === shown ? folder.to : shown;
    try {
      const answer = await server.save_caption([before, card.dataset.picture, area.value]);
      told(card, answer.problem || "saved", Boolean(answer.problem));
      if (answer.folder !== before) {
        folder = { from: shown, to: answer.folder };
        trigger("select", { folder: answer.folder });
      }
    } catch {
      told(card, "not saved: the page does not answer", true);
    }
  });
};

element.addEventListener("input", (event) => {
  const area = event.target.closest("textarea");
  if (!area) return;
  told(area.closest("[data-picture]"), "");
  clearTimeout(waiting.get(area));
  waiting.set(area, setTimeout(() => save(area), 500));
});

element.addEventListener("focusout", (event) => {
  if (waiting.has(event.target)) save(event.target);
});

element.addEventListener("keydown", (event) => {
  if (event.target.tagName !== "TEXTAREA" || event.key !== "Enter") return;
  event.preventDefault();
  const all = [...element.querySelectorAll("textarea")];
  (all[all.indexOf(event.target) + (event.shiftKey ? -1 : 1)] || event.target).focus();
});
