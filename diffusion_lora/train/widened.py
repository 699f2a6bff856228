"""Products of half-precision numbers on a processor that has no instructions for them.

Torch then takes some ten times as long as in fp32. Inside `widened` the products of linear layers, convolutions and
attention are computed as a processor with such instructions computes them, factors in half precision, sums in fp32,
results rounded back, by way of fp32: a weight is widened into a piece of memory that all layers share, just before it
is used. What is kept for the backward pass stays in half precision; attention keeps its inputs alone and is computed
again. Where weights are fp32 there is nothing to do: computing in fp32 altogether is quicker still (`arithmetic`).

What other operations take part (norms, activations) is torch's own: they are as fast as in fp32.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input
from torch.overrides import TorchFunctionMode

from diffusion_lora.train.windows import as_matrix, as_picture, as_places, gathered, scattered, size_of

_FEW_PLACES = 128  # up to which a convolution is quicker as a matrix product over gathered windows
_MANY_PLACES = 1024  # up to which large weights are better off so, too: they can be widened in parts
_LARGE = 8_000_000  # numbers
_AT_ONCE = 3_000_000  # numbers of a matrix that are widened at once: what the processor's caches hold
_HALVES = (torch.bfloat16, torch.float16)
_scratch = threading.local()

_Pair: TypeAlias = Sequence[int]


def has_products(dtype: torch.dtype) -> bool:
    """Whether this processor has instructions for products of such numbers, as far as torch's library uses them."""
    if dtype not in _HALVES:
        return True
    ask = torch.ops.mkldnn
    return bool(ask._is_mkldnn_bf16_supported() if dtype == torch.bfloat16 else ask._is_mkldnn_fp16_supported())


class widened(TorchFunctionMode):  # noqa: N801 - used as a context, like torch's own
    """Inside, products with a half-precision input are computed by way of fp32."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        own = _OWN.get(func)
        if own is None or args[0].dtype not in _HALVES:
            return func(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            return own(*args, **(kwargs or {}))


def widened_where_needed(device: torch.device, stored: torch.dtype) -> AbstractContextManager[object]:
    """`widened` for a model with weights of this kind on a processor without instructions for them, else nothing."""
    return widened() if device.type == "cpu" and not has_products(stored) else nullcontext()


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _Linear.apply(x, weight, bias)


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Pair = (1, 1),
    padding: _Pair | str = (0, 0),
    dilation: _Pair = (1, 1),
    groups: int = 1,
) -> Tensor:
    if weight.shape[2:] == (1, 1) and tuple(stride) == (1, 1) and tuple(padding) == (0, 0) and groups == 1:
        return _linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
    if weight.requires_grad or isinstance(padding, str) or tuple(dilation) != (1, 1) or groups != 1:
        wide_bias = None if bias is None else bias.float()
        return F.conv2d(x.float(), weight.float(), wide_bias, stride, padding, dilation, groups).to(x.dtype)
    return _Convolution.apply(x, weight, bias, stride, padding)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, *rest: Any, **named: Any
) -> Tensor:
    if attn_mask is None and not dropout_p:
        return _Attention.apply(q, k, v, rest, named)
    if attn_mask is not None and attn_mask.is_floating_point():
        attn_mask = attn_mask.float()
    wide = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask, dropout_p, *rest, **named)
    return wide.to(q.dtype)


_OWN: Mapping[Any, Callable[..., Tensor]] = {
    F.linear: _linear,
    F.conv2d: _conv2d,
    F.scaled_dot_product_attention: _attend,
}


class _Linear(torch.autograd.Function):
    """x [..., in], weight [out, in]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # What learns is kept in fp32; beside half-precision numbers it counts as one of them.
        weight = weight.to(x.dtype)
        learns = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        ctx.save_for_backward(x if learns else None, weight)
        y = _times(x.reshape(-1, x.shape[-1]).float(), weight, None if bias is None else bias.to(x.dtype))
        return y.to(x.dtype).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1]).float()
        given = _times_transposed(rows, weight) if ctx.needs_input_grad[0] else None
        grad_x = None if given is None else given.to(grad.dtype).view(*grad.shape[:-1], -1)
        grad_weight = rows.T @ x.reshape(-1, x.shape[-1]).float() if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, rows.sum(0) if ctx.needs_input_grad[2] else None


class _Convolution(torch.autograd.Function):
    """By a frozen weight [out, in, height, width], ungrouped and undilated."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        ctx.weight, ctx.shape, ctx.stride, ctx.padding = weight, x.shape, stride, padding
        size = size_of(x.shape, weight, stride, padding)
        places = len(x) * size[0] * size[1]
        ctx.gathers = places <= _FEW_PLACES or (places <= _MANY_PLACES and weight.numel() > _LARGE)
        if not ctx.gathers:
            wide_bias = None if bias is None else bias.float()
            return F.conv2d(x.float(), _wide(weight), wide_bias, stride, padding).to(x.dtype)
        y = _times(gathered(x.float(), weight, stride, padding), as_matrix(weight), bias)
        return as_picture(y.to(x.dtype), len(x), size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight = ctx.weight
        if not ctx.gathers:
            given = conv2d_input(ctx.shape, _wide(weight), grad.float(), ctx.stride, ctx.padding)
            return given.to(grad.dtype), None, None, None, None
        parts = _times_transposed(as_places(grad).float(), as_matrix(weight))
        given = scattered(parts, ctx.shape, weight, ctx.stride, ctx.padding)
        return given.to(grad.dtype, memory_format=torch.channels_last), None, None, None, None


class _Attention(torch.autograd.Function):
    """softmax(q k^T / sqrt(width)) v, of [..., places, width]; `rest` and `named` are is_causal, scale, enable_gqa."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, rest: Sequence[Any], named: Mapping[str, Any]) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.rest, ctx.named = rest, named
        wide = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), None, 0.0, *rest, **named)
        return wide.to(q.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = (one.float().requires_grad_() for one in ctx.saved_tensors)
        with torch.enable_grad():
            y = F.scaled_dot_product_attention(q, k, v, None, 0.0, *ctx.rest, **ctx.named)
        given = torch.autograd.grad(y, (q, k, v), grad.float())
        return (*(one.to(grad.dtype) for one in given), None, None)


def _times(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """x matrix^T + bias in fp32, of [rows, in] and [out, in], a part of the matrix after the other."""
    y = x.new_empty(len(x), len(matrix))
    for columns, part in zip(y.split(_rows(matrix), 1), matrix.split(_rows(matrix)), strict=True):
        torch.mm(x, _wide(part).T, out=columns)
    return y if bias is None else y.add_(bias)


def _times_transposed(x: Tensor, matrix: Tensor) -> Tensor:
    """x matrix in fp32, of [rows, out] and [out, in]."""
    y = x.new_zeros(len(x), matrix.shape[1])
    for columns, part in zip(x.split(_rows(matrix), 1), matrix.split(_rows(matrix)), strict=True):
        y.addmm_(columns, _wide(part))
    return y


def _rows(matrix: Tensor) -> int:
    return max(1, _AT_ONCE // matrix.shape[1])


def _wide(weight: Tensor) -> Tensor:
    """The weight in fp32, laid out alike, in memory that the next call uses again."""
    if not weight.is_contiguous() and not weight.is_contiguous(memory_format=torch.channels_last):
        return weight.float()
    room: Tensor | None = getattr(_scratch, "room", None)
    if room is None or room.numel() < weight.numel():
        _scratch.room = room = torch.empty(weight.numel())
    wide = room[: weight.numel()].as_strided(weight.shape, weight.stride())
    return wide.copy_(weight.detach())
