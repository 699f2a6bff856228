"""The Queue tab: every run with its state, how far it is, and what can be done with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from diffusion_lora.errors import RunError, UserError
from webui import queueview, who
from webui.context import Context, Links
from webui.notices import tell, warn
from webui.theme import asset
from webui.words import sentence


def queue_tab(context: Context, links: Links) -> None:
    """Put the tab's parts on the page."""
    watch, queue = links.watch, context.queue

    def drawn() -> str:
        return queueview.table(watch.look(), watch.stories, context.workspace, links.thumbnails)

    def log(run: str) -> str:
        try:
            if watch.look().job(str(run)) is None:
                return ""
            return queueview.log_tail(context.workspace.run_folder(str(run))) or "Nothing was written yet."
        except UserError as error:
            return sentence(str(error))

    rows = gr.HTML(
        queueview.EMPTY,
        elem_id="queue-list",
        apply_default_css=False,
        js_on_load=asset("queue.js"),
        server_functions=[log],
    )
    links.pulse.feed(rows, drawn)
    acts: Mapping[str, Callable[[str], Any]] = {
        "cancel": queue.cancel,
        "pause": queue.pause,
        "resume": queue.resume,
        "remove": queue.remove,
        "sooner": lambda run: queue.move(run, sooner=True),
        "later": lambda run: queue.move(run, sooner=False),
    }

    def act(event: gr.EventData, request: gr.Request) -> Any:
        with who.acting_for(request):
            return acted(str(event.act), str(event.run))

    def acted(name: str, run: str) -> Any:
        try:
            if watch.look().job(run) is None:
                raise RunError(f"there is no run {run!r} in the queue (any more)")
            acts[name](run)
        except UserError as error:
            warn(sentence(str(error)))
        else:
            if name == "remove":
                tell(f"{run} was removed; its folder lies in the workspace's trash.")
        watch.refresh()
        return drawn()

    def go(event: gr.EventData) -> tuple[Any, Any, Any]:
        story = watch.story(str(event.run))
        if story is None:
            return gr.skip(), gr.skip(), gr.skip()
        if event.act == "open" and story.adapter is not None:
            return gr.skip(), story.adapter, gr.Tabs(selected="generate")
        return story.name, gr.skip(), gr.Tabs(selected="train")

    settings: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    rows.click(act, None, rows, concurrency_limit=None, **settings)
    rows.select(go, None, [links.shown_run, links.open_adapter, links.tabs], queue=False, **settings)
