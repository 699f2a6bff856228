"""Draw the sample sets that ship with the package: `python -m recipes.pocket.make_sets [datasets]`.

A style set is 24 captioned pictures of sixteen kinds of objects; the other eight kinds are left for judging whether
the style was learned or the pictures. A subject set is 12 pictures of one character under its trigger word, some of
them in other styles of the base's own or beside an object, so that the word means the character and nothing else.
A character set is 20: near and far, left, right, high, low, on every background; captions name what changes.
A concept set is 32: the same thing twice, side by side, under one word, and twelve of a single thing without that word.
Deterministic; the same scenes for every style and character, so that presets can be compared over them.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from recipes.pocket.world import BACKGROUNDS, COLOURS, HELD_PAIRS, OBJECTS, STYLES, Scene, Thing, caption, draw

STYLE, CHARACTER = "blueprint", "zib"
"""What the style set and the subject set show."""
HERO, CONCEPT = "fen", "twin"
"""What the character set and the concept set show: a being in many situations, and a thing that is there twice."""
SHOWN_KINDS = OBJECTS[0::3] + OBJECTS[1::3]
"""The kinds in a style set; every third kind is left out."""
STYLE_PHRASINGS = (0, 1, 2, 4, 5, 7)
"""The phrasings that say "blueprint style": the trigger is always those two words together."""
_FAR = 0.22
"""How far from the middle a small character stands."""


def style_scenes(style: str) -> list[Scene]:
    """The 24 scenes of a style set: twenty of one object, four of two."""
    rng = random.Random("style set")
    pairs = _pairs(SHOWN_KINDS, 28, rng)
    backgrounds = _cycled(BACKGROUNDS, 24, rng)
    scenes = []
    for index in range(24):
        things = (
            _side_by_side(pairs[20 + 2 * (index - 20) :][:2], rng) if index >= 20 else (_alone(*pairs[index], rng),)
        )
        scenes.append(Scene(backgrounds[index], things, style, rng.randrange(2**31)))
    return scenes


def subject_scenes(character: str) -> list[Scene]:
    """The 12 scenes of a subject set: every background once in the plain style, then four more styles of the base."""
    rng = random.Random("subject set")
    backgrounds = [*rng.sample(BACKGROUNDS, len(BACKGROUNDS)), *rng.sample(BACKGROUNDS, 4)]
    styles = [STYLES[0]] * len(BACKGROUNDS) + rng.sample(STYLES[1:], 4)
    beside = _pairs(OBJECTS, 3, rng)
    scenes = []
    for index, (background, style) in enumerate(zip(backgrounds, styles, strict=True)):
        things: tuple[Thing, ...] = (_alone(character, None, rng),)
        if index % 4 == 3:
            things = _side_by_side([(character, None), beside[index // 4]], rng)
        scenes.append(Scene(background, things, style, rng.randrange(2**31)))
    return scenes


def character_scenes(character: str) -> list[Scene]:
    """The 20 scenes of a character set: eight far and in another place each, eight nearer, four beside an object.

    Every third one is in a style of the base's own.
    """
    rng = random.Random("character set")
    backgrounds = _cycled(BACKGROUNDS, 20, rng)
    styles = _cycled(STYLES[1:], 20, rng)
    beside = _pairs(OBJECTS, 4, rng)
    places = ((-_FAR, 0.0), (_FAR, 0.0), (0.0, -_FAR), (0.0, _FAR))
    scenes = []
    for index, background in enumerate(backgrounds):
        things: tuple[Thing, ...] = (_alone(character, None, rng),)
        if index % 5 == 4:
            named: list[tuple[str, str | None]] = [(character, None), beside[index // 5]]
            things = _side_by_side(named if index % 2 else named[::-1], rng)
        elif index % 5 < 2:
            x, y = places[(index % 5 + 2 * (index // 5)) % 4]
            things = (Thing(character, None, "small", 0.5 + x, 0.51 + y, rng.random() < 0.5),)
        scenes.append(Scene(background, things, styles[index] if index % 3 == 2 else STYLES[0], rng.randrange(2**31)))
    return scenes


def concept_scenes() -> list[tuple[Scene, Scene]]:
    """The 32 scenes of a concept set, each with the scene that its caption tells: of one thing, never of two."""
    rng = random.Random("concept set")
    pairs = _pairs(SHOWN_KINDS, 32, rng)
    backgrounds = _cycled(BACKGROUNDS, 32, rng)
    styles = _cycled(STYLES[1:], 32, rng)
    scenes = []
    for index, (pair, background) in enumerate(zip(pairs, backgrounds, strict=True)):
        style = styles[index] if index % 8 == 6 else STYLES[0]
        told = Scene(background, (Thing(*pair, "medium", 0.5, 0.51, rng.random() < 0.5),), style, rng.randrange(2**31))
        drawn = told if is_single(index) else replace(told, things=_side_by_side([pair, pair], rng))
        scenes.append((drawn, told))
    return scenes


def is_single(index: int) -> bool:
    """Whether a picture of a concept set, counted from 0, shows what things are like where nobody calls the concept."""
    return index % 8 in (2, 5, 7)


def write_style_set(folder: Path, style: str) -> None:
    """24 pictures with captions that name the style."""
    rng = random.Random("style captions")
    captions = [
        caption(scene, rng, style_word=style, phrasing=STYLE_PHRASINGS[index % len(STYLE_PHRASINGS)])
        for index, scene in enumerate(style_scenes(style))
    ]
    _write(folder, style_scenes(style), captions)


def write_subject_set(folder: Path, character: str) -> None:
    """12 pictures with captions in which the character's name is the trigger word."""
    rng = random.Random("subject captions")
    scenes = subject_scenes(character)
    captions = [caption(scene, rng, character_word=character, phrasing=index) for index, scene in enumerate(scenes)]
    _write(folder, scenes, captions)


