"""The exponential moving average of an adapter under training (Polyak & Juditsky 1992): smoother than its last step.

It is what previews show and what is saved; training goes on from the weights themselves, and a checkpoint holds both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def given_back(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Whatever happens to these tensors inside, afterwards they hold what they held before, bit for bit."""
    before = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, kept in before:
                tensor.copy_(kept)


class Ema:
    """The average of some flat segments; one call a segment and update.

    Update n decays it by min(decay, (1 + n) / (10 + n)), so that a short run does not hang on to its start. Updates are
    counted, so going on from a state gives the same numbers.
    """

    def __init__(self, segments: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._segments = dict(segments)
        self._average = {name: segment.detach().clone() for name, segment in segments.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights in."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, average in self._average.items():
            average.lerp_(self._segments[name], 1.0 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the segments hold the average; afterwards what they held before, bit for bit."""
        with given_back(self._segments.values()):
            with torch.no_grad():
                for name, segment in self._segments.items():
                    segment.copy_(self._average[name])
            yield

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "average": {name: tensor.cpu() for name, tensor in self._average.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.updates = int(state["updates"])
        for name, average in self._average.items():
            average.copy_(state["average"][name])

