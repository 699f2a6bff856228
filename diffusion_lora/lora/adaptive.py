"""Ranks that go where they are needed: every layer starts with many, and the least important ones are pruned.

What is pruned are singular directions of a layer's product up @ down, in a few cuts down to a budget for all layers
together, by the importance of AdaLoRA (Zhang et al. 2023, https://arxiv.org/abs/2303.10512, section 3.2): with s the
change of the loss that the loss of a direction would make to first order, |sigma dL/dsigma|,

    importance  =  mean of s  x  mean of |s - mean of s|        both exponential, over the steps before a cut

Unlike AdaLoRA, nothing else is trained: up and down stay what they are, in the optimizer's eyes too, and a cut only
narrows what passes between them. up @ out_of @ into @ down has the kept directions and no others, and the two small
matrices join up and down when a file is written: it has a rank of its own for every layer, and nothing is lost.

dL/dsigma needs no gradient of the whole weight W. With D = down, B = up, scale c and G = dL/dW, the gradient of up
gives E = B^T dL/dB = c B^T G D^T, a matrix of the size of the rank; with D^T = Q R and the singular vectors V of
up @ down in the basis Q, sigma_k dL/dsigma_k = (V^T R E R^-1 V)_kk. Only E is kept from step to step.

Everything is a function of what training makes anyway, and of (step, steps): a checkpoint holds `state`. What this
module does not know: who owns the matrices (`trainable`), and when a step ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CUTS = 8
WINDOW = 16
"""Steps before a cut whose gradients count: the first of them would weigh 0.85^16 = 7 %."""

_SMOOTHING = 0.85  # AdaLoRA's beta_1 and beta_2


class Directions:
    """Which directions of the rank space of one layer act: all, until some are pruned.

    `matrix` is out_of @ into, ``[r, r(, 1, 1)]`` fp32 where the layer lives, or None while all act; it goes between
    down and up. `into` is ``[k, r]`` and `out_of` ``[r, k]``, float64 on the CPU.
    """

    __slots__ = ("into", "matrix", "out_of")

    def __init__(self) -> None:
        self.matrix: Tensor | None = None
        self.into: Tensor | None = None
        self.out_of: Tensor | None = None

    def set(self, into: Tensor, out_of: Tensor, like: Tensor) -> None:
        """Let these through; `like` is the down matrix."""
        self.into, self.out_of = into, out_of
        matrix = (out_of @ into).float().view(len(out_of), -1, *(1 for _ in like.shape[2:]))
        self.matrix = matrix.to(like.device)

    def narrowed(self, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """(down, up) of the directions that act, ``[k, in(, k, k)]`` and ``[out, k(, 1, 1)]``, of copies on the CPU."""
        if self.into is None or self.out_of is None:
            return down, up
        narrow_down = (self.into @ down.flatten(1).double()).view(-1, *down.shape[1:])
        narrow_up = (up.flatten(1).double() @ self.out_of).view(len(up), -1, *up.shape[2:])
        return narrow_down.to(down.dtype), narrow_up.to(up.dtype)


@dataclass(frozen=True, eq=False)
class AdaptiveLayer:
    """The leaves of a layer in training, and which of its directions act."""

    down: Tensor
    up: Tensor
    directions: Directions

    @property
    def rank(self) -> int:
        """How many directions act."""
        return len(self.down) if self.directions.into is None else len(self.directions.into)


@dataclass(frozen=True)
class Span:
    """The part of a training in which ranks are cut, as shares of its steps: before it nothing is pruned, behind it
    what is left learns on."""

    begin: float = 0.1
    end: float = 0.6

    def cuts(self, steps: int, start: int, budget: int) -> dict[int, int]:
        """Step -> rank rows that are left after it, of `steps`: fast at first, then slower (AdaLoRA, equation 9)."""
        cuts = {}
        for number in range(1, CUTS + 1):
            share = number / CUTS
            step = round(steps * (self.begin + (self.end - self.begin) * share))
            cuts[min(max(step, 1), max(steps - 1, 1))] = budget + round((start - budget) * (1 - share) ** 3)
        return cuts


class RankBudget:
    """Cuts the ranks of these layers down to `budget` rank rows in all; every layer keeps at least one."""

    def __init__(self, layers: Mapping[str, AdaptiveLayer], budget: int, span: Span) -> None:
        self.layers = layers
        self.budget = max(budget, len(layers))
        self.span = span
        self._start = sum(len(layer.down) for layer in layers.values())
        self._heard: dict[str, list[Tensor]] = {key: [] for key in layers}

    @property
    def ranks(self) -> dict[str, int]:
        """How many directions of each layer act."""
        return {key: layer.rank for key, layer in self.layers.items()}

    @torch.no_grad()
    def observe(self, step: int, steps: int) -> dict[str, int] | None:
        """Look at the gradients of step 0, 1, ... of `steps`, before the optimizer takes it; the ranks after a cut.

        Gradients must be finite and unscaled.
        """
        cuts = self.span.cuts(steps, self._start, self.budget)
        total = sum(self.ranks.values())
        # A cut that was missed, for a gradient that was not finite, is made up for.
        due = min((left for at, left in cuts.items() if at <= step), default=total)
        near = any(0 < at - step < WINDOW and left < total for at, left in cuts.items())
        if total <= due and not near:
            return None
        for key, layer in self.layers.items():
            gradient = layer.up.grad
            assert gradient is not None
            self._heard[key] = [*self._heard[key], layer.up.flatten(1).T @ gradient.flatten(1)][-WINDOW:]
        if total <= due:
            return None
        self._cut(due)
        self._heard = {key: [] for key in self.layers}
        return self.ranks

    def state(self) -> dict[str, Any]:
        """All that a checkpoint must hold, as tensors in plain dictionaries."""
        return {
            "directions": {
                key: {"into": layer.directions.into, "out_of": layer.directions.out_of}
                for key, layer in self.layers.items()
                if layer.directions.into is not None
            },
            "heard": {key: torch.stack(heard).cpu() for key, heard in self._heard.items() if heard},
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Put a `state` back."""
        for key, directions in state["directions"].items():
            layer = self.layers[key]
            layer.directions.set(directions["into"], directions["out_of"], layer.down)
        self._heard = {
            key: list(state["heard"][key].to(layer.up.device)) if key in state["heard"] else []
            for key, layer in self.layers.items()
        }

    def _cut(self, left: int) -> None:
        """Prune the least important directions of all layers until `left` are left."""
        parts = {key: _decompose(layer, self._heard[key]) for key, layer in self.layers.items()}
        keep = _most_important({key: part.importance for key, part in parts.items()}, left)
        for key, part in parts.items():
            layer = self.layers[key]
            if len(keep[key]) < layer.rank:
                layer.directions.set(part.into[keep[key]], part.out_of[:, keep[key]], layer.down)


