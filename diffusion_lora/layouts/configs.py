"""The configuration of each family's parts at full size, as it was published: `sd15.json`, `sd2.json`, `sdxl.json`.

A file has one table a part, in the words of diffusers and transformers: "unet", "vae", the text encoders by the names
adapter keys use ("te", or "te1" and "te2"), "scheduler", and the token each tokenizer pads with. They are what a single
file of weights does not say of itself. Sources: the `config.json` files of stable-diffusion-v1-5, stable-diffusion-2-1
and stable-diffusion-xl-base-1.0.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

CONFIGURED = ("sd15", "sd2", "sdxl")
"""The layouts, by name, that have one."""


def configs_of(layout_name: str) -> dict[str, dict[str, Any]]:
    """The tables of a layout, fresh ones, for the caller to change. KeyError for a layout that has none."""
    if layout_name not in CONFIGURED:
        raise KeyError(layout_name)
    tables: dict[str, dict[str, Any]] = json.loads(_text(layout_name))
    return tables


@cache
def _text(layout_name: str) -> str:
    return (files("diffusion_lora.layouts") / f"{layout_name}.json").read_text(encoding="utf-8")
