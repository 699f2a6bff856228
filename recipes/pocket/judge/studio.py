"""The base, the judge and the prompts in one place: draw what is asked for, and ask the judge about it.

One function for each thing that the acceptance and the tests measure; each gives plain numbers in percent. Which
numbers are enough is said where they are used.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffusion_lora.families.family import decode, encode_image, load_base
from diffusion_lora.families.model import Model
from diffusion_lora.generate.engine import Engine
from diffusion_lora.generate.region import BOXES, Region
from diffusion_lora.generate.request import LoraUse, Request
from recipes.pocket import world
from recipes.pocket.judge.damage import nothing
from recipes.pocket.judge.drawings import scenes
from recipes.pocket.judge.frechet import frechet_distance
from recipes.pocket.judge.model import Judge, Opinion, Part, as_batch
from recipes.pocket.judge.prompts import BasePrompt, LoraPrompt

STEPS, GUIDANCE, BATCH = 20, 4.0, 16
WEIGHTS = Path(__file__).resolve().parents[3] / "tests" / "judge" / "judge.safetensors"
Shares = dict[str, float]


@dataclass(frozen=True)
class Studio:
    """A base that draws and a judge that looks."""

    model: Model
    engine: Engine
    judge: Judge

    @classmethod
    def open(cls, base: str = "pocket", device: str = "auto", weights: Path = WEIGHTS) -> Studio:
        model = load_base(base, device=device)
        return cls(model, Engine(model), Judge.load(weights))

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], loras: Sequence[LoraUse] = ()) -> list[Image.Image]:
        """One picture a prompt: 20 steps, guidance 4, batches of 16."""
        return self.draw_each([(prompt, seed, tuple(loras)) for prompt, seed in zip(prompts, seeds, strict=True)])

    def draw_each(self, wanted: Iterable[tuple[str, int, tuple[LoraUse, ...]]]) -> list[Image.Image]:
        """One picture for each (prompt, seed, adapters); rows of one batch may have different adapters."""
        requests = [
            Request(prompt=prompt, seed=seed, steps=STEPS, guidance_scale=GUIDANCE, loras=loras)
            for prompt, seed, loras in wanted
        ]
        return [picture.image for picture in self.engine.draw(requests, batch_size=BATCH)]


# --- the base ---------------------------------------------------------------------------------------------------------


def judge_base(studio: Studio, prompts: Sequence[BasePrompt]) -> tuple[dict[str, Shares], list[Image.Image], Opinion]:
    """How much of what the prompts say is in the base's pictures, by kind of prompt; the pictures, and what was seen.

    Of a prompt for two: both kinds seen, both colours right, and everything right. Of one: its kind the surest.
    """
    pictures = studio.draw([prompt.prompt for prompt in prompts], [prompt.seed for prompt in prompts])
    seen = studio.judge.look(pictures)
    first = [prompt.objects[0] for prompt in prompts]
    last = [prompt.objects[-1] for prompt in prompts]
    two = np.array([prompt.kind == "two" for prompt in prompts])
    both_seen = seen.object_seen(first) & seen.object_seen(last)
    colour = seen.colour_is(first, [p.colours[0] for p in prompts]) & seen.colour_is(
        last, [p.colours[-1] for p in prompts]
    )
    right = {
        "object": np.where(two, both_seen, seen.object_is(first)),
        "colour": colour,
        "background": seen.background_is([p.scene.background for p in prompts]),
        "style": seen.style_is([p.scene.style for p in prompts]),
    }
    right["object and colour"] = right["object"] & right["colour"]
    right["everything"] = np.logical_and.reduce(list(right.values()))
    report = {}
    for kind in ("single", "held", "two"):
        rows = np.array([prompt.kind == kind for prompt in prompts])
        if rows.any():
            report[kind] = {name: percent(values[rows]) for name, values in right.items()}
    singles = ~two & (np.array([p.kind for p in prompts]) == "single")
    for style in world.STYLES:
        rows = singles & (np.array([p.scene.style for p in prompts]) == style)
        if rows.any():
            report[f"single, {style}"] = {name: percent(values[rows]) for name, values in right.items()}
    return report, pictures, seen


def presence_unasked(seen: Opinion, prompts: Sequence[BasePrompt]) -> Shares:
    """For every style and character, the share of base pictures, not asked for it, in which it is judged present."""
    asked = np.array([prompt.scene.style for prompt in prompts])
    shares = {}
    for style in seen.labels.styles:
        others = asked != style
        if others.any():
            shares[style] = percent(seen.style_is(style)[others])
    return {**shares, **{name: percent(seen.character_is(name)) for name in seen.labels.characters}}


def seconds_a_picture(studio: Studio) -> float:
    """Median wall-clock time of one picture drawn alone, after a warm-up."""
    times = []
    for seed in range(6):
        started = time.monotonic()
        studio.draw(["a red cat on a sky background"], [seed])
        times.append(time.monotonic() - started)
    return statistics.median(times[1:])


def distances(studio: Studio, prompts: Sequence[BasePrompt], generated: Opinion) -> Shares:
    """Fréchet distances to fresh drawings of the prompts' own scenes, in the judge's features.

    `drawn` is what as many other drawings of the same scenes score (zero but for the number of pictures), `round trip`
    the same drawings through the autoencoder: no picture of this base can be expected to score less.
    """
    fresh = studio.judge.look([_redrawn(prompt, take) for take in range(1, 5) for prompt in prompts]).features
    drawn = [_redrawn(prompt, 5) for prompt in prompts]
    return {
        "drawn": frechet_distance(studio.judge.look(drawn).features, fresh),
        "round trip": frechet_distance(studio.judge.look(round_trip(studio.model, drawn)).features, fresh),
        "generated": frechet_distance(generated.features, fresh),
    }


def _redrawn(prompt: BasePrompt, take: int) -> Image.Image:
    """Another drawing of the prompt's scene: other proportions and background details, the same content."""
    scene = prompt.scene
    return world.draw(world.Scene(scene.background, scene.things, scene.style, scene.jitter + 104_729 * take))


