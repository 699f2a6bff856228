// A click on a button of a row: where to go with its run, what to do with it, or its log, which stays open while the
// rows are drawn anew and grows while it can be seen.
const open_logs = new Set();

const log_of = (run) => element.querySelector(`[data-run="${CSS.escape(run)}"] .log`);

async function tell_log(run) {
  const place = log_of(run);
  if (!place) return;
  let text;
  try {
    text = await server.log(run);
  } catch {
    return;
  }
  const now = log_of(run);
  if (!now || !open_logs.has(run)) return;
  now.textContent = text;
  now.hidden = false;
}

element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-act]");
  if (!button) return;
  const asked = { act: button.dataset.act, run: button.closest("[data-run]").dataset.run };
  if (asked.act === "log") {
    const shown = open_logs.has(asked.run);
    if (shown) open_logs.delete(asked.run); else open_logs.add(asked.run);
    button.setAttribute("aria-expanded", String(!shown));
    if (shown) log_of(asked.run).hidden = true; else tell_log(asked.run);
  } else if (asked.act === "show" || asked.act === "open") trigger("select", asked);
  else trigger("click", asked);
});

watch("value", () => { for (const run of open_logs) tell_log(run); });
setInterval(() => { if (element.offsetParent) for (const run of open_logs) tell_log(run); }, 2000);
