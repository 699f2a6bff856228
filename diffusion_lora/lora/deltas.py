"""What a layer of an adapter computes at its place in a model, whatever its form: nothing is approximated.

    rank rows       LoRA and its Tucker form; LoHa and LoKr of low rank, as r^2 or r1 r2 rows: they join the stack
    Kronecker       kron(w1, w2) x, as two small products
    Dense           dW x, where nothing thinner exists
    Decomposed      DoRA: (c - 1) W x + c V x, V being any of the above

The form with the fewest multiplications is taken. A strength multiplies what the adapter changes at strength 1, also
for DoRA, whose change is not linear in its factors: W' = W + strength (c (W + V) - W), as ComfyUI has it.
Formulas: LyCORIS, Yeh et al. 2023, https://arxiv.org/abs/2309.14859; DoRA, Liu et al. 2024,
https://arxiv.org/abs/2402.09353, equation 5. What this module does not know: gates' values, keys, files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from diffusion_lora.lora.dropout import LayerDropout
from diffusion_lora.lora.formats.forms import magnitude_axis
from diffusion_lora.lora.gate import Gate
from diffusion_lora.lora.layer import LoraLayer, input_of
from diffusion_lora.lora.magnitude import ratio
from diffusion_lora.lora.weights import Full, LoHa, LoKr, LowRank, Weights


class Operator(Protocol):
    """A linear map in the place of a layer's weight, without bias: ``V x`` for the layer's input x."""

    def __call__(self, layer: LoraLayer, x: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class RankRows:
    """scale * up(down(x)); `down` and `up` as in `layer.Stack`, the scale 1 where a gate holds it."""

    down: Tensor
    up: Tensor
    scale: float = 1.0
    dropout: LayerDropout | None = None

    def __call__(self, layer: LoraLayer, x: Tensor) -> Tensor:
        hidden = layer.transform(input_of(x, self.down), self.down)
        if self.dropout is not None:
            hidden = self.dropout.on_hidden(hidden, layer.channel_axis)
        change = layer.across(hidden, self.up)
        return change if self.scale == 1.0 else change * self.scale

    def __repr__(self) -> str:
        return f"rank {self.down.shape[0]}"


@dataclass(frozen=True, slots=True)
class Kronecker:
    """kron(w1, w2) x for ``w1 [a, b]`` and ``w2 [c, d(, k, k)]``: the channels of x are b groups of d."""

    w1: Tensor
    w2: Tensor

    def __call__(self, layer: LoraLayer, x: Tensor) -> Tensor:
        x = input_of(x, self.w2)
        (a, b), (c, d) = self.w1.shape, self.w2.shape[:2]
        if layer.channel_axis == -1:  # [..., b d] -> [..., b, c] -> [..., a, c]
            groups = torch.nn.functional.linear(x.unflatten(-1, (b, d)), self.w2)
            return (self.w1 @ groups).flatten(-2)
        # Every group of channels is a picture of its own to w2: [B b, d, H, W] -> [B, b, c H' W'] -> [B, a c, H', W'].
        groups = layer.transform(x.reshape(-1, d, *x.shape[2:]), self.w2)
        size = groups.shape[2:]
        return (self.w1 @ groups.reshape(len(x), b, -1)).reshape(len(x), a * c, *size)

    def __repr__(self) -> str:
        return " (x) ".join("x".join(map(str, w.shape)) for w in (self.w1, self.w2))


@dataclass(frozen=True, slots=True)
class Dense:
    """The whole change of a weight, ``[out, in(, k, k)]``."""

    weight: Tensor

    def __call__(self, layer: LoraLayer, x: Tensor) -> Tensor:
        return layer.transform(input_of(x, self.weight), self.weight)

    def __repr__(self) -> str:
        return "full"


@dataclass(frozen=True, slots=True)
class Fixed:
    """Branch of an adapter that has no rank rows: gate * (V x + bias)."""

    operator: Operator
    gate: Gate
    bias: Tensor | None = None

    def __call__(self, layer: LoraLayer, x: Tensor, y: Tensor) -> Tensor:
        change = self.operator(layer, x)
        if self.bias is not None:
            change = change + layer.along_channels(self.bias)
        return layer.gated(self.gate, change)

    def onto(self, layer: LoraLayer, x: Tensor, y: Tensor) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Decomposed:
    """Branch of a DoRA: gate * ((c - 1) W x + c V x), c being a number for each output (`axis` 0) or input (1).

    `ratio` gives c in fp32 (see `magnitude`): a loaded adapter's is fixed, a trained one's follows its factors.
    """

    operator: Operator
    ratio: Callable[[], Tensor]
    axis: int
    gate: Gate
    dropout: LayerDropout | None = None

    def __call__(self, layer: LoraLayer, x: Tensor, y: Tensor) -> Tensor:
        c = layer.along_channels(self.ratio())
        if self.axis == 0:
            unbiased = y if layer.bias is None else y - layer.along_channels(layer.bias)
            change = (c - 1) * unbiased + c * self.operator(layer, x)
        else:
            # The channels are scaled on the way in: padding with zeros does not mind.
            change = layer.transform(((c - 1) * x).to(x.dtype), layer.weight)
            change = change + self.operator(layer, (c * x).to(x.dtype))
        if self.dropout is not None:
            change = self.dropout.on_change(change)
        return layer.gated(self.gate, change)

    def onto(self, layer: LoraLayer, x: Tensor, y: Tensor) -> bool:
        return False

    def __repr__(self) -> str:
        return f"DoRA {self.operator!r}"


@dataclass(frozen=True, slots=True)
class Part:
    """A layer of a loaded adapter, ready for its place: dtype, device and shapes are the base weight's.

    Either rank rows for the common stack, with what strength 1 multiplies them by; or a branch to make for a gate.
    """

    rows: RankRows | None
    branch: Callable[[Gate], Fixed | Decomposed] | None = None


def fits(weights: Weights, base: Tensor) -> bool:
    """Whether a layer's change has the shape of this base weight.

    A linear layer and a 1 x 1 convolution are the same matrix, and programs write either shape for both; some write a
    convolution's kernel into the input axis.
    """
    shape, bias = weights.shape, weights.bias if isinstance(weights, Full) else None
    is_matrix = all(n == 1 for n in shape[2:])
    as_matrix = (base.shape[0], math.prod(base.shape[1:]))
    return (shape == tuple(base.shape) or (is_matrix and shape[:2] == as_matrix)) and (
        bias is None or bias.shape == base.shape[:1]
    )


def prepare(weights: Weights, base: Tensor) -> Part:
    """A layer of an adapter for this base weight, which it fits (`fits`). Products are made in fp32, then rounded."""
    dtype = base.dtype if base.is_floating_point() else torch.float32
    operator = _operator(weights, base)
    match operator:
        case RankRows(down, up):
            operator = RankRows(down.to(base.device, dtype), up.to(base.device, dtype), weights.scale)
        case Kronecker(w1, w2):
            operator = Kronecker(w1.to(base.device, dtype), w2.to(base.device, dtype))
        case Dense(weight):
            operator = Dense(weight.to(base.device, dtype))
    if weights.magnitude is not None:
        axis = magnitude_axis(weights.magnitude.shape, base.shape)
        c = ratio(weights.magnitude, base.float() + weights.update().to(base.device).reshape(base.shape), axis)
        return Part(None, lambda gate: Decomposed(operator, lambda: c, axis, gate))
    if isinstance(operator, RankRows):
        return Part(operator)
    bias = weights.bias if isinstance(weights, Full) else None
    bias = None if bias is None else bias.to(base.device, dtype)
    return Part(None, lambda gate: Fixed(operator, gate, bias))


# --- the thinnest form ------------------------------------------------------------------------------------------------


def _operator(weights: Weights, base: Tensor) -> RankRows | Kronecker | Dense:
    """The cheapest exact form, fp32 unless it is the file's own; rank rows without the scale, the others with it."""
    if isinstance(weights, LowRank) and weights.mid is None:
        return _as_rows(weights.down, weights.up, base)
    choices: list[tuple[int, RankRows | Kronecker]] = []
    rows = _rank_rows(weights)
    if rows is not None:
        choices.append((_cost_of_rows(len(rows[0]), base), _as_rows(*rows, base)))
    if isinstance(weights, LoKr):
        kronecker = _kronecker(weights, base)
        if kronecker is not None:
            choices.append((_cost_of_kronecker(kronecker), kronecker))
    cost, cheapest = min(choices, key=lambda choice: choice[0], default=(base.numel(), None))
    if cheapest is None or cost >= base.numel():
        return Dense(weights.update().reshape(base.shape))
    return cheapest


