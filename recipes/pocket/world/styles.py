"""The styles by name: those that the model is trained on, and those held back."""

from __future__ import annotations

from collections.abc import Callable

from recipes.pocket.world import base_styles as base
from recipes.pocket.world import held_styles as held
from recipes.pocket.world.stage import Array, Stage

_BASE = (base.plain, base.ink, base.pastel, base.poster, base.glass, base.cutout, base.crayon, base.shadow)
_HELD = (held.blueprint, held.chalk, held.pixel, held.neon, held.watercolour, held.woodcut)
STYLES: tuple[str, ...] = tuple(f.__name__ for f in _BASE)
HELD_STYLES: tuple[str, ...] = tuple(f.__name__ for f in _HELD)
CRISP: frozenset[str] = frozenset({held.pixel.__name__})
"""Styles whose hard edges are left as they are; the others are very slightly softened."""
RENDER: dict[str, Callable[[Stage], Array]] = {f.__name__: f for f in (*_BASE, *_HELD)}
