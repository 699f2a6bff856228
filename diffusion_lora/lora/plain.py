"""Deltas of any kind made into one plain adapter, the rank of each layer chosen, and what is lost told.

A plain adapter is what every program loads: `down` and `up` for each layer, and one alpha for the whole file, because
diffusers takes the commonest alpha for all attention layers where they differ. Both matrices of a layer get the same
share of its singular values, so that half precision serves them alike. Which deltas they are is `algebra`'s and
`extract`'s to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusion_lora.errors import ConfigError
from diffusion_lora.lora import lineage
from diffusion_lora.lora.adapter import Adapter
from diffusion_lora.lora.factors import Delta, Svd, difference
from diffusion_lora.lora.formats.paths import kernel_of
from diffusion_lora.lora.spectrum import smallest_rank, uniform_rank
from diffusion_lora.lora.weights import LowRank


@dataclass(frozen=True)
class Cut:
    """How many singular values stay: `rank` of them, or as many as keep this share of the `energy`, or at most both.

    One rank for all layers, the smallest that does so for the adapter as a whole; with `per_layer` each its own: by
    energy every layer keeps the share, by rank alone the same number of rank rows goes where the largest values are.
    ConfigError when neither is given or a number is out of range.
    """

    rank: int | None = None
    energy: float | None = None
    per_layer: bool = False

    def __post_init__(self) -> None:
        if self.rank is None and self.energy is None:
            raise ConfigError("neither a rank nor a share of the energy is given; say --rank 8 or --energy 0.95")
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"the rank is {self.rank}; give 1 or more")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ConfigError(f"the share of the energy is {self.energy}; give one above 0 and up to 1, as in 0.95")

    @property
    def needs_values(self) -> bool:
        """Whether the singular values of all layers have to be known before the first is cut."""
        return self.per_layer or self.energy is not None


@dataclass(frozen=True, eq=False)
class Part:
    """A delta to be made plain: its shape ``[out, in(, k, k)]``, its singular values, and its svd up to a rank.

    `bound` is a rank it cannot exceed.
    """

    shape: tuple[int, ...]
    bound: int
    values: Callable[[], Tensor]
    svd: Callable[[int | None], Svd]


@dataclass(frozen=True)
class LayerLoss:
    """What became of one layer: the `norm` that was wanted and the `error` of what is stored, Frobenius norms.

    `rank_before` is None where there were no rank rows. Both include the rounding to the stored dtype.
    """

    key: str
    rank_before: int | None
    rank: int
    norm: float
    error: float

    @property
    def relative(self) -> float:
        """error / norm; 0 for a delta of zeros."""
        return self.error / self.norm if self.norm else 0.0


@dataclass(frozen=True, eq=False)
class Result:
    """An adapter that was computed, what it lost layer by layer, and what has to be said about it."""

    adapter: Adapter
    layers: tuple[LayerLoss, ...]
    notes: tuple[str, ...] = ()

    @property
    def error(self) -> float:
        """Of all layers together, relative to the norm of all: 0.05 of the length is 0.0025 of the energy."""
        norm = math.hypot(*(layer.norm for layer in self.layers))
        return math.hypot(*(layer.error for layer in self.layers)) / norm if norm else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON; errors relative to the layer's norm."""
        return {
            "error": self.error,
            "parameters": self.adapter.parameters,
            "notes": list(self.notes),
            "layers": [
                {
                    "key": layer.key,
                    "rank_before": layer.rank_before,
                    "rank": layer.rank,
                    "norm": layer.norm,
                    "error": layer.relative,
                }
                for layer in self.layers
            ],
        }


def choose_ranks(parts: Mapping[str, Part], cut: Cut) -> dict[str, int]:
    """The rank of each layer, at least 1."""
    if not cut.needs_values:
        assert cut.rank is not None
        return {key: min(cut.rank, part.bound) for key, part in parts.items()}
    values = {key: part.values() for key, part in parts.items()}
    if cut.energy is None:
        assert cut.rank is not None
        return _by_importance(values, cut.rank * len(values))
    if cut.per_layer:
        ranks = {key: smallest_rank(s, cut.energy) for key, s in values.items()}
    else:
        uniform = uniform_rank(list(values.values()), cut.energy)
        ranks = {key: max(1, min(uniform, len(s))) for key, s in values.items()}
    return {key: rank if cut.rank is None else min(rank, cut.rank) for key, rank in ranks.items()}


