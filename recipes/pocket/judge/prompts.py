"""The committed prompts of the judged acceptance, with their labels.

`python -m recipes.pocket.judge.prompts` writes tests/judge/prompts.json anew: fixed seed, balanced over kinds,
colours, backgrounds and phrasings; `scene` is what the prompt describes, ready to be drawn. Two lists:

    base   512 prompts: 320 of one object, 96 of one object in a (kind, colour) pair the base has never met, 96 of two
    lora   32 prompts outside the sample sets: no (kind, colour) pair of theirs, and a third are of other kinds.
           `@style` stands for a style's name, `@character` for a character's trigger word, and `ordinary` is the
           character's prompt with an object in the character's place.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from recipes.pocket import world
from recipes.pocket.make_sets import SHOWN_KINDS, STYLE, STYLE_PHRASINGS, style_scenes

FILE = Path(__file__).resolve().parents[3] / "tests" / "judge" / "prompts.json"
SEED = 512
Kind = Literal["single", "held", "two"]


@dataclass(frozen=True)
class BasePrompt:
    """A prompt for the base and the scene it was written for; `seed` is that of the picture to judge."""

    prompt: str
    kind: Kind
    seed: int
    scene: world.Scene

    @property
    def objects(self) -> list[str]:
        return [thing.kind for thing in self.scene.things]

    @property
    def colours(self) -> list[str]:
        return [str(thing.colour) for thing in self.scene.things]


@dataclass(frozen=True)
class LoraPrompt:
    """A prompt for judging adapters; `style`, `character` and `both` hold placeholders, `ordinary` holds none."""

    style: str
    character: str
    both: str
    ordinary: str
    background: str
    object: str
    colour: str
    seed: int

    def said(self, what: Literal["style", "character", "both"], style: str = "", character: str = "") -> str:
        """The prompt with these words in place of the placeholders."""
        text: str = getattr(self, what)
        return text.replace("@style", style).replace("@character", character)


def read_base() -> list[BasePrompt]:
    """The 512 prompts, in an order of which every beginning is balanced."""
    prompts = []
    for entry in json.loads(FILE.read_text())["base"]:
        scene = entry.pop("scene")
        things = tuple(world.Thing(**thing) for thing in scene.pop("things"))
        prompts.append(BasePrompt(**entry, scene=world.Scene(**scene, things=things)))
    return prompts


def read_lora() -> list[LoraPrompt]:
    """The 32 prompts outside the sample sets."""
    return [LoraPrompt(**entry) for entry in json.loads(FILE.read_text())["lora"]]


def base_prompts() -> list[BasePrompt]:
    """Made anew from the drawn world."""
    rng = random.Random(SEED)
    seen = {kind: [c for c in world.COLOURS if (kind, c) not in world.HELD_PAIRS] for kind in world.OBJECTS}
    firsts = _coloured(_cycled(world.OBJECTS, 96, rng), seen, rng)
    seconds = []
    for first in firsts:
        second = first
        while second[0] == first[0] or second[1] == first[1]:
            kind = rng.choice(world.OBJECTS)
            second = (kind, rng.choice(seen[kind]))
        seconds.append(second)
    plans: dict[Kind, list[list[tuple[str, str]]]] = {
        "single": [[pair] for pair in _coloured(_cycled(world.OBJECTS, 320, rng), seen, rng)],
        "held": [[pair] for _ in range(4) for pair in rng.sample(world.HELD_PAIRS, len(world.HELD_PAIRS))],
        "two": [list(both) for both in zip(firsts, seconds, strict=True)],
    }
    placed: list[tuple[float, BasePrompt]] = []
    for kind, plan in plans.items():
        backgrounds = _cycled(world.BACKGROUNDS, len(plan), rng)
        phrasings = _cycled([str(i) for i in range(len(world.PHRASINGS))], len(plan), rng)
        styles = _cycled(world.STYLES[1:], len(plan), rng)
        for index, pairs in enumerate(plan):
            # One single prompt in four asks for one of the base's other styles by name.
            style = styles[index // 4] if kind == "single" and index % 4 == 3 else world.STYLES[0]
            scene = _scene(pairs, backgrounds[index], style, rng)
            text = world.caption(scene, rng, phrasing=int(phrasings[index]))
            # Sorted by this place, every beginning of the list holds the three kinds in their proportion.
            placed.append(((index + 0.5) / len(plan), BasePrompt(text, kind, 0, scene)))
    placed.sort(key=lambda pair: pair[0])
    return [replace(prompt, seed=10_000 + number) for number, (_, prompt) in enumerate(placed)]


def lora_prompts() -> list[LoraPrompt]:
    """Made anew from the drawn world and the sample sets."""
    rng = random.Random(SEED + 1)
    shown = {(thing.kind, thing.colour) for scene in style_scenes(STYLE) for thing in scene.things}
    taken = {*world.HELD_PAIRS, *shown}
    allowed = {kind: [c for c in world.COLOURS if (kind, c) not in taken] for kind in world.OBJECTS}
    new = _cycled([kind for kind in world.OBJECTS if kind not in SHOWN_KINDS], 11, rng)
    old = _cycled(SHOWN_KINDS, 21, rng)
    kinds = [kind for pair in zip(new, old[:11], strict=True) for kind in pair] + old[11:]
    backgrounds = _cycled(world.BACKGROUNDS, 32, rng)
    prompts = []
    for index, pair in enumerate(_coloured(kinds, allowed, rng)):
        phrasing = STYLE_PHRASINGS[index % len(STYLE_PHRASINGS)]
        scene = _scene([pair], backgrounds[index], world.STYLES[0], rng)
        hero = replace(scene, things=(replace(scene.things[0], kind="@character", colour=None),))
        prompts.append(
            LoraPrompt(
                style=world.caption(scene, rng, style_word="@style", phrasing=phrasing),
                character=world.caption(hero, rng, phrasing=phrasing),
                both=world.caption(hero, rng, style_word="@style", phrasing=phrasing),
                ordinary=world.caption(scene, rng, phrasing=phrasing),
                background=scene.background,
                object=pair[0],
                colour=pair[1],
                seed=20_000 + index,
            )
        )
    return prompts


def _coloured(kinds: Sequence[str], allowed: dict[str, list[str]], rng: random.Random) -> list[tuple[str, str]]:
    """Each kind with the colour least used so far, of those it may have."""
    used: dict[str, int] = {}
    pairs: list[tuple[str, str]] = []
    for kind in kinds:
        options = rng.sample(allowed[kind], len(allowed[kind]))
        colour = min(options, key=lambda c: (pairs.count((kind, c)), used.get(c, 0)))
        used[colour] = used.get(colour, 0) + 1
        pairs.append((kind, colour))
    return pairs


def _cycled(values: Sequence[str], count: int, rng: random.Random) -> list[str]:
    out: list[str] = []
    while len(out) < count:
        out += rng.sample(list(values), len(values))
    return out[:count]


def _scene(pairs: Sequence[tuple[str, str]], background: str, style: str, rng: random.Random) -> world.Scene:
    """A scene composed as the drawn world composes them, with these things in it."""
    scene = world.sample_scene(rng, count=len(pairs))
    things = [replace(thing, kind=kind, colour=c) for thing, (kind, c) in zip(scene.things, pairs, strict=True)]
    rounded = tuple(replace(thing, x=round(thing.x, 3), y=round(thing.y, 3)) for thing in things)
    return replace(scene, background=background, things=rounded, style=style)


def main() -> None:
    text = {"base": [asdict(p) for p in base_prompts()], "lora": [asdict(p) for p in lora_prompts()]}
    lines = [f'"{name}": [\n' + ",\n".join(json.dumps(e) for e in entries) + "\n]" for name, entries in text.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
