"""Masks of what stands before the background, for the masked loss: made by rembg, if it is there. No torch."""

from __future__ import annotations

import importlib
import io
import os
from pathlib import Path

from PIL import Image

from diffusion_lora.data.sources import Layout, Looking, Source, expand, walk
from diffusion_lora.errors import DatasetError
from diffusion_lora.images import open_image
from diffusion_lora.run import write_atomically

MODEL = "u2net"


def make_masks(root: Path, layout: Layout) -> int:
    """`NAME.mask.png` beside each picture of a folder that has none; how many were made.

    Raises DatasetError if rembg or its model is not on this machine, or a picture cannot be read; OutputError.
    """
    sources = expand(Source(root, layout))
    try:
        rembg = importlib.import_module("rembg")
    except ImportError as error:
        raise DatasetError(
            "masks need rembg, which is not installed: `pip install 'rembg[cpu]'`, or draw NAME.mask.png yourself "
            "(white is learned, black is not)"
        ) from error
    home = Path(os.environ.get("U2NET_HOME", Path.home() / ".u2net"))
    if not (home / f"{MODEL}.onnx").is_file():
        raise DatasetError(f"rembg's model is not on this machine, and is not fetched: put {MODEL}.onnx into {home}")
    session, made = rembg.new_session(MODEL), 0
    for source in sources:
        for item in walk(source, Looking(headers=False, masks=True), lambda problem: None):
            if item.mask is None:
                mask: Image.Image = rembg.remove(open_image(item.path), session=session, only_mask=True)
                store = io.BytesIO()
                mask.convert("L").save(store, "PNG")
                write_atomically(item.path.with_suffix(".mask.png"), store.getvalue())
                made += 1
    return made