def _cost_of_rows(rank: int, base: Tensor) -> int:
    return rank * (base.shape[0] + math.prod(base.shape[1:]))


def _cost_of_kronecker(form: Kronecker) -> int:
    (a, b), c = form.w1.shape, form.w2.shape[0]
    return b * form.w2.numel() + a * b * c


def _as_rows(down: Tensor, up: Tensor, base: Tensor) -> RankRows:
    """Shapes as `layer.Stack` wants them."""
    rank = up.shape[1]
    return RankRows(down.reshape(rank, *base.shape[1:]), up.reshape(-1, rank, *(1 for _ in base.shape[2:])))


def _rank_rows(weights: Weights) -> tuple[Tensor, Tensor] | None:
    """(down, up) whose product is the layer's change before scale and magnitude, if there is a pair by construction.

    (a1 b1) * (a2 b2), elementwise, is the product of the row-wise Kronecker products of a1, a2 and column-wise of b1,
    b2 (Khatri and Rao); kron(a1 b1, a2 b2) = kron(a1, a2) kron(b1, b2).
    """
    match weights:
        case LowRank(down=down, up=up, mid=mid):
            assert mid is not None
            return torch.einsum("abkl,bi->aikl", mid.float(), down.float().flatten(1)), up.float()
        case LoHa():
            down1, up1 = _thin(weights.w1_a, weights.w1_b, weights.t1)
            down2, up2 = _thin(weights.w2_a, weights.w2_b, weights.t2)
            down = (down1[:, None] * down2[None]).flatten(0, 1)
            return down, (up1[:, :, None] * up2[:, None]).flatten(1)
        case LoKr(w2=(a, b)):
            down1, up1 = _thin_matrix(weights.w1)
            down2, up2 = _thin(a, b, weights.t2)
            down1 = down1.reshape(*down1.shape, *(1,) * (down2.ndim - 2))
            return torch.kron(down1, down2.contiguous()), torch.kron(up1, up2.contiguous())
        case _:
            return None


