"""The committed prompts of the judged acceptance, with their labels.

`python -m recipes.pocket.judge.prompts` writes tests/judge/prompts.json anew: fixed seed, balanced over kinds,
colours, backgrounds and phrasings. Two lists:

    base   512 prompts: 320 of one object, 96 of one object in a (kind, colour) pair the base has never met, 96 of two
    lora   32 prompts outside the sample sets: no (kind, colour) pair of theirs, and a third are of other kinds.
           `@style` stands for a style's name, `@character` for a character's trigger word, and `ordinary` is the
           character's prompt with an object in the character's place.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

FILE = Path(__file__).resolve().parents[3] / "tests" / "judge" / "prompts.json"
SEED = 512
Kind = Literal["single", "held", "two"]


@dataclass(frozen=True)
class BasePrompt:
    """A prompt for the base, and what its picture must show."""

    prompt: str
    kind: Kind
    style: str
    background: str
    objects: tuple[str, ...]
    colours: tuple[str, ...]
    seed: int


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
    entries = json.loads(FILE.read_text())["base"]
    return [BasePrompt(**{**e, "objects": tuple(e["objects"]), "colours": tuple(e["colours"])}) for e in entries]


def read_lora() -> list[LoraPrompt]:
    """The 32 prompts outside the sample sets."""
    return [LoraPrompt(**entry) for entry in json.loads(FILE.read_text())["lora"]]


def base_prompts() -> list[BasePrompt]:
    """Made anew from the drawn world."""
    from recipes.pocket.world import BACKGROUNDS, COLOURS, HELD_PAIRS, OBJECTS, PHRASINGS, STYLES, Scene, caption

    rng = random.Random(SEED)
    seen = {kind: [c for c in COLOURS if (kind, c) not in HELD_PAIRS] for kind in OBJECTS}
    kinds = _cycled(OBJECTS, 320, rng)
    singles = _coloured(kinds, seen, rng)
    held = [pair for _ in range(4) for pair in rng.sample(HELD_PAIRS, len(HELD_PAIRS))]
    firsts, seconds = _coloured(_cycled(OBJECTS, 96, rng), seen, rng), []
    for first in firsts:
        second = first
        while second[0] == first[0] or second[1] == first[1]:
            kind = rng.choice(OBJECTS)
            second = (kind, rng.choice(seen[kind]))
        seconds.append(second)

    prompts: list[BasePrompt] = []
    plans: tuple[tuple[Kind, list[list[tuple[str, str]]]], ...] = (
        ("single", [[pair] for pair in singles]),
        ("held", [[pair] for pair in held]),
        ("two", [list(both) for both in zip(firsts, seconds, strict=True)]),
    )
    for kind, plan in plans:
        backgrounds = _cycled(BACKGROUNDS, len(plan), rng)
        phrasings = _cycled([str(i) for i in range(len(PHRASINGS))], len(plan), rng)
        # One single prompt in four asks for one of the base's other styles by name.
        styles = _cycled(STYLES[1:], len(plan), rng)
        for index, pairs in enumerate(plan):
            style = styles[index] if kind == "single" and index % 4 == 3 else STYLES[0]
            scene = Scene(backgrounds[index], _things(pairs, rng), style)
            text = caption(scene, rng, phrasing=int(phrasings[index]))
            names, colours = zip(*pairs, strict=True)
            prompts.append(BasePrompt(text, kind, style, scene.background, names, colours, 0))
    # Mixed so that every beginning of the list holds the three kinds in their proportion.
    sizes = {kind: len(plan) for kind, plan in plans}
    numbered: dict[str, int] = dict.fromkeys(sizes, 0)

    def place(prompt: BasePrompt) -> float:
        numbered[prompt.kind] += 1
        return (numbered[prompt.kind] - 0.5) / sizes[prompt.kind]

    placed = sorted(((place(prompt), prompt) for prompt in prompts), key=lambda pair: pair[0])
    return [BasePrompt(**{**asdict(prompt), "seed": 10_000 + i}) for i, (_, prompt) in enumerate(placed)]


def lora_prompts() -> list[LoraPrompt]:
    """Made anew from the drawn world and the sample sets."""
    from recipes.pocket.make_sets import SHOWN_KINDS, STYLE, style_scenes
    from recipes.pocket.world import BACKGROUNDS, COLOURS, HELD_PAIRS, OBJECTS, Scene, Thing, caption

    rng = random.Random(SEED + 1)
    shown = {(thing.kind, thing.colour) for scene in style_scenes(STYLE) for thing in scene.things}
    allowed = {kind: [c for c in COLOURS if (kind, c) not in HELD_PAIRS and (kind, c) not in shown] for kind in OBJECTS}
    new_kinds = [kind for kind in OBJECTS if kind not in SHOWN_KINDS]
    kinds = [k for pair in zip(_cycled(new_kinds, 11, rng), _cycled(SHOWN_KINDS, 11, rng), strict=True) for k in pair]
    kinds += _cycled([kind for kind in SHOWN_KINDS if kind not in kinds], 10, rng)
    pairs = _coloured(kinds, allowed, rng)
    prompts = []
    for index, (pair, background) in enumerate(zip(pairs, _cycled(BACKGROUNDS, 32, rng), strict=True)):
        phrasing = (0, 1, 2, 4, 5, 7)[index % 6]  # those that say "@style style", as the sets do
        scene = Scene(background, _things([pair], rng))
        hero = Scene(background, (Thing("@character", None, scene.things[0].size, 0.5, 0.51),))
        prompts.append(
            LoraPrompt(
                style=caption(scene, rng, style_word="@style", phrasing=phrasing),
                character=caption(hero, rng, phrasing=phrasing),
                both=caption(hero, rng, style_word="@style", phrasing=phrasing),
                ordinary=caption(scene, rng, phrasing=phrasing),
                background=background,
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


def _things(pairs: Sequence[tuple[str, str]], rng: random.Random) -> tuple:
    """One thing in the middle, or two side by side."""
    from recipes.pocket.world import Thing

    if len(pairs) == 1:
        return (Thing(*pairs[0], rng.choice(("medium", "medium", "big", "small")), 0.5, 0.51),)
    return tuple(Thing(*pair, "small", 0.5 + side * 0.265, 0.53) for side, pair in zip((-1, 1), pairs, strict=True))


def main() -> None:
    text = {"base": [asdict(p) for p in base_prompts()], "lora": [asdict(p) for p in lora_prompts()]}
    lines = [f'"{name}": [\n' + ",\n".join(json.dumps(e) for e in entries) + "\n]" for name, entries in text.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
