"""Scenes in words: short lower-case captions from a small vocabulary."""

from __future__ import annotations

import random

from recipes.pocket.world.backgrounds import BACKGROUNDS
from recipes.pocket.world.characters import CHARACTERS
from recipes.pocket.world.objects import OBJECTS
from recipes.pocket.world.palette import COLOURS
from recipes.pocket.world.scene import Scene, Thing
from recipes.pocket.world.styles import HELD_STYLES, STYLES

PHRASINGS: tuple[str, ...] = (
    "{things} on a {back} background{, style style}",
    "{things}, {back} background{, style style}",
    "picture of {things}, {back} background{, style style}",
    "{style }drawing: {things}, {back} background",
    "{things} with a {back} background{ in style style}",
    "{style style, }{things}, {back} background",
    "{style }drawing of {things} on a {back} background",
    "{back} background with {things}{, style style}",
)
"""Sentence patterns; a brace that holds "style" is left out whole when the style is not named."""
_SIZES = ("small", "big")
_PLACES = ("left", "right", "top", "bottom")
_GLUE = ("a", "an", "and", "at", "background", "drawing", "in", "of", "on", "picture", "style", "the", "with", ",",
         ":")
WORDS: tuple[str, ...] = tuple(dict.fromkeys((*_GLUE, *_SIZES, *_PLACES, *OBJECTS, *COLOURS, *BACKGROUNDS, *STYLES,
                                              *HELD_STYLES, *CHARACTERS)))
"""Every word that a caption without trigger words can hold."""


def caption(scene: Scene, rng: random.Random, *, style_word: str | None = None, character_word: str | None = None,
            phrasing: int | None = None) -> str:
    """A caption of the scene. Trigger words stand in for the style's name and for the character."""
    style = style_word or scene.style
    named = style_word is not None or scene.style != "plain" or rng.random() < 0.2
    index = rng.randrange(len(PHRASINGS)) if phrasing is None else phrasing % len(PHRASINGS)
    sides = len(scene.things) == 2 and rng.random() < 0.5
    things = " and ".join(_thing(t, i, sides, len(scene.things) == 1, rng, character_word)
                          for i, t in enumerate(scene.things))
    text = PHRASINGS[index]
    for slot in ("{, style style}", "{ in style style}", "{style style, }", "{style }"):
        words = slot[1:-1].replace("style", style, 1) if named else ""
        text = text.replace(slot, words)
    return text.format(things=things, back=scene.background)


def _thing(thing: Thing, index: int, sides: bool, alone: bool, rng: random.Random, word: str | None) -> str:
    size = "" if thing.size == "medium" else thing.size
    if thing.colour is None:
        name = word or thing.kind
        text = f"a {size} {name}" if size else name
    else:
        name = " ".join(w for w in (size, thing.colour, thing.kind) if w)
        text = f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
    if sides:
        return f"{text} on the {_PLACES[index]}"
    return f"{text}{_place(thing)}" if alone and rng.random() < 0.8 else text


def _place(thing: Thing) -> str:
    """Where a small thing is, when it is off the middle."""
    if thing.size != "small":
        return ""
    if abs(thing.x - 0.5) > 0.14:
        return " on the left" if thing.x < 0.5 else " on the right"
    if abs(thing.y - 0.51) > 0.14:
        return " at the top" if thing.y < 0.5 else " at the bottom"
    return ""
