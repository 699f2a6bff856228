"""Linear and convolution layers that carry any number of adapters, each behind a gate.

    y = base(x) + up(gate * down(x)) + the sum of gate * (dW x)

LoRA adapters of a layer lie stacked along the rank axis: ``down [R, in]`` and ``up [out, R]``, R being the sum of their
ranks. The gate holds strength x scale for every rank row: ``[R]`` is one mix for the whole batch, ``[batch, R]`` gives
every row of the batch its own, and one that follows areas (`area`) differs from place to place. Adapters without rank
rows are branches of their own (`deltas`), whose gate is one number, ``[1]`` or ``[batch, 1]``. A closed gate (all zero)
leaves the base's output untouched, bit for bit.
LoRA: Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1.

What this module does not know: where layers come from (`inject`), which adapters exist and what opens the gates
(`bank`), and files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lora.lora.adaptive import Directions
from diffusion_lora.lora.dropout import LayerDropout
from diffusion_lora.lora.gate import Gate, factors_of_lanes


class Branch(Protocol):
    """What adapters add to a layer's output."""

    @property
    def gate(self) -> Gate: ...

    def __call__(self, layer: LoraLayer, x: Tensor, y: Tensor) -> Tensor:
        """gate * (dW x), of the layer's input x and the base's output y; called while the gate is open."""
        ...

    def onto(self, layer: LoraLayer, x: Tensor, y: Tensor) -> bool:
        """Add that to y in place, which nobody else needs any more; False where only `__call__` can do it."""
        ...


