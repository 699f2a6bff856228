"""What the captioner says of a scene: always the same words in the same order, in the grammar of the world's captions.

`a small red cat on the left and a big blue car on the right on a sky background, ink style`. The place is told where a
caption of the world may tell it. What the base does not know has no name here either: a held style is left unnamed and
a held character is "a character", so that a rule can put a trigger word in its place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from recipes.pocket.world import BACKGROUNDS, COLOURS, OBJECTS, STYLES, Scene, Thing

CHARACTER = "character"
_SIZES = ("small", "big")
_OFF_THE_MIDDLE = 0.14
_THING = re.compile(rf"an? (?:(?:{'|'.join(_SIZES)}) )?(?:({'|'.join(COLOURS)}) ({'|'.join(OBJECTS)})|({CHARACTER}))\b")
_BACKGROUND = re.compile(rf"\b({'|'.join(BACKGROUNDS)}) background\b")
_STYLE = re.compile(rf"\b({'|'.join(STYLES)}) style\b")

_GLUE = ("a", "an", "and", "at", "on", "the", "background", "style", ",")
WORDS: tuple[str, ...] = tuple(dict.fromkeys((*_GLUE, *_SIZES, "left", "right", "top", "bottom", CHARACTER,
                                              *OBJECTS, *COLOURS, *BACKGROUNDS, *STYLES)))
"""Every word the captioner can say."""


@dataclass(frozen=True)
class Said:
    """What a caption says: the things as (colour, kind), a character having no colour, the background, the style."""

    things: frozenset[tuple[str | None, str]]
    background: str | None
    style: str | None


def caption_of(scene: Scene) -> str:
    """The one caption of a scene."""
    alone = len(scene.things) == 1
    told = [_thing(thing) + (_place(thing) if alone else side)
            for thing, side in zip(scene.things, (" on the left", " on the right"), strict=False)]
    style = f", {scene.style} style" if scene.style in STYLES and scene.style != "plain" else ""
    things = " and ".join(told)
    return f"{things} on a {scene.background} background{style}" if things else f"{scene.background} background{style}"


def said(caption: str) -> Said:
    """What a caption says, in whatever order; the other way round from `caption_of`."""
    background, style = _BACKGROUND.search(caption), _STYLE.search(caption)
    things = frozenset((colour or None, kind or figure) for colour, kind, figure in _THING.findall(caption))
    return Said(things, background and background[1], style and style[1])


def mirrored(scene: Scene) -> Scene:
    """The scene as a mirror shows it: the first thing is the left one again."""
    things = tuple(replace(thing, x=1 - thing.x, flip=not thing.flip) for thing in reversed(scene.things))
    return replace(scene, things=things)


def _thing(thing: Thing) -> str:
    kind = thing.kind if thing.colour is not None else CHARACTER
    words = [word for word in ("" if thing.size == "medium" else thing.size, thing.colour, kind) if word]
    return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"


def _place(thing: Thing) -> str:
    if thing.size != "small":
        return ""
    if abs(thing.x - 0.5) > _OFF_THE_MIDDLE:
        return " on the left" if thing.x < 0.5 else " on the right"
    if abs(thing.y - 0.51) > _OFF_THE_MIDDLE:
        return " at the top" if thing.y < 0.51 else " at the bottom"
    return ""
