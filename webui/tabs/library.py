"""The Library tab: every LoRA as a card, what is in it, what can be made of it. The work is `webui.library`'s."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from diffusion_lora.adopted import models
from webui import texts
from webui.component import component
from webui.context import Context, Links
from webui.library import Library, family_of_base


def library_tab(context: Context, links: Links, library: Library) -> None:
    """Put the tab's parts on the page."""

    def cards(_asked: Any = None) -> dict[str, Any]:
        base = links.watch.look().engine.base or context.base
        return {
            "cards": library.cards(),
            "folder": str(context.workspace.loras),
            "base": base,
            "base_family": family_of_base(base),
            "bases": ["pocket", *(model.name for model in models(context.workspace, "bases"))],
        }

    acts: list[Callable[[Any], Any]] = [
        library.details, library.spectrum, library.resize, library.merge, library.convert, library.extract,
        library.compare, library.note, library.rename, library.delete,
    ]  # fmt: skip
    words = {"texts": dict(texts.LIBRARY)}
    shelf = component("library", None, elem_id="library-shelf", server=[cards, *acts], facts=words)
    links.pulse.feed(shelf, cards)

    def put(event: gr.EventData) -> tuple[str, Any]:
        return _name(event), gr.Tabs(selected="generate")

    def like(event: gr.EventData) -> tuple[str, Any]:
        return _name(event), gr.Tabs(selected="train")

    settings: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    shelf.select(put, None, [links.open_adapter, links.tabs], **settings)
    shelf.like(like, None, [links.like, links.tabs], **settings)


def _name(event: gr.EventData) -> str:
    return str((event._data or {}).get("name", ""))