def make_plain(
    parts: Mapping[str, Part], ranks: Mapping[str, int], dtype: torch.dtype, before: Mapping[str, int | None]
) -> tuple[dict[str, LowRank], list[LayerLoss]]:
    """The layers of a plain adapter and the loss of each, one layer in work at a time."""
    alpha = float(max(ranks.values()))
    layers, losses = {}, []
    for key, part in parts.items():
        wanted = part.svd(ranks[key])
        layer = plain_layer(key, part.shape, wanted, alpha, dtype)
        stored = Delta(layer.up.double().flatten(1) * layer.scale, layer.down.double().flatten(1))
        cut_off = max(wanted.energy - float(wanted.s.square().sum()), 0.0)
        # Rounding moves the kept directions only, to second order, so the two errors stand at right angles.
        rounding = difference(stored, Delta(wanted.u * wanted.s, wanted.v)) if len(wanted.s) else 0.0
        error = math.hypot(math.sqrt(cut_off), rounding)
        losses.append(LayerLoss(key, before.get(key), layer.rank, math.sqrt(wanted.energy), error))
        layers[key] = layer
    return layers, losses


def plain_layer(key: str, shape: tuple[int, ...], decomposed: Svd, alpha: float, dtype: torch.dtype) -> LowRank:
    """`down` and `up` with the square root of each singular value in both; one rank row of zeros for a zero delta."""
    u, s, v = decomposed.u, decomposed.s, decomposed.v
    if not len(s):
        u, s, v = u.new_zeros(len(u), 1), s.new_zeros(1), v.new_zeros(1, v.shape[1])
    root = (s * (len(s) / alpha)).sqrt()
    return factored_layer(key, shape, u * root, root[:, None] * v, alpha, dtype)


def factored_layer(
    key: str, shape: tuple[int, ...], up: Tensor, down: Tensor, alpha: float, dtype: torch.dtype
) -> LowRank:
    """``up [out, r]`` and ``down [r, n]`` in the shapes of the layer they change.

    Of a LoKr that folded a kernel into its inputs only the layer's name tells that it is a 3 x 3 convolution.
    """
    inputs = shape[1:]
    side = kernel_of(key.partition(".")[2])
    if len(inputs) == 1 and side > 1 and inputs[0] % side**2 == 0:
        inputs = (inputs[0] // side**2, side, side)
    kernel = (1,) * (len(inputs) - 1)
    down, up = down.reshape(-1, *inputs), up.reshape(*up.shape, *kernel)
    return LowRank(down.to(dtype).contiguous(), up.to(dtype).contiguous(), alpha)


def form_of(layers: Mapping[str, LowRank]) -> dict[str, str]:
    """kohya's metadata for the ranks and the alpha of these layers."""
    conv = [layer.rank for layer in layers.values() if math.prod(layer.shape[2:]) > 1]
    linear = [layer.rank for layer in layers.values() if math.prod(layer.shape[2:]) == 1]
    return lineage.of_plain(linear or conv, conv, next(iter(layers.values())).alpha)


def widest(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """The dtype that holds all of these: fp32 where fp16 meets bf16."""
    floating = [dtype for dtype in dtypes if dtype.is_floating_point]
    result = floating[0] if floating else torch.float32
    for dtype in floating[1:]:
        result = torch.promote_types(result, dtype)
    return torch.float32 if result == torch.float64 else result


def _by_importance(values: Mapping[str, Tensor], budget: int) -> dict[str, int]:
    """`budget` rank rows in all, at the largest singular values of all layers; each layer has at least one."""
    keys = [key for key, s in values.items() for _ in range(max(len(s), 1))]
    pooled = torch.cat([s if len(s) else s.new_zeros(1) for s in values.values()])
    first = torch.cat([torch.arange(max(len(s), 1)) == 0 for s in values.values()])
    order = torch.where(first, torch.inf, pooled).argsort(descending=True, stable=True)[:budget]
    ranks = dict.fromkeys(values, 0)
    for index in order.tolist():
        ranks[keys[index]] += 1
    return ranks
