"""Dropout of an adapter under training: masks that are a function of (seed, step, pass, layer), of nothing before.

Three kinds, each with kohya's meaning, but drawn for every picture by itself:

    network     single numbers between down and up are dropped, the rest grows by 1 / (1 - p)
    rank        whole rank rows are dropped, the rest grows by 1 / (1 - p)
    module      a layer's adapter is left out as a whole; nothing grows, so the full adapter is a little stronger

Masks act only while gradients are recorded: previews are drawn without. A gradient checkpoint that computes a layer
again gets the same mask. Whoever trains says when a step and when a pass begins (`Clock`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DropoutRates:
    """Shares that are dropped, each at least 0 and below 1."""

    network: float = 0.0
    rank: float = 0.0
    module: float = 0.0

    def __bool__(self) -> bool:
        return any((self.network, self.rank, self.module))


class Clock:
    """Which step a training is in, and which forward pass of it. Before the first step it stands at -1."""

    __slots__ = ("pass_number", "step")

    def __init__(self) -> None:
        self.step, self.pass_number = -1, 0

    def next_step(self) -> None:
        self.step, self.pass_number = self.step + 1, 0

    def next_pass(self) -> None:
        self.pass_number += 1


@dataclass(frozen=True, slots=True)
class LayerDropout:
    """The masks of one layer, `key`."""

    rates: DropoutRates
    clock: Clock
    seed: int
    key: str

    def on_hidden(self, hidden: Tensor, channel_axis: int) -> Tensor:
        """Network and rank dropout, of ``[batch, ...]`` between down and up with the rank rows along `channel_axis`."""
        if not torch.is_grad_enabled():
            return hidden
        if self.rates.rank:
            shape = [hidden.shape[0], *(1,) * (hidden.ndim - 1)]
            shape[channel_axis] = hidden.shape[channel_axis]
            rows = self._kept("rank", tuple(shape), 1 - self.rates.rank)
            hidden = hidden * (rows / (1 - self.rates.rank)).to(hidden)
        if self.rates.network:
            kept = self._kept("network", tuple(hidden.shape), 1 - self.rates.network, hidden.device)
            hidden = hidden * (kept / (1 - self.rates.network)).to(hidden)
        return hidden

    def on_change(self, change: Tensor) -> Tensor:
        """Module dropout, of all that the adapter adds, ``[batch, ...]``."""
        if not self.rates.module or not torch.is_grad_enabled():
            return change
        kept = self._kept("module", (change.shape[0], *(1,) * (change.ndim - 1)), 1 - self.rates.module)
        return change * kept.to(change)

    def _kept(self, kind: str, shape: tuple[int, ...], share: float, device: torch.device | None = None) -> Tensor:
        """Zeros and ones; drawn on the CPU, to be the same everywhere, but large ones where they are used."""
        numbers = f"{kind} {self.seed} {self.clock.step} {self.clock.pass_number} {self.key}"
        digest = hashlib.sha256(numbers.encode()).digest()
        generator = torch.Generator(device or "cpu").manual_seed(int.from_bytes(digest[:7], "little"))
        return torch.empty(shape, device=device).bernoulli_(share, generator=generator)
