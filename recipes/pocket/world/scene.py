"""Scenes: what is in a picture, and how to draw one at random."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from recipes.pocket.world.backgrounds import BACKGROUNDS
from recipes.pocket.world.objects import OBJECTS
from recipes.pocket.world.palette import COLOURS
from recipes.pocket.world.styles import STYLES

Pairs = Literal["seen", "held", "any"]

HELD_PAIRS: tuple[tuple[str, str], ...] = (
    ("tree", "purple"), ("flower", "brown"), ("mushroom", "blue"), ("cactus", "pink"), ("house", "cyan"),
    ("car", "gray"), ("boat", "yellow"), ("rocket", "orange"), ("cup", "green"), ("cake", "red"), ("apple", "cyan"),
    ("umbrella", "brown"), ("balloon", "purple"), ("star", "pink"), ("heart", "green"), ("key", "red"),
    ("lamp", "blue"), ("hat", "orange"), ("chair", "yellow"), ("fish", "gray"), ("cat", "blue"), ("bird", "purple"),
    ("butterfly", "orange"), ("snail", "red"),
)
"""Object and colour pairs, one for each object, that a model meets only when it is asked for them."""
_HELD = frozenset(HELD_PAIRS)


@dataclass(frozen=True, slots=True)
class Thing:
    """One object, or one character when `colour` is None; `x` and `y` are its centre in a picture of size one."""

    kind: str
    colour: str | None
    size: str
    x: float
    y: float
    flip: bool = False


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that decides a picture."""

    background: str
    things: tuple[Thing, ...]
    style: str = "plain"
    jitter: int = 0


def sample_scene(rng: random.Random, *, styles: Sequence[str] = STYLES, pairs: Pairs = "seen",
                 count: int | None = None, character: str | None = None) -> Scene:
    """A random scene. With `character`, the first thing is that character."""
    if count is None:
        count = 1 if rng.random() < 0.7 else 2
    kinds = [_pair(rng, pairs) for _ in range(count)]
    while count == 2 and (kinds[0][0] == kinds[1][0] or kinds[0][1] == kinds[1][1]):
        kinds[1] = _pair(rng, pairs)
    named: list[tuple[str, str | None]] = list(kinds)
    if character is not None:
        named[0] = (character, None)
    things = (_alone(rng, *named[0]),) if count == 1 else _side_by_side(rng, named)
    return Scene(rng.choice(BACKGROUNDS), things, rng.choice(list(styles)), rng.randrange(2**31))


def _pair(rng: random.Random, pairs: Pairs) -> tuple[str, str]:
    if pairs == "held":
        return rng.choice(HELD_PAIRS)
    while True:
        pair = (rng.choice(OBJECTS), rng.choice(list(COLOURS)))
        if pairs == "any" or pair not in _HELD:
            return pair


def _alone(rng: random.Random, kind: str, colour: str | None) -> Thing:
    size = rng.choice(("small", "medium", "medium", "big"))
    x, y = 0.5 + rng.uniform(-0.04, 0.04), 0.51 + rng.uniform(-0.04, 0.04)
    if size == "small":
        far = rng.uniform(0.21, 0.24)
        dx, dy = rng.choice(((0, 0), (-far, 0), (far, 0), (0, -far), (0, far)))
        x, y = x + dx, y + dy
    return Thing(kind, colour, size, x, y, rng.random() < 0.5)


def _side_by_side(rng: random.Random, named: Sequence[tuple[str, str | None]]) -> tuple[Thing, ...]:
    sizes = rng.choice((("small", "small"), ("medium", "small"), ("small", "medium")))
    things = []
    for side, (kind, colour), size in zip((-1, 1), named, sizes, strict=True):
        centre = 0.5 + side * (0.205 if size == "medium" else 0.265) + rng.uniform(-0.015, 0.015)
        things.append(Thing(kind, colour, size, centre, 0.53 + rng.uniform(-0.06, 0.06), rng.random() < 0.5))
    return tuple(things)