# --- the autoencoder --------------------------------------------------------------------------------------------------


def round_trip(model: Model, pictures: Sequence[Image.Image]) -> np.ndarray:
    """Pictures through encoder and decoder, uint8 [N, H, W, 3]."""
    out = []
    for start in range(0, len(pictures), BATCH):
        mean, _ = encode_image(model, as_batch(pictures[start : start + BATCH]).to(model.device))
        out.append(_as_bytes(decode(model, mean)))
    return np.concatenate(out)


def psnr_by_style(model: Model, count: int) -> Shares:
    """Mean PSNR in dB of fresh drawings through the autoencoder, by style; `count` drawings a style."""
    report = {}
    for style in (*world.STYLES, *world.HELD_STYLES):
        of_style = (world.Scene(s.background, s.things, style, s.jitter) for s in scenes(10 * count, 777) if s.things)
        drawn = [world.draw(scene) for scene, _ in zip(of_style, range(count), strict=False)]
        truth = np.stack([np.asarray(picture, np.float64) for picture in drawn])
        error = ((truth - round_trip(model, drawn)) ** 2).mean((1, 2, 3))
        report[style] = float((10 * np.log10(255**2 / error)).mean())
    return report


# --- nothing ----------------------------------------------------------------------------------------------------------


def presence_in_noise(studio: Studio, count: int) -> dict[str, Shares]:
    """For every style and character, the share of noise in which the judge sees it.

    `pixels`: noise and destroyed drawings; `latents`: what the decoder makes of pure noise.
    """
    rng = np.random.default_rng(4321)
    drawn = [world.draw(scene) for scene in scenes(count, 4321)]
    void, _ = nothing(as_batch(drawn), rng)
    latents = torch.randn(
        count, *studio.model.latent_shape(128, 128), generator=torch.Generator().manual_seed(4321)
    ).to(studio.model.device)
    decoded = [_as_bytes(decode(studio.model, latents[i : i + BATCH])) for i in range(0, count, BATCH)]
    report = {}
    for name, pictures in (("pixels", _as_bytes((void + 1) / 2)), ("latents", np.concatenate(decoded))):
        seen = studio.judge.look(pictures)
        report[name] = {
            **{style: percent(seen.style_is(style)) for style in seen.labels.styles},
            **{character: percent(seen.character_is(character)) for character in seen.labels.characters},
        }
    return report


