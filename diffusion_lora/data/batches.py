"""Which pictures a step sees, and how: a function of (seed, step) and the size of the set, never of what came before.

So a resumed run sees what it would have seen, and nothing of a random generator's state has to be stored. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_ORDER, _CHANCE = 1, 2  # separate streams of numbers for separate questions


@dataclass(frozen=True)
class Selection:
    """The pictures of one step: indices, and for each whether it is mirrored and whether it loses its caption."""

    indices: tuple[int, ...]
    mirrored: tuple[bool, ...]
    uncaptioned: tuple[bool, ...]


def select(
    step: int, *, pictures: int, count: int, seed: int, flip: bool = False, caption_dropout: float = 0.0
) -> Selection:
    """The `count` pictures of step 0, 1, ...: the set is gone through in a new random order each time round."""
    places = range(step * count, (step + 1) * count)
    rounds = {place // pictures for place in places}
    orders = {turn: np.random.default_rng((_ORDER, seed, turn)).permutation(pictures) for turn in rounds}
    chances = np.random.default_rng((_CHANCE, seed, step)).random((2, count))
    return Selection(
        indices=tuple(int(orders[place // pictures][place % pictures]) for place in places),
        mirrored=tuple((chances[0] < 0.5).tolist()) if flip else (False,) * count,
        uncaptioned=tuple((chances[1] < caption_dropout).tolist()),
    )
