"""Linear and convolution layers that carry any number of LoRA adapters behind one gate.

    y = base(x) + up(gate * down(x))

The adapters of a layer lie stacked along the rank axis: ``down [R, in]`` and ``up [out, R]``, R being the sum of their
ranks. The gate holds strength x alpha / r for every rank row: ``[R]`` is one mix for the whole batch, ``[batch, R]``
gives every row of the batch its own. A closed gate (all zero) leaves the base's output untouched, bit for bit.
LoRA: Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1.

What this module does not know: where layers come from (`inject`), which adapters exist and what opens the gates
(`bank`), and files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Gate:
    """The gate of every layer whose rank rows are laid out alike; setting it once turns all of them.

    `rows` is ``[R]`` or ``[batch, R]``, or None while closed. `unit` tells that all rows are exactly one, so that the
    multiplication can be left out: training at alpha = rank and strength 1 is the everyday case.
    """

    __slots__ = ("rows", "unit")

    def __init__(self) -> None:
        self.rows: Tensor | None = None
        self.unit = False

    def close(self) -> None:
        """Let nothing through: the layers give the base's output bit for bit."""
        self.rows, self.unit = None, False

    def open(self, rows: Tensor, *, unit: bool = False) -> None:
        """Let rank row i through times ``rows[..., i]``; `unit` promises that every value is 1."""
        self.rows, self.unit = rows, unit

    def on_linear(self, hidden: Tensor) -> Tensor:
        """``[batch, ..., R]`` with its rank rows scaled."""
        rows = self._rows_for(hidden)
        if rows is None:
            return hidden
        if rows.ndim == 2 and hidden.ndim > 2:
            rows = rows.view(rows.shape[0], *(1,) * (hidden.ndim - 2), rows.shape[1])
        return (hidden * rows).to(hidden.dtype)  # the product in fp32, so that a strength is not rounded to bf16 first

    def on_conv(self, hidden: Tensor) -> Tensor:
        """``[batch, R, height, width]`` with its rank rows scaled."""
        rows = self._rows_for(hidden)
        return hidden if rows is None else (hidden * rows[..., None, None]).to(hidden.dtype)

    def _rows_for(self, hidden: Tensor) -> Tensor | None:
        if self.unit or self.rows is None:
            return None
        if self.rows.ndim == 2 and self.rows.shape[0] != hidden.shape[0]:
            raise ValueError(f"the mix has {self.rows.shape[0]} rows but the batch has {hidden.shape[0]}")
        return self.rows


@dataclass(frozen=True, slots=True)
class Stack:
    """Rank rows that share a gate: ``down [R, in(, k, k)]``, ``up [out, R(, 1, 1)]``.

    The tensors are not registered in the layer: a trained adapter lives in its own flat buffer and a loaded one in its
    file, so neither belongs into the model's ``state_dict()`` or ``parameters()``.
    """

    down: Tensor
    up: Tensor
    gate: Gate


class LoraLayer(nn.Module):
    """A base layer and the stacks on top of it; `stacks` is set by the bank when adapters come and go."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.stacks: tuple[Stack, ...] = ()
        self.train(base.training)

    @property
    def weight(self) -> Tensor:
        """The base's weight: model code asks layers for its dtype, device and shape."""
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The base's bias."""
        return self.base.bias  # type: ignore[return-value]

    def extra_repr(self) -> str:
        return "ranks=" + "+".join(str(stack.down.shape[0]) for stack in self.stacks)


class LoraLinear(LoraLayer):
    """`nn.Linear` with adapters; x is ``[batch, ..., in]``, the result ``[batch, ..., out]``."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        for stack in self.stacks:
            if stack.gate.rows is not None:
                hidden = stack.gate.on_linear(F.linear(_input_of(x, stack.down), stack.down))
                y = y + F.linear(hidden, stack.up).to(y.dtype)
        return y


class LoraConv2d(LoraLayer):
    """`nn.Conv2d` with adapters: the down convolution has the base's kernel, stride, padding and dilation, the up
    convolution is 1 x 1. x is ``[batch, in, height, width]``."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        for stack in self.stacks:
            if stack.gate.rows is not None:
                hidden = stack.gate.on_conv(_down_conv(self.base, _input_of(x, stack.down), stack.down))
                y = y + F.conv2d(hidden, stack.up).to(y.dtype)
        return y


def can_wrap(module: nn.Module) -> bool:
    """Whether a LoRA can sit on this: linear layers and ungrouped, zero-padded convolutions."""
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros"
    return isinstance(module, nn.Linear)


def wrap(base: nn.Module) -> LoraLayer:
    """The LoRA twin of a layer; TypeError when `can_wrap` says no."""
    if not can_wrap(base):
        raise TypeError(f"a LoRA needs a linear layer or an ungrouped, zero-padded convolution, not {base}")
    return LoraLinear(base) if isinstance(base, nn.Linear) else LoraConv2d(base)


def lora_reference(
    base: nn.Module,
    x: Tensor,
    adapters: Sequence[tuple[Tensor, Tensor, float]],
    strengths: Sequence[Sequence[float]],
) -> Tensor:
    """What `LoraLinear` and `LoraConv2d` must agree with: every batch row alone, one adapter after another.

    `adapters` holds (down, up, alpha); ``strengths[b][k]`` is the strength of adapter k in batch row b.
    y_b = base(x_b) + sum over k of strength_bk * alpha_k / r_k * up_k(down_k(x_b)); Hu et al. 2021, section 4.1.
    """
    rows = []
    for x_b, strengths_b in zip(x.split(1), strengths, strict=True):
        y_b = base(x_b)
        for (down, up, alpha), strength in zip(adapters, strengths_b, strict=True):
            if isinstance(base, nn.Linear):
                delta = F.linear(F.linear(x_b, down), up)
            else:
                delta = F.conv2d(_down_conv(base, x_b, down), up)
            y_b = y_b + strength * alpha / down.shape[0] * delta
        rows.append(y_b)
    return torch.cat(rows)


def _down_conv(base: nn.Module, x: Tensor, down: Tensor) -> Tensor:
    assert isinstance(base, nn.Conv2d)
    return F.conv2d(x, down, None, base.stride, base.padding, base.dilation)


def _input_of(x: Tensor, down: Tensor) -> Tensor:
    """x in the adapter's dtype; autocast does its own casting, so it is left alone there."""
    if x.dtype == down.dtype or torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(down.dtype)
