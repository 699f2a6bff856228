"""In which precision, and by which code, a forward pass is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusion_lora.config import TrainTable
from diffusion_lora.train.products import by_products
from diffusion_lora.train.widened import has_products, widened_where_needed

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SHORT_TOKENS = 256  # beyond it torch's fused attention is quicker than its plain one


@contextmanager
def arithmetic(
    table: TrainTable, device: torch.device, tokens: int, stored: torch.dtype = torch.float32
) -> Iterator[None]:
    """The context of one forward pass over latents of `tokens` = height x width, through a base stored as `stored`.

    One context a pass, never around an optimizer step: autocast keeps the casts of weights while it lasts. On the CPU
    the backward pass of torch's fused attention is slow: over short sequences plain matrix products take 11 % off a
    whole step of pocket in fp32 (538 ms for 603 ms of CPU time, batch 8, wide targets).
    """
    half = in_half(table, device, stored)
    with torch.autocast(device.type, _DTYPES[table.precision], enabled=half), kernels(device, tokens, stored, half):
        yield


def in_half(table: TrainTable, device: torch.device, stored: torch.dtype) -> bool:
    """Whether numbers are rounded to half precision on the way: as asked for, but not where that has no gain at all, on
    a processor that has no instructions for it with weights that are fp32 anyway."""
    if table.precision == "fp32":
        return False
    return device.type != "cpu" or stored != torch.float32 or has_products(_DTYPES[table.precision])


@contextmanager
def kernels(device: torch.device, tokens: int, stored: torch.dtype, half: bool) -> Iterator[None]:
    """By which code a pass is computed: what a checkpointed layer needs to be computed again as it was.

    `half` says whether its numbers are of half precision.
    """
    able = device.type == "cpu" and has_products(stored)
    with (
        sdpa_kernel(SDPBackend.MATH) if able and not half and tokens <= _SHORT_TOKENS else nullcontext(),
        by_products() if able and half else nullcontext(),
        widened_where_needed(device, stored),
    ):
        yield
