"""The block of a model that a layer lies in, by its key: for reports of a dozen lines and not of 300. No torch."""

from __future__ import annotations

import re

_UNET_BLOCK = re.compile(r"unet\.(down|up)_blocks_(\d+)_|unet\.(mid)_block_")
_TEXT = {"te": "text", "te1": "text 1", "te2": "text 2"}


def block_of(key: str) -> str:
    """`unet.down_blocks_1_attentions_0_proj_in` -> "down 1"; "mid", "up 3", "text", "text 2", "unet" for the rest."""
    if match := _UNET_BLOCK.match(key):
        return match[3] or f"{match[1]} {match[2]}"
    component = key.split(".", 1)[0]
    return _TEXT.get(component, component)
