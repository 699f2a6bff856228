"""What rests in main memory while something else computes: for cards that hold a base and little besides.

The UNet works at every step, the text encoders before the first and the autoencoder after the last. Where little is
free beside the base, these two are on the card for as long as they compute and no longer, which costs a copy each time;
and pictures are decoded one by one. `plan` looks at free memory and says so; nothing of it changes a picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from diffusion_lora.families.family import Model

_ENOUGH_BYTES = 4 << 30
"""Free memory with which a batch of full size and its decoding had room on every card tried by others; below it a large
picture's attention and the decoder's last layers compete for what is left."""


@dataclass(frozen=True)
class Thrift:
    """`offload`: idle parts rest in main memory. `slicing`: one picture is decoded at a time. `note` tells of them."""

    offload: bool = False
    slicing: bool = False
    note: str = ""


def plan(model: Model) -> Thrift:
    """What the free memory of the model's device suggests; nothing on the CPU, where all of it is main memory."""
    if model.device.type != "cuda":
        return Thrift()
    return plan_for(model, torch.cuda.mem_get_info(model.device)[0])


def plan_for(model: Model, free_bytes: int) -> Thrift:
    """The same, with so much memory free beside the base."""
    if free_bytes >= _ENOUGH_BYTES:
        return Thrift()
    idle = sum(_bytes(part) for part in (model.vae, *model.text_encoders.values()))
    return Thrift(
        offload=True,
        slicing=True,
        note=f"{free_bytes / 2**30:.1f} GiB are free beside {model.name}: its text encoders and autoencoder "
        f"({idle / 2**30:.1f} GiB) rest in main memory while they have nothing to do, pictures are decoded one by one",
    )


def rest(model: Model) -> None:
    """Move the text encoders and the autoencoder to main memory until somebody is `at_work` with them."""
    for part in (model.vae, *model.text_encoders.values()):
        part.to("cpu")


@contextmanager
def at_work(model: Model, parts: list[nn.Module], *, offload: bool) -> Iterator[None]:
    """Inside, these parts are on the model's device; with `offload` they rest again behind it."""
    if not offload:
        yield
        return
    for part in parts:
        part.to(model.device)
    try:
        yield
    finally:
        for part in parts:
            part.to("cpu")


def _bytes(part: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in part.parameters())