@dataclass(frozen=True, eq=False)
class _Part:
    """The singular directions of a layer: into[k] @ down is the k-th right vector, up @ out_of[:, k] the left one times
    its value; float64."""

    into: Tensor
    out_of: Tensor
    importance: Tensor


def _decompose(layer: AdaptiveLayer, heard: list[Tensor]) -> _Part:
    """Singular directions of what acts in a layer, with their importance."""
    full = torch.eye(len(layer.down), dtype=torch.float64)
    into = full if layer.directions.into is None else layer.directions.into
    out_of = full if layer.directions.out_of is None else layer.directions.out_of
    down = into @ layer.down.detach().flatten(1).cpu().double()
    up = layer.up.detach().flatten(1).cpu().double() @ out_of
    r_down = torch.linalg.qr(down.T, mode="r")[1]
    r_up = torch.linalg.qr(up, mode="r")[1]
    v = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)[2]  # rows
    inverse = torch.linalg.pinv(r_down)
    # E of the narrowed factors: the gradient of up came through out_of.
    inner = torch.stack(heard).cpu().double()
    inner = out_of.T @ inner @ torch.linalg.pinv(out_of).T
    sensitivity = torch.einsum("ki,tij,jk->tk", v @ r_down, inner, inverse @ v.T).abs()
    return _Part(v @ inverse.T @ into, out_of @ r_down.T @ v.T, _importance(sensitivity))


def _importance(sensitivity: Tensor) -> Tensor:
    """Sensitivity x uncertainty of ``[steps, k]``, the latest step last (AdaLoRA, equations 4 to 6)."""
    mean = torch.zeros_like(sensitivity[0])
    spread = torch.zeros_like(mean)
    for now in sensitivity:
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * now
        spread = _SMOOTHING * spread + (1 - _SMOOTHING) * (now - mean).abs()
    return mean * spread


def _most_important(importance: Mapping[str, Tensor], left: int) -> dict[str, Tensor]:
    """The indices, rising, of the `left` most important directions of all layers; each layer has its best one."""
    best = {key: int(values.argmax()) for key, values in importance.items()}
    pooled = torch.cat(
        [values.index_fill(0, torch.tensor([best[key]]), torch.inf) for key, values in importance.items()]
    )
    chosen = torch.zeros(len(pooled), dtype=torch.bool)
    chosen[pooled.argsort(descending=True, stable=True)[:left]] = True
    widths = [len(values) for values in importance.values()]
    return {key: part.nonzero().flatten() for key, part in zip(importance, chosen.split(widths), strict=True)}
