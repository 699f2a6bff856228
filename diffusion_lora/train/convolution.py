"""Frozen convolutions of half-precision numbers on a CPU that has instructions for them: over few places, products.

Torch's library lays a convolution's weight out anew at every call, for the backward pass twice, and at few places that
is nearly all it does: SD 1.5's at 256 px take 404 ms backward and 209 ms forward, as products of gathered windows by
the weight as it lies there 167 and 117 (a Xeon with AMX). Nothing is laid out anew, so nothing takes memory either.
Sums within a product are in fp32; those over a kernel's places, backward, are of rounded products, in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lora.train.windows import as_matrix, as_picture, as_places, gathered, scattered, size_of

_FEW_PLACES = 256  # of all rows together; at 1024 torch's own are as quick


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] | str = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv2d` of half-precision numbers: the quickest way to it."""
    frozen = x.dtype == weight.dtype and not weight.requires_grad and (bias is None or not bias.requires_grad)
    plain = frozen and tuple(dilation) == (1, 1) and groups == 1 and x.ndim == 4
    # Where channels do not lie last the matrix would be a copy.
    if plain and not isinstance(padding, str) and weight.is_contiguous(memory_format=torch.channels_last):
        if weight.shape[2:] == (1, 1) and tuple(stride) == (1, 1) and tuple(padding) == (0, 0):
            # As a matrix: of four axes that do not lie in order torch would copy the weight for each row of places.
            return as_picture(F.linear(as_places(x), weight.flatten(1), bias), len(x), x.shape[2:])
        height, width = size_of(x.shape, weight, stride, padding)
        if len(x) * height * width <= _FEW_PLACES:
            return _ByProducts.apply(x, weight, bias, stride, padding)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


class _ByProducts(torch.autograd.Function):
    """By a frozen weight [out, in, height, width], channels last, ungrouped and undilated."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]
    ) -> Tensor:
        ctx.weight, ctx.shape, ctx.stride, ctx.padding = weight, x.shape, stride, padding
        y = F.linear(gathered(x, weight, stride, padding), as_matrix(weight), bias)
        return as_picture(y, len(x), size_of(x.shape, weight, stride, padding))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        parts = as_places(grad) @ as_matrix(ctx.weight)
        given = scattered(parts, ctx.shape, ctx.weight, ctx.stride, ctx.padding)
        return given.to(grad.dtype, memory_format=torch.channels_last), None, None, None, None