def _thin(a: Tensor, b: Tensor, t: Tensor | None) -> tuple[Tensor, Tensor]:
    """(down [r, n(, k, k)], up [m, r]) of a @ b, or of the Tucker form with the core t."""
    if t is None:
        return b.float(), a.float()
    return torch.einsum("abkl,bi->aikl", t.float(), b.float()), a.float().T


def _thin_matrix(factor: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """(down, up) of a Kronecker product's first factor; a whole one's thinner side is the identity."""
    if isinstance(factor, tuple):
        return _thin(*factor, None)
    whole = factor.float()
    identity = torch.eye(min(whole.shape), device=whole.device)
    return (whole, identity) if whole.shape[0] <= whole.shape[1] else (identity, whole)


def _kronecker(weights: LoKr, base: Tensor) -> Kronecker | None:
    """The factors, the scale in the first; None where the file folded the kernel so that it is in both of them."""
    w1, w2 = weights.factors()
    kernel = tuple(base.shape[2:])
    if tuple(w2.shape[2:]) != kernel:
        matrix = w2.flatten(1) if all(n == 1 for n in w2.shape[2:]) else None
        if matrix is None or matrix.shape[1] % math.prod(kernel):
            return None
        w2 = matrix.reshape(len(matrix), -1, *kernel)
    return Kronecker(weights.scale * w1, w2)
