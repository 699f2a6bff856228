"""Pictures whose edges meet: every convolution reads across them, as if the picture went on at its other side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from diffusion_lora.families.model import Model


@contextmanager
def tiled(model: Model, *, on: bool = True) -> Iterator[None]:
    """Inside, UNet and autoencoder pad with what lies at the other side; adapters' convolutions too."""
    padded = [
        module
        for root in ((model.unet, model.vae) if on else ())
        for module in root.modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)
    ]
    before = [module.padding_mode for module in padded]
    for module in padded:
        module.padding_mode = "circular"
    try:
        yield
    finally:
        for module, mode in zip(padded, before, strict=True):
            module.padding_mode = mode
