"""Singular values of an adapter's deltas, where their energy lies, and which rank would have been enough.

The energy of a delta is its squared Frobenius norm, which is the sum of its squared singular values: the first k of
them are what the best approximation of rank k keeps (Eckart and Young 1936). No delta is formed; no base is needed.
Of a DoRA the values are those of its low-rank part: what the normalisation makes of it depends on the base.
Not here: resizing (`algebra`), tables and pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from diffusion_lora.lora.adapter import Adapter
from diffusion_lora.lora.blocks import block_of
from diffusion_lora.lora.factors import rank_of, singular_values

SHARES = (0.90, 0.95, 0.99)
"""Shares of the energy for which the smallest rank is told."""

_ROUNDING = 1e-12
_DORA_NOTE = "{} layers are DoRA: their values are those before the magnitude, whose effect depends on the base"


@dataclass(frozen=True)
class LayerSpectrum:
    """One layer: `rank` as the file has it (None where a layer has no rank rows), `values` falling, none negligible.

    `parameters` are the numbers that the file holds for it; `parameters_per_rank` is what one rank row costs in a plain
    adapter, out + in x kernel.
    """

    key: str
    rank: int | None
    values: tuple[float, ...]
    parameters: int
    parameters_per_rank: int

    @property
    def energy(self) -> float:
        return sum(value * value for value in self.values)

    @property
    def norm(self) -> float:
        """The delta's Frobenius norm at strength 1."""
        return self.energy**0.5

    @property
    def stable_rank(self) -> float:
        """Energy over that of the largest value: 1 for one direction, k for k equal ones; 0 for nothing."""
        return self.energy / self.values[0] ** 2 if self.values else 0.0

    def rank_for(self, share: float) -> int:
        """The smallest rank that keeps this share of the energy."""
        return smallest_rank(torch.tensor(self.values, dtype=torch.float64), share)


@dataclass(frozen=True)
class Spectrum:
    """All layers of an adapter, in its order; `notes` say what the figures leave out."""

    layers: tuple[LayerSpectrum, ...]
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Numbers that the file holds for these layers."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def energy(self) -> float:
        return sum(layer.energy for layer in self.layers)

    @property
    def norm(self) -> float:
        return self.energy**0.5

    def curve(self) -> tuple[float, ...]:
        """Share of the energy that is left when every layer is cut to rank 0, 1, 2, ...; 1 for an adapter of zeros."""
        longest = max((len(layer.values) for layer in self.layers), default=0)
        kept = [0.0] * (longest + 1)
        for layer in self.layers:
            for index, value in enumerate(layer.values):
                kept[index + 1] += value * value
        total = sum(kept)
        return tuple(part / total for part in accumulate(kept)) if total else (1.0,)

    def kept_by(self, rank: int) -> float:
        """The curve at a rank, also beyond its end."""
        curve = self.curve()
        return curve[min(rank, len(curve) - 1)]

    def rank_for(self, share: float) -> int:
        """The smallest rank, the same for every layer, that keeps this share of the adapter's energy."""
        return uniform_rank([torch.tensor(layer.values, dtype=torch.float64) for layer in self.layers], share)

    def size_at(self, rank: int) -> int:
        """Numbers in a plain adapter of these layers at this rank, no layer above what it has."""
        return sum(min(rank, max(len(layer.values), 1)) * layer.parameters_per_rank for layer in self.layers)

    def by_block(self) -> dict[str, Spectrum]:
        """The same by block of the model, in the order in which the blocks appear."""
        blocks: dict[str, list[LayerSpectrum]] = {}
        for layer in self.layers:
            blocks.setdefault(block_of(layer.key), []).append(layer)
        return {block: Spectrum(tuple(layers)) for block, layers in blocks.items()}

    def as_dict(self) -> dict[str, Any]:
        """For JSON; singular values and norms at strength 1. `kept` is the curve, by rank from 0 on, and
        `parameters_at` what a plain adapter of each of these ranks would hold."""
        return {
            "norm": self.norm,
            "rank_for": {f"{share:.2f}": self.rank_for(share) for share in SHARES},
            "kept": list(self.curve()),
            "parameters": self.parameters,
            "parameters_at": [self.size_at(rank) for rank in range(len(self.curve()))],
            "notes": list(self.notes),
            "layers": [
                {
                    "key": layer.key,
                    "block": block_of(layer.key),
                    "rank": layer.rank,
                    "norm": layer.norm,
                    "stable_rank": layer.stable_rank,
                    "rank_for": {f"{share:.2f}": layer.rank_for(share) for share in SHARES},
                    "singular_values": list(layer.values),
                }
                for layer in self.layers
            ],
        }


def spectrum(adapter: Adapter) -> Spectrum:
    """The singular values of every layer at strength 1, float64, one layer after the other."""
    layers = []
    for key, layer in adapter.layers.items():
        out, *inputs = layer.shape
        values = tuple(singular_values(layer).tolist())
        layers.append(LayerSpectrum(key, layer.rank, values, layer.parameters, out + math.prod(inputs)))
    dora = sum(layer.needs_base for layer in adapter.layers.values())
    return Spectrum(tuple(layers), (_DORA_NOTE.format(dora),) if dora else ())


def smallest_rank(values: Tensor, share: float) -> int:
    """How many of a layer's falling singular values hold this share of their energy; at least 1."""
    return _smallest(values[: rank_of(values)].double().square(), share)


def uniform_rank(values: Sequence[Tensor], share: float) -> int:
    """The smallest rank, one for all layers, that keeps this share of the energy of all; values fall in each layer."""
    by_index = torch.zeros(max((len(s) for s in values), default=0), dtype=torch.float64)
    for s in values:
        by_index[: len(s)] += s.double().square()
    return _smallest(by_index, share)


def _smallest(energies: Tensor, share: float) -> int:
    if not energies.any():
        return 1
    kept = energies.cumsum(0)
    return min(int((kept < share * kept[-1] * (1 - _ROUNDING)).sum()) + 1, len(energies))