class LoraLayer(nn.Module):
    """A base layer and the branches on top of it; `branches` is set by the bank when adapters come and go.

    Channels lie along `channel_axis` of x and y.
    """

    channel_axis: int

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.branches: tuple[Branch, ...] = ()
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        y = base_y = self.base(x)
        if len(self.branches) == 1 and self.branches[0].onto(self, x, y):
            return y
        in_lanes = []
        for branch in self.branches:
            if branch.gate.rows is None:
                continue
            if branch.gate.lane is None:
                y = y + branch(self, x, base_y).to(y.dtype)
            else:
                in_lanes.append((*branch.gate.lane, branch))
        return self._side_by_side(x, y, in_lanes) if in_lanes else y

    def _side_by_side(self, x: Tensor, y: Tensor, in_lanes: Sequence[tuple[int, int, Branch]]) -> Tensor:
        """Every part of the batch through its own branch."""
        lanes = in_lanes[0][1]
        if len(x) % lanes:
            raise ValueError(f"a batch of {len(x)} rows does not fall into {lanes} equal parts")
        if (change := self._in_one(x, in_lanes)) is not None:
            return y + change.to(y.dtype)
        xs, ys = x.chunk(lanes), list(y.chunk(lanes))
        for lane, _, branch in in_lanes:
            ys[lane] = ys[lane] + branch(self, xs[lane], ys[lane]).to(y.dtype)
        return torch.cat(ys)

    def _in_one(self, x: Tensor, in_lanes: Sequence[tuple[int, int, Branch]]) -> Tensor | None:
        """The change of all parts by one product that keeps them apart, lower ranks filled up with zeros: a small layer
        takes longer to be called than to compute. None where a branch is missing or more than its two matrices.

        What is not finite in one part stays there, forward and backward.
        """
        stacks = [branch for _, _, branch in in_lanes if isinstance(branch, Stack) and branch.is_plain]
        if len(stacks) < in_lanes[0][1] or [lane for lane, _, _ in in_lanes] != list(range(len(stacks))):
            return None
        width = max(len(stack.down) for stack in stacks)
        down = _filled([stack.down for stack in stacks], width, 0)
        up = _filled([stack.up for stack in stacks], width, 1)
        return self.apart(input_of(x, down), down, up, factors_of_lanes([stack.gate for stack in stacks], width))

    def apart(self, x: Tensor, down: Tensor, up: Tensor, factors: Tensor | None) -> Tensor | None:
        """n equal parts of the batch, each through its own of ``down [n, r, in(, k, k)]`` and ``up [n, out, r(, 1,
        1)]``, scaled by ``[n, r]`` in between; None where one by one is as good."""
        raise NotImplementedError

    def transform(self, x: Tensor, weight: Tensor) -> Tensor:
        """x through a weight ``[n, in(, k, k)]`` in place of the base's, without a bias."""
        raise NotImplementedError

    def across(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Channels mixed at every place by ``[n, m(, 1, 1)]``."""
        raise NotImplementedError

    def gated(self, gate: Gate, hidden: Tensor) -> Tensor:
        """The channels scaled by the gate's rows."""
        raise NotImplementedError

    def along_channels(self, values: Tensor) -> Tensor:
        """``[n]`` in the shape that broadcasts over x and y."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """The base's weight: model code asks layers for its dtype, device and shape."""
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The base's bias."""
        return self.base.bias  # type: ignore[return-value]

    def extra_repr(self) -> str:
        return ", ".join(map(repr, self.branches))


class LoraLinear(LoraLayer):
    """`nn.Linear` with adapters; x is ``[batch, ..., in]``, the result ``[batch, ..., out]``."""

    channel_axis = -1

    def transform(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)

    def across(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return F.linear(hidden, weight)

    def gated(self, gate: Gate, hidden: Tensor) -> Tensor:
        return gate.on_linear(hidden)

    def along_channels(self, values: Tensor) -> Tensor:
        return values

    def apart(self, x: Tensor, down: Tensor, up: Tensor, factors: Tensor | None) -> Tensor | None:
        hidden = torch.bmm(x.reshape(len(down), -1, x.shape[-1]), down.transpose(1, 2))
        if factors is not None:
            hidden = (hidden * factors[:, None, :]).to(hidden.dtype)
        return torch.bmm(hidden, up.transpose(1, 2)).view(*x.shape[:-1], up.shape[1])


class LoraConv2d(LoraLayer):
    """`nn.Conv2d` with adapters: the down convolution has the base's kernel, stride, padding and dilation, the up
    convolution is 1 x 1. x is ``[batch, in, height, width]``."""

    channel_axis = 1

    def transform(self, x: Tensor, weight: Tensor) -> Tensor:
        return _convolve(self.base, x, weight)

    def across(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(hidden, weight)

    def gated(self, gate: Gate, hidden: Tensor) -> Tensor:
        return gate.on_conv(hidden)

    def along_channels(self, values: Tensor) -> Tensor:
        return values[:, None, None]

    def apart(self, x: Tensor, down: Tensor, up: Tensor, factors: Tensor | None) -> Tensor | None:
        base, lanes = self.base, len(down)
        assert isinstance(base, nn.Conv2d)
        # One row each is a grouped convolution of the same memory; more would have to be moved. A tile is padded apart.
        if len(x) != lanes or base.padding_mode != "zeros":
            return None
        one = x.reshape(1, -1, *x.shape[2:])
        hidden = F.conv2d(one, down.flatten(0, 1), None, base.stride, base.padding, base.dilation, lanes)
        if factors is not None:
            hidden = (hidden * factors.view(1, -1, 1, 1)).to(hidden.dtype)
        return F.conv2d(hidden, up.flatten(0, 1), groups=lanes).view(lanes, up.shape[1], *hidden.shape[2:])


@dataclass(frozen=True, slots=True)
class Stack:
    """Rank rows that share a gate: ``down [R, in(, k, k)]``, ``up [out, R(, 1, 1)]``.

    The tensors are not registered in the layer: a trained adapter lives in its own flat buffer and a loaded one in its
    file, so neither belongs into the model's ``state_dict()`` or ``parameters()``.

    For training: `start`, a frozen (down, up) whose product is taken off again, so that matrices which start as a part
    of the base's weight (PiSSA) start with no change; `dropout`; and the `directions` that have not been pruned.
    """

    down: Tensor
    up: Tensor
    gate: Gate
    start: tuple[Tensor, Tensor] | None = None
    dropout: LayerDropout | None = None
    directions: Directions | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it is nothing but its two matrices."""
        return self.start is None and self.dropout is None and self.directions is None

    def __call__(self, layer: LoraLayer, x: Tensor, y: Tensor) -> Tensor:
        x = input_of(x, self.down)
        change = layer.across(self._hidden(layer, x, self.down), self.up)
        if self.start is not None:
            down, up = self.start
            change = change - layer.across(self._hidden(layer, x, down), up)
        return change if self.dropout is None else self.dropout.on_change(change)

    def onto(self, layer: LoraLayer, x: Tensor, y: Tensor) -> bool:
        """The second product ends in y itself: no tensor of y's size is made for the change, nor read again to add it.

        For linear layers outside of training, where autograd wants none of it; the same numbers up to rounding.
        """
        if torch.is_grad_enabled() or layer.channel_axis != -1 or self.gate.rows is None or self.gate.lane is not None:
            return False
        if y.dtype != self.up.dtype or not self.is_plain:
            return False
        hidden = layer.gated(self.gate, layer.transform(input_of(x, self.down), self.down))
        y.view(-1, y.shape[-1]).addmm_(hidden.view(-1, hidden.shape[-1]), self.up.t())
        return True

    def _hidden(self, layer: LoraLayer, x: Tensor, down: Tensor) -> Tensor:
        hidden = layer.gated(self.gate, layer.transform(x, down))
        if self.directions is not None and self.directions.matrix is not None:
            hidden = layer.across(hidden, self.directions.matrix)
        return hidden if self.dropout is None else self.dropout.on_hidden(hidden, layer.channel_axis)

    def __repr__(self) -> str:
        return f"rank {self.down.shape[0]}"


def can_wrap(module: nn.Module) -> bool:
    """Whether an adapter can sit on this: linear layers and ungrouped, zero-padded convolutions."""
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros"
    return isinstance(module, nn.Linear)


def wrap(base: nn.Module) -> LoraLayer:
    """The LoRA twin of a layer; TypeError when `can_wrap` says no."""
    if not can_wrap(base):
        raise TypeError(f"a LoRA needs a linear layer or an ungrouped, zero-padded convolution, not {base}")
    return LoraLinear(base) if isinstance(base, nn.Linear) else LoraConv2d(base)


def input_of(x: Tensor, weight: Tensor) -> Tensor:
    """x in the adapter's dtype; autocast does its own casting, so it is left alone there."""
    if x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(weight.dtype)


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
                delta = F.conv2d(_convolve(base, x_b, down), up)
            y_b = y_b + strength * alpha / down.shape[0] * delta
        rows.append(y_b)
    return torch.cat(rows)


def _convolve(base: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    assert isinstance(base, nn.Conv2d)
    return base._conv_forward(x, weight, None)  # which pads as the base does: zeros, or the picture's other side


def _filled(weights: Sequence[Tensor], width: int, axis: int) -> Tensor:
    """Matrices of several ranks stacked, ``[n, ...]``, each filled up with zeros to `width` along its rank axis."""
    if all(weight.shape[axis] == width for weight in weights):
        return torch.stack(list(weights))
    filled = []
    for weight in weights:
        room = [0] * (2 * weight.ndim)
        room[2 * (weight.ndim - axis) - 1] = width - weight.shape[axis]
        filled.append(F.pad(weight, room))
    return torch.stack(filled)