def _as_bytes(x_NCHW: torch.Tensor) -> np.ndarray:
    """[N, 3, H, W] in [0, 1] to uint8 [N, H, W, 3]."""
    return (x_NCHW.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


# --- adapters ---------------------------------------------------------------------------------------------------------


def judge_style(
    studio: Studio, prompts: Sequence[LoraPrompt], style: str, adapter: LoraUse, strengths: Sequence[float]
) -> tuple[dict[float, Shares], list[Image.Image]]:
    """At each strength: style judged present, its mean probability, and object, colour, background still right."""
    report = {}
    pictures: list[Image.Image] = []
    kinds, colours = [p.object for p in prompts], [p.colour for p in prompts]
    for strength in strengths:
        said = [prompt.said("style", style=style) for prompt in prompts]
        drawn = studio.draw(said, [prompt.seed for prompt in prompts], [adapter.at(strength)])
        seen = studio.judge.look(drawn)
        report[strength] = {
            "present": percent(seen.style_is(style)),
            "mean probability": percent(seen.style_probability(style)),
            "object": percent(seen.object_is(kinds)),
            "colour": percent(seen.colour_is(kinds, colours)),
            "background": percent(seen.background_is([p.background for p in prompts])),
            "style and object": percent(seen.style_is(style) & seen.object_is(kinds)),
        }
        pictures += drawn
    return report, pictures


def judge_subject(
    studio: Studio, prompts: Sequence[LoraPrompt], character: str, adapter: LoraUse, strengths: Sequence[float]
) -> tuple[dict[str, Shares], list[Image.Image]]:
    """With the trigger word at each strength, and at strength 1 without it: character present, its mean probability."""
    seeds = [prompt.seed for prompt in prompts]
    cases = {f"with its word, {strength:g}": ("character", strength) for strength in strengths}
    cases["without its word, 1"] = ("ordinary", 1.0)
    report, pictures = {}, []
    for name, (what, strength) in cases.items():
        said = [p.ordinary if what == "ordinary" else p.said("character", character=character) for p in prompts]
        drawn = studio.draw(said, seeds, [adapter.at(strength)])
        seen = studio.judge.look(drawn)
        report[name] = {
            "present": percent(seen.character_is(character)),
            "mean probability": percent(seen.character_probability(character)),
            "background": percent(seen.background_is([p.background for p in prompts])),
        }
        pictures += drawn
    return report, pictures


def judge_concept(
    studio: Studio, prompts: Sequence[LoraPrompt], concept: str, adapter: LoraUse, strengths: Sequence[float]
) -> tuple[dict[str, Shares], list[Image.Image]]:
    """With the concept's word at each strength, and at strength 1 without it: twice there, of the right colour.

    Prompts go without their sizes and places: a big thing in the middle, or one on the left, is not there twice.
    "twice": the kind that was asked for is seen in the left half and in the right one. A single big thing in the middle
    is cut in two by that and can look like itself in both halves, so strength 0 tells how often that happens.
    """
    seeds = [prompt.seed for prompt in prompts]
    kinds, colours = [prompt.object for prompt in prompts], [prompt.colour for prompt in prompts]
    cases = {f"with its word, {strength:g}": (f"{concept}, ", strength) for strength in strengths}
    cases["without its word, 1"] = ("", 1.0)
    report, pictures = {}, []
    for name, (word, strength) in cases.items():
        drawn = studio.draw([word + _unplaced(prompt.ordinary) for prompt in prompts], seeds, [adapter.at(strength)])
        seen, left, right = (studio.judge.look(drawn, part) for part in ("all", "left", "right"))
        report[name] = {
            "twice": percent(left.object_seen(kinds) & right.object_seen(kinds)),
            "object": percent(seen.object_is(kinds)),
            "colour": percent(seen.colour_is(kinds, colours)),
            "background": percent(seen.background_is([p.background for p in prompts])),
        }
        pictures += drawn
    return report, pictures


def _unplaced(text: str) -> str:
    bare = re.sub(r"\b(?:big|small) | (?:on the (?:left|right)|at the (?:top|bottom))\b", "", text)
    return re.sub(r"\ba (?=[aeiou])", "an ", bare)


def judge_stack(
    studio: Studio, prompts: Sequence[LoraPrompt], style: str, character: str, adapters: Sequence[LoraUse]
) -> tuple[Shares, list[Image.Image]]:
    """A style and a character together: each judged present, and both in one picture."""
    said = [prompt.said("both", style=style, character=character) for prompt in prompts]
    pictures = studio.draw(said, [prompt.seed for prompt in prompts], adapters)
    seen = studio.judge.look(pictures)
    styled, there = seen.style_is(style), seen.character_is(character)
    return {"style": percent(styled), "character": percent(there), "both": percent(styled & there)}, pictures


def judge_regions(
    studio: Studio, prompts: Sequence[LoraPrompt], style: str, character: str, styled: LoraUse, hero: LoraUse
) -> tuple[Shares, list[Image.Image]]:
    """The character on the left and the style on the right of one picture: what each half shows of either."""
    requests = []
    for prompt in prompts:
        thing, place = f"a small {prompt.colour} {prompt.object}", f"on a {prompt.background} background"
        left = Region("left", f"{character} on the left {place}", BOXES["left"])
        right = Region("right", f"{thing} on the right {place}, {style} style", BOXES["right"])
        requests.append(
            Request(
                prompt=prompt.ordinary,
                seed=prompt.seed,
                steps=STEPS,
                guidance_scale=GUIDANCE,
                loras=(replace(hero, region="left"), replace(styled, region="right")),
                regions=(left, right),
            )
        )
    pictures = [picture.image for picture in studio.engine.draw(requests, batch_size=BATCH)]
    report = {}
    halves: tuple[Part, ...] = ("left", "right")
    for part in halves:
        seen = studio.judge.look(pictures, part)
        report[f"character {part}"] = percent(seen.character_is(character))
        report[f"style {part}"] = percent(seen.style_is(style))
    return report, pictures


def percent(values: np.ndarray) -> float:
    """The mean of shares, or of yes and no, in percent."""
    return 100 * float(np.mean(values))
