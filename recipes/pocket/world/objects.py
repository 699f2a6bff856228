"""The 24 object kinds by name."""

from __future__ import annotations

import random

from recipes.pocket.world import living, things
from recipes.pocket.world.shapes import Shape, fitted, wobble

_ORDER = ("tree", "flower", "mushroom", "cactus", "house", "car", "boat", "rocket", "cup", "cake", "apple", "umbrella",
          "balloon", "star", "heart", "key", "lamp", "hat", "chair", "fish", "cat", "bird", "butterfly", "snail")
_KINDS = {**living.KINDS, **things.KINDS}
OBJECTS: tuple[str, ...] = tuple(name for name in _ORDER if name in _KINDS)


def object_shapes(kind: str, rng: random.Random) -> list[Shape]:
    """The shapes of one object, in a box of size one around the origin."""
    return fitted(_KINDS[kind](wobble(rng)))
