"""The Dataset tab: a set of pictures with its captions, from the first upload to "train on these".

What it does is `webui.datasets`'; which set is open is known in the browser alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from diffusion_lora.generate.region import BOXES
from webui import sets, texts
from webui.component import component
from webui.context import Context, Links
from webui.datasets import Datasets


def dataset_tab(context: Context, links: Links, datasets: Datasets) -> None:
    """Put the tab's parts on the page."""

    def offered(_asked: Any = None) -> dict[str, Any]:
        listed = [list(choice) for choice in sets.choices(context.workspace) if choice[1] != sets.NEW_SET]
        return {"sets": listed, "base": links.watch.look().engine.base or context.base}

    acts: list[Callable[[Any], Any]] = [
        datasets.open, datasets.captions, datasets.check, datasets.shapes, datasets.tokens, datasets.save,
        datasets.edit, datasets.undo, datasets.remove, datasets.create, datasets.caption, datasets.preview,
        datasets.stop, datasets.mask, datasets.save_mask, datasets.remove_mask,
    ]  # fmt: skip
    facts = {"texts": dict(texts.DATASET), "parts": {"all": (0, 0, 1, 1), **BOXES}}
    desk = component(
        "dataset", None, elem_id="dataset-desk", server=acts, facts=facts, also=["paint", "maskview"]
    )
    links.pulse.feed(desk, offered)

    def train(event: gr.EventData) -> tuple[str, Any]:
        return str((event._data or {}).get("folder", "")), gr.Tabs(selected="train")

    desk.train(
        train, None, [links.train_on, links.tabs], queue=False, show_progress="hidden", api_visibility="private"
    )
