"""A scene to a picture."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image, ImageFilter

from recipes.pocket.world.backgrounds import background_shapes
from recipes.pocket.world.characters import CHARACTER_BASE, character_shapes
from recipes.pocket.world.objects import object_shapes
from recipes.pocket.world.palette import BLACK, COLOURS, RGB, resolve
from recipes.pocket.world.scene import Scene, Thing
from recipes.pocket.world.shapes import Shape, moved
from recipes.pocket.world.stage import Part, Stage
from recipes.pocket.world.styles import CRISP, RENDER

SPANS: dict[str, tuple[float, float]] = {"small": (0.40, 0.46), "medium": (0.55, 0.65), "big": (0.72, 0.82)}
"""How much of the picture's width a thing spans, by size."""
_MARGIN = 0.02


def draw(scene: Scene, size_px: int = 128) -> Image.Image:
    """The picture of a scene; the same scene always gives the same picture."""
    side = size_px * 2
    back = [_part(s, side, BLACK) for s in background_shapes(scene.background, random.Random(scene.jitter))]
    crowded = len(scene.things) > 1
    things = [_place(thing, side, random.Random(scene.jitter + 7919 * (i + 1)), crowded)
              for i, thing in enumerate(scene.things)]
    stage = Stage(size_px, scene.background, back, things, scene.jitter)
    picture = RENDER[scene.style](stage)
    image = Image.fromarray(np.clip(picture + 0.5, 0, 255).astype(np.uint8))
    return image if scene.style in CRISP else image.filter(ImageFilter.BoxBlur(0.3 * stage.scale))


def _place(thing: Thing, side: int, rng: random.Random, crowded: bool) -> list[Part]:
    """A thing's parts where they belong, wholly inside the picture."""
    low, high = SPANS[thing.size]
    span = rng.uniform(low, low + 0.02 if crowded else high)
    if thing.colour is None:
        base, shapes = CHARACTER_BASE[thing.kind], character_shapes(thing.kind, rng)
    else:
        base, shapes = COLOURS[thing.colour], object_shapes(thing.kind, rng)
    wide = span * max(abs(x) for s in shapes for x, _ in s.points)
    tall = span * max(abs(y) for s in shapes for _, y in s.points)
    x = min(max(thing.x, wide + _MARGIN), 1 - wide - _MARGIN)
    y = min(max(thing.y, tall + _MARGIN), 1 - tall - _MARGIN)
    return [_part(moved(s, -span if thing.flip else span, span, x, y), side, base) for s in shapes]


def _part(shape: Shape, side: int, base: RGB) -> Part:
    big = moved(shape, side, side, 0.0, 0.0)
    return Part(big.points, big.hole, shape.role, shape.layer, resolve(shape.role, base), base)
