"""The eight backgrounds: a sky of two tones and a few big calm shapes, in a picture of size one."""

from __future__ import annotations

import math
import random

from recipes.pocket.world.palette import SKIES
from recipes.pocket.world.shapes import Shape, blob, box, ell, moved, poly

BACKGROUNDS: tuple[str, ...] = tuple(SKIES)


def background_shapes(name: str, rng: random.Random) -> list[Shape]:
    """The shapes behind the things; mirrored and shifted a little at random."""
    shift = rng.uniform(-0.03, 0.03)
    shapes = _MAKERS[name](rng)
    flip = rng.random() < 0.5
    return [moved(s, -1.0 if flip else 1.0, 1.0, (1.0 if flip else 0.0), shift) for s in shapes]


def _ground(height: float, tilt: float, role: str) -> Shape:
    """A gently curved piece of land filling the picture below `height`."""
    return blob([(-0.4, height + tilt), (0.2, height), (0.7, height - tilt * 0.4), (1.4, height + tilt), (1.6, 1.6),
                 (-0.6, 1.6)], role)


def _cloud(cx: float, cy: float, r: float) -> Shape:
    bumps = [(-1.0, 0.1, 0.55), (-0.1, -0.3, 0.85), (0.95, 0.05, 0.6)]
    points = [(cx - 1.5 * r, cy + 0.6 * r)]
    for bx, by, br in bumps:
        for step in range(-3, 4):
            angle = math.radians(step * 24)
            points.append((cx + r * (bx + br * math.sin(angle)), cy + r * (by - br * math.cos(angle))))
    points.append((cx + 1.5 * r, cy + 0.6 * r))
    return poly(points, "cloud", 0.03)


def _spark(cx: float, cy: float, r: float) -> Shape:
    points = []
    for i in range(8):
        reach = r if i % 2 == 0 else r * 0.42
        points.append((cx + reach * math.cos(math.tau * i / 8), cy + reach * math.sin(math.tau * i / 8)))
    return poly(points, "moon", 0.02, "mark")


def _sky(rng: random.Random) -> list[Shape]:
    return [_cloud(0.2, 0.16, 0.11), _cloud(0.86, 0.3, rng.uniform(0.09, 0.11)), _cloud(0.14, 0.84, 0.1),
            _cloud(0.8, 0.9, 0.11)]


def _meadow(rng: random.Random) -> list[Shape]:
    return [ell(0.06, 0.6, 0.16, 0.14, "bush"), ell(0.93, 0.6, rng.uniform(0.12, 0.15), 0.12, "bush"),
            _ground(0.6, 0.05, "far_hill"), _ground(0.78, -0.06, "hill")]


def _beach(rng: random.Random) -> list[Shape]:
    return [ell(0.83, 0.17, 0.11, 0.11, "sun"), box(-0.3, rng.uniform(0.44, 0.48), 1.3, 0.9, "sea", 0.0),
            blob([(-0.3, 0.8), (0.15, 0.76), (0.4, 0.68), (0.75, 0.66), (1.3, 0.6), (1.5, 1.5), (-0.5, 1.5)], "sand")]


def _night(rng: random.Random) -> list[Shape]:
    moon = blob([(0.16, 0.05), (0.25, 0.09), (0.29, 0.18), (0.25, 0.27), (0.16, 0.31), (0.07, 0.28), (0.15, 0.25),
                 (0.19, 0.18), (0.15, 0.11), (0.08, 0.08)], "moon")
    return [moon, _spark(0.86, 0.14, 0.06), _spark(0.92, rng.uniform(0.44, 0.5), 0.045), _spark(0.07, 0.52, 0.045),
            _ground(0.84, 0.05, "dark_hill")]


def _snow(rng: random.Random) -> list[Shape]:
    spots = [(0.1, 0.12), (0.37, 0.09), (0.91, 0.12), (0.65, 0.07), (0.07, 0.42), (0.93, 0.42)]
    flakes = [ell(x, y + rng.uniform(-0.02, 0.02), 0.036, 0.036, "cloud", "mark") for x, y in spots]
    return [*flakes, _ground(0.66, 0.09, "snow_far"), _ground(0.8, -0.07, "snow_near")]


def _sunset(rng: random.Random) -> list[Shape]:
    x = rng.uniform(0.42, 0.58)
    return [ell(x, 0.7, 0.46, 0.46, "halo"), ell(x, 0.7, 0.3, 0.3, "low_sun"), _ground(0.72, 0.03, "dusk")]


def _room(rng: random.Random) -> list[Shape]:
    x = rng.uniform(0.04, 0.07)
    return [box(-0.3, 0.76, 1.3, 1.5, "floor", 0.0), ell(0.5, 0.9, 0.42, 0.08, "rug"),
            box(x, 0.08, x + 0.32, 0.46, "frame", 0.02), box(x + 0.035, 0.115, x + 0.142, 0.425, "pane", 0.01),
            box(x + 0.178, 0.115, x + 0.285, 0.425, "pane", 0.01)]


def _paper(rng: random.Random) -> list[Shape]:
    return []


_MAKERS = {"sky": _sky, "meadow": _meadow, "beach": _beach, "night": _night, "snow": _snow, "sunset": _sunset,
           "room": _room, "paper": _paper}
