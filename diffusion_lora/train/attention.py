"""Attention of half-precision numbers on a CPU that has instructions for them: over short sequences plain products.

Torch's own two ways are slow there, the fused one in the backward pass, the plain one because it goes by way of fp32.
Products of bf16 numbers, with sums in fp32, and a softmax whose result is rounded, take about half as long as either
up to 256 tokens by 256 (forward and backward; an EPYC with AVX512-BF16). Beyond that the fused one is as quick, and
keeps no matrix of weights. Rounding the logits is what graphics cards did before fused attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_HALVES = (torch.bfloat16, torch.float16)
_SHORT = 256 * 256  # weights of a head


class short_by_products(TorchFunctionMode):  # noqa: N801 - used as a context, like torch's own
    """Inside, attention of few half-precision numbers without mask and dropout is three products."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func is F.scaled_dot_product_attention and _is_plain(named) and _is_short(*args):
            return attend(args[0], args[1], args[2], named.get("scale"))
        return func(*args, **named)


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """softmax(query keyᵀ scale) value, of [..., tokens, width] each; `scale` is width ** -0.5 if not given."""
    scaled = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    return (scaled @ key.transpose(-1, -2)).softmax(-1) @ value


def _is_plain(named: Mapping[str, Any]) -> bool:
    """Whether nothing but the scale is asked for: no mask, no dropout, not causal, no shared heads."""
    asked = [value for name, value in named.items() if name != "scale"]
    return not any(isinstance(value, Tensor) or value not in (None, False, 0.0) for value in asked)


def _is_short(*args: Any) -> bool:
    if len(args) != 3 or args[0].dtype not in _HALVES:
        return False
    return bool(args[0].shape[-2] * args[1].shape[-2] <= _SHORT)
