"""The Start tab: three cards that lead to the others, and how the machine is."""

from __future__ import annotations

from typing import Any

import gradio as gr

from webui import startview
from webui.context import Links
from webui.theme import asset

_TABS = ("dataset", "train", "generate")


def start_tab(links: Links) -> None:
    """Put the tab's parts on the page."""
    cards = gr.HTML(
        startview.page(links.watch.look()),
        elem_id="start-page",
        apply_default_css=False,
        js_on_load=asset("start.js"),
    )
    links.pulse.feed(cards, lambda: startview.page(links.watch.look()))

    def go(event: gr.EventData) -> Any:
        tab = str((event._data or {}).get("tab", ""))
        return gr.Tabs(selected=tab) if tab in _TABS else gr.skip()

    cards.select(go, None, links.tabs, queue=False, show_progress="hidden", api_visibility="private")
