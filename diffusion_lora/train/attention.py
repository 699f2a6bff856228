"""Attention of half-precision numbers on a CPU that has instructions for them: over short sequences plain products.

Torch's own two ways are slow there, the fused one in the backward pass, the plain one because it goes by way of fp32.
Products of bf16 numbers, with sums in fp32, and a softmax whose result is rounded, take about half as long as either
up to 256 tokens by 256 (forward and backward; an EPYC with AVX512-BF16). Beyond that the fused one is as quick, and
keeps no matrix of weights. Rounding the logits is what graphics cards did before fused attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

_SHORT = 256 * 256  # weights of a head


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """softmax(query keyᵀ scale) value, of [..., tokens, width] each; `scale` is width ** -0.5 if not given."""
    scaled = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    return (scaled @ key.transpose(-1, -2)).softmax(-1) @ value


def attention(query: Tensor, *args: Any, **named: Any) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention` of half-precision numbers: the quickest way to it."""
    if len(args) == 2 and _is_plain(named) and query.shape[-2] * args[0].shape[-2] <= _SHORT:
        return attend(query, *args, named.get("scale"))
    return F.scaled_dot_product_attention(query, *args, **named)


def _is_plain(named: Mapping[str, Any]) -> bool:
    """Whether nothing but the scale is asked for: no mask, no dropout, not causal, no shared heads."""
    asked = [value for name, value in named.items() if name != "scale"]
    return not any(isinstance(value, Tensor) or value not in (None, False, 0.0) for value in asked)