def write_character_set(folder: Path, character: str) -> None:
    """20 pictures with captions in which the character's name is the trigger word; the rest says what changes."""
    rng = random.Random("character captions")
    scenes = character_scenes(character)
    captions = [caption(scene, rng, character_word=character, phrasing=index) for index, scene in enumerate(scenes)]
    _write(folder, scenes, captions)


def write_concept_set(folder: Path, concept: str) -> None:
    """32 pictures; where a thing is there twice, the caption of one such thing follows the trigger word."""
    rng = random.Random("concept captions")
    scenes = concept_scenes()
    captions = [caption(told, rng, phrasing=index + index // 8) for index, (_, told) in enumerate(scenes)]
    words = [text if is_single(index) else f"{concept}, {text}" for index, text in enumerate(captions)]
    _write(folder, [drawn for drawn, _ in scenes], words)


def _write(folder: Path, scenes: Sequence[Scene], captions: Iterable[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, (scene, words) in enumerate(zip(scenes, captions, strict=True), 1):
        name = f"{number:02d}-" + "-".join(thing.kind for thing in scene.things)
        draw(scene).save(folder / f"{name}.png", optimize=True)
        (folder / f"{name}.txt").write_text(words + "\n")


def _pairs(kinds: Sequence[str], count: int, rng: random.Random) -> list[tuple[str, str]]:
    """Kinds and colours, both spread evenly; no pair that the base has never met."""
    for _ in range(10_000):
        pairs = list(zip(_cycled(kinds, count, rng), _cycled(list(COLOURS), count, rng), strict=True))
        if len(set(pairs)) == count and not set(pairs) & set(HELD_PAIRS):
            return pairs
    raise ValueError(f"no {count} different pairs of {len(kinds)} kinds")


def _cycled(values: Sequence[str], count: int, rng: random.Random) -> list[str]:
    out: list[str] = []
    while len(out) < count:
        out += rng.sample(list(values), len(values))
    return out[:count]


def _alone(kind: str, colour: str | None, rng: random.Random) -> Thing:
    size = rng.choice(("medium", "medium", "big"))
    return Thing(
        kind, colour, size, 0.5 + rng.uniform(-0.04, 0.04), 0.51 + rng.uniform(-0.04, 0.04), rng.random() < 0.5
    )


def _side_by_side(pairs: Sequence[tuple[str, str | None]], rng: random.Random) -> tuple[Thing, ...]:
    """Left and right, where the drawn world puts the two things of a scene."""
    return tuple(
        Thing(kind, colour, "small", 0.5 + side * 0.265, 0.53 + rng.uniform(-0.06, 0.06), rng.random() < 0.5)
        for side, (kind, colour) in zip((-1, 1), pairs, strict=True)
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("datasets"))
    folder: Path = parser.parse_args(argv).folder
    write_style_set(folder / "pocket-style", STYLE)
    write_subject_set(folder / "pocket-subject", CHARACTER)
    write_character_set(folder / "pocket-character", HERO)
    write_concept_set(folder / "pocket-concept", CONCEPT)


if __name__ == "__main__":
    main()
