"""In which precision, and by which attention, a forward pass is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusion_lora.config import TrainTable

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SHORT_TOKENS = 1024  # beyond it the matrix of attention weights costs more memory than it saves time


@contextmanager
def arithmetic(table: TrainTable, device: torch.device, tokens: int) -> Iterator[None]:
    """The context of one forward pass over latents of `tokens` = height x width.

    One context a pass, never around an optimizer step: autocast keeps the casts of weights while it lasts. On the CPU
    the backward pass of torch's fused attention is slow: over short sequences plain matrix products take 11 % off a
    whole step of pocket (538 ms for 603 ms of CPU time, batch 8, wide targets).
    """
    with (
        torch.autocast(device.type, _DTYPES[table.precision], enabled=table.precision != "fp32"),
        attention(device, tokens),
    ):
        yield


@contextmanager
def attention(device: torch.device, tokens: int) -> Iterator[None]:
    """The attention of a pass alone: what a checkpointed layer needs to be computed again as it was."""
    plain = device.type == "cpu" and tokens <= _SHORT_TOKENS
    with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
        yield
