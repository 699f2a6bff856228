"""Several prompts in one picture: every place of the picture attends to the words that have a share in it.

The words of all parts stand one after the other, and cross-attention gets log(share) as a bias: a place that belongs to
one part alone attends to its words alone, one on a soft edge to both, weighted. It is one attention whatever the number
of parts; padding has no share. (Attention couple and regional prompting make an attention a part and add the results.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lora.families.model import Model

PADDING = -1


@dataclass(frozen=True, eq=False)
class Sharing:
    """Of every row: the part that each word belongs to, ``[B, T]`` (`PADDING` to none); and the share that each part
    has in each place, ``[B, parts, H, W]`` at the latents' size, summing to 1 over the parts."""

    parts: Tensor
    shares: Tensor
    _biases: dict[tuple[int, torch.dtype], Tensor] = field(default_factory=dict, repr=False)

    def bias(self, places: int, dtype: torch.dtype) -> Tensor:
        """What is added to the attention of so many places to the words, ``[B, places, T]``."""
        key = places, dtype
        if key not in self._biases:
            pooled = F.adaptive_avg_pool2d(self.shares, self._size_of(places)).flatten(2)
            words = self.parts.clamp(min=0)[:, :, None].expand(-1, -1, places)
            shares = pooled.gather(1, words) * (self.parts != PADDING)[:, :, None]
            self._biases[key] = shares.log().clamp(min=torch.finfo(dtype).min).to(dtype).transpose(1, 2).contiguous()
        return self._biases[key]

    def _size_of(self, places: int) -> tuple[int, int]:
        height, width = self.shares.shape[2:]
        while height * width > places:
            height, width = -(-height // 2), -(-width // 2)
        if height * width != places:
            raise ValueError(f"{places} places are no halving of {tuple(self.shares.shape[2:])} latents")
        return height, width


class _Shared:
    """An attention processor that lets another one attend under the bias."""

    def __init__(self, inner: Any, sharing: Sharing) -> None:
        self._inner = inner
        self._sharing = sharing

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        bias = self._sharing.bias(hidden_states.shape[1], hidden_states.dtype)
        result: Tensor = self._inner(attn, hidden_states, encoder_hidden_states, bias, *args, **kwargs)
        return result


@contextmanager
def shared(model: Model, sharing: Sharing | None) -> Iterator[None]:
    """Inside, the UNet's cross-attention follows `sharing`, in batches of its rows; None changes nothing."""
    crossed: list[Any] = []
    if sharing is not None:
        crossed = [module for name, module in model.unet.named_modules() if name.endswith(".attn2")]
    before = [module.processor for module in crossed]
    for module, inner in zip(crossed, before, strict=True):
        module.processor = _Shared(inner, sharing)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for module, inner in zip(crossed, before, strict=True):
            module.processor = inner
