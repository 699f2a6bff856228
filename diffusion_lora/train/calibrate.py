"""At which strength does an adapter do what it is for, and leave in the picture what was asked for?

Fixed prompts from fixed noise are drawn at several strengths, and of the pictures two things are measured:

    effect    how far the adapter moves all pictures into one direction, as the base sees them: the distance between
              the pictures at this strength and those of the base alone, in the features of the base's own UNet (its
              middle block, at a few timesteps, without a prompt). What only some pictures do is taken out
              (mean of the products of different pictures' shifts), so that noise has no effect.
    content   how much of the pictures' noise the right prompt explains and another prompt does not: 1 - error with the
              own prompt / error with another's, by the base with the adapter at this strength (a diffusion model as the
              classifier of its own pictures: Li et al. 2023, https://arxiv.org/abs/2303.16203).

The first rises with the strength until it saturates, the second falls once the adapter drowns the prompt. Proposed is
where their product is greatest, which asks for no threshold: a factor in either changes nothing. Strengths are tried
on a geometric scale, so that an adapter of twice the alpha is proposed half the strength.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lora.diffusion.sampler import ddim
from diffusion_lora.diffusion.schedule import NoiseSchedule
from diffusion_lora.errors import AdapterFileError, ConfigError
from diffusion_lora.families.family import Conditioning, Model, encode_text, predict
from diffusion_lora.families.learned_words import add_word, spelled
from diffusion_lora.families.pocket.words import pocket_words
from diffusion_lora.lora.adapter import Adapter, write_adapter
from diffusion_lora.lora.bank import AdapterBank
from diffusion_lora.lora.calibrated import with_calibration
from diffusion_lora.lora.lineage import named
from diffusion_lora.lora.report import trigger_words
from diffusion_lora.lora.strength import at_strength
from diffusion_lora.sidecar import write_notes
from diffusion_lora.train.draws import preview_noise, seeded

PICTURES, STEPS, GUIDANCE = 12, 10, 4.0
LEAST_PICTURES = 4

_NAME = "what is calibrated"
_STREAM = 40  # of random numbers, apart from those of training
_FEATURES_AT = (0.1, 0.25, 0.45)  # shares of the schedule: where forms and surfaces show, not yet noise
_CONTENT_AT = (0.3, 0.5, 0.7)  # where what is in a picture is decided
_FACTOR = 1.25  # between neighbouring strengths
_LOWEST, _HIGHEST = -8, 6  # powers of it: 0.17 to 3.8
_AREA = 1 << 14  # latents in one pass
_EVERYDAY = (
    "a cat on a sofa", "a red car in a street", "a house by a lake", "a portrait of a woman", "a bowl of fruit",
    "a dog in the snow", "a city at night", "a tree on a hill", "a man reading a book", "a ship on the sea",
    "a bunch of flowers", "a bird on a branch", "a cup of coffee on a table", "a castle in the mountains",
    "a bicycle against a wall", "a horse in a meadow",
)  # fmt: skip

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Look:
    """What was measured at one strength: `effect` in spreads of the base's pictures, `content` up to 1."""

    strength: float
    effect: float
    content: float

    @property
    def score(self) -> float:
        return max(self.effect, 0.0) * max(self.content, 0.0)


@dataclass(frozen=True)
class Calibration:
    """The strength that suits, what it was found by, and what it took."""

    strength: float
    looks: tuple[Look, ...]
    prompts: tuple[str, ...]
    seconds: float
    at_the_end: bool = False
    """Whether the best strength is the last that is tried: the right one may lie beyond."""

    @property
    def sentence(self) -> str:
        best = max(self.looks, key=lambda look: look.score)
        strongest = max(self.looks, key=lambda look: look.strength)
        said = f"strength {self.strength:.2f} suits it"
        if self.at_the_end:
            return f"{said}, the last one tried: it seems trained too {'weakly' if self.strength > 1 else 'strongly'}"
        return (
            f"{said}: from there on the effect grows little ({best.effect:.2f} at {best.strength:.2f}, "
            f"{strongest.effect:.2f} at {strongest.strength:.2f}), and less of what prompts ask for is left "
            f"({100 * best.content:.0f} %, then {100 * strongest.content:.0f} %)"
        )

    def facts(self, base: str) -> dict[str, Any]:
        """For the file's header: short, and all that it was found by. `base` is the base's hash."""
        looks = [[round(x, 4) for x in (look.strength, look.effect, look.content)] for look in self.looks]
        return {"strength": round(self.strength, 2), "base": base, "pictures": len(self.prompts), "looks": looks}


@torch.no_grad()
def calibrate(
    model: Model,
    bank: AdapterBank,
    adapter: Adapter,
    *,
    prompts: Sequence[str] = (),
    pictures: int = PICTURES,
    steps: int = STEPS,
    progress: OnProgress = lambda done, total: None,
) -> Calibration:
    """Find the strength, with the adapters of `bank` at rest; what is in the model is afterwards as before.

    Without `prompts` they are `prompts_for`. It costs about as much as drawing 5 to 7 times `pictures` pictures.
    AdapterFileError when the adapter is not this model's or changes no picture; ConfigError for too few prompts.
    """
    began = time.monotonic()
    chosen = tuple(prompts) or prompts_for(model, adapter.metadata, pictures)
    if len(chosen) < LEAST_PICTURES:
        raise ConfigError(f"{len(chosen)} prompts are too few to calibrate by: give {LEAST_PICTURES} or more")
    bank.load(_NAME, adapter)
    try:
        words = {}
        for word, vectors in adapter.words.items():
            words[word] = f"{_NAME} {word}"
            add_word(model, words[word], {part: one.to(model.device) for part, one in vectors.items()})
        bench = _Bench(model, bank, [spelled(model, prompt, words) for prompt in chosen], steps)
        looks, peak = _climb(bench.look, progress)
    finally:
        bank.unload(_NAME)
    if not any(look.effect > 0 for look in looks):
        raise AdapterFileError(
            "the adapter moves the pictures of these prompts nowhere: there is no strength to find; is its trigger "
            "word in them?"
        )
    tried = sorted(looks, key=lambda look: look.strength)
    best = max(tried, key=lambda look: look.score)
    at_the_end = best in (tried[0], tried[-1])
    return Calibration(peak, tuple(tried), chosen, time.monotonic() - began, at_the_end)


def prompts_for(model: Model, metadata: Mapping[str, str], count: int) -> tuple[str, ...]:
    """What is drawn: everyday things with the trigger word behind them, in pocket's words where that is the base.

    Where the captions have the trigger word within a sentence ("a zib on a sky background"), some of these instead.
    """
    triggers = trigger_words(metadata)
    tags = _tags(metadata)
    known = {word.lower() for word in triggers}
    inside = [tag for tag in tags if any(word in tag for word in known)]
    if known and len(inside) >= LEAST_PICTURES and not known & set(tags):
        return tuple(inside[:count])
    ending = "".join(f", {word}" for word in triggers)
    return tuple(f"{thing}{ending}" for thing in _things(model, count))


class _Bench:
    """Draws and measures at one strength after the other. The adapter is folded in, so that a pass costs the base's."""

    def __init__(self, model: Model, bank: AdapterBank, prompts: Sequence[str], steps: int) -> None:
        self._model, self._bank, self._prompts, self._steps = model, bank, prompts, steps
        self._schedule = NoiseSchedule.from_config(model.scheduler_config).to(model.device)
        self._shape_CHW = model.latent_shape(model.size_px, model.size_px)
        self._rows = max(2, _AREA // (self._shape_CHW[1] * self._shape_CHW[2]))
        with bank.mix({}):
            self._no_words = encode_text(model, [""])
        self._base: Tensor | None = None

    def look(self, strength: float) -> Look:
        """What a strength makes of the pictures."""
        if self._base is None:
            with self._bank.mix({}):
                self._base = self._features(self._drawn(*self._texts()))
        self._bank.fold({_NAME: strength})
        try:
            none, texts = self._texts()
            latents = self._drawn(none, texts)
            content = self._content(latents, texts)
        finally:
            self._bank.restore()
        with self._bank.mix({}):
            features = self._features(latents)
        return Look(strength, _common_shift(features, self._base), content)

    def _texts(self) -> tuple[Conditioning, Conditioning]:
        count = len(self._prompts)
        texts = [encode_text(self._model, [prompt]) for prompt in self._prompts]
        return Conditioning.cat([encode_text(self._model, [""])] * count), Conditioning.cat(texts)

    def _drawn(self, none: Conditioning, texts: Conditioning) -> Tensor:
        count, half = len(texts), max(1, self._rows // 2)
        parts = []
        for first in range(0, count, half):
            places = list(range(first, min(first + half, count)))
            noise = torch.stack([preview_noise(self._shape_CHW, place) for place in places]).to(self._model.device)
            both = Conditioning.cat([none[places], texts[places]])

            def guided(x_BCHW: Tensor, timesteps_B: Tensor, both: Conditioning = both) -> Tensor:
                found = predict(self._model, torch.cat([x_BCHW] * 2), torch.cat([timesteps_B] * 2), both)
                plain, prompted = found.float().chunk(2)
                return plain + GUIDANCE * (prompted - plain)

            parts.append(ddim(guided, noise, self._schedule, self._steps))
        return torch.cat(parts)

    def _features(self, latents: Tensor) -> Tensor:
        """[pictures, timesteps, channels, places], by the model as it now is."""
        found: list[Tensor] = []
        middle = self._model.unet.mid_block
        assert isinstance(middle, nn.Module)
        seen = middle.register_forward_hook(lambda module, given, out: found.append(out.float()))
        try:
            parts = []
            for number, share in enumerate(_FEATURES_AT):
                self._errors(latents, self._no_words[[0] * len(latents)], share, number)
                parts.append(torch.cat(found).flatten(2))
                found.clear()
        finally:
            seen.remove()
        return torch.stack(parts, 1)

    def _content(self, latents: Tensor, texts: Conditioning) -> float:
        count = len(latents)
        own = others = 0.0
        for number, share in enumerate(_CONTENT_AT):
            own += 2 * float(self._errors(latents, texts, share, number).sum())
            for away in (1, count // 2):
                of_another = texts[[(place + away) % count for place in range(count)]]
                others += float(self._errors(latents, of_another, share, number).sum())
        return 1 - own / others if others > 0 else 0.0

    def _errors(self, latents: Tensor, texts: Conditioning, share: float, number: int) -> Tensor:
        """[pictures]: mean squared error of the prediction, the same noise in all pictures."""
        timestep = int(share * self._schedule.timesteps)
        noise = torch.randn(self._shape_CHW, generator=seeded(_STREAM, 0, number)).to(latents.device)
        found = []
        for first in range(0, len(latents), self._rows):
            x0 = latents[first : first + self._rows]
            timesteps = torch.full((len(x0),), timestep, device=x0.device)
            noisy = self._schedule.add_noise(x0, noise.expand_as(x0), timesteps)
            rows = list(range(first, first + len(x0)))
            predicted = predict(self._model, noisy, timesteps, texts[rows]).float()
            signal, sigma = self._schedule.coefficients(timesteps)
            target = noise if self._schedule.prediction == "epsilon" else signal * noise - sigma * x0
            found.append((predicted - target).square().mean((1, 2, 3)))
        return torch.cat(found)


def _common_shift(features: Tensor, base: Tensor) -> float:
    """How far pictures were moved into one and the same direction, in units of the base's spread between pictures.

    Of [pictures, timesteps, channels, places]. Each channel counts in its own spread. The squared length of the common
    part is the mean product of two different pictures' shifts, which what is particular to each leaves at zero.
    """
    spread = base.var(0, keepdim=True).mean(-1, keepdim=True).sqrt().clamp_min(1e-6)
    shifts = ((features - base) / spread).flatten(1).double()
    count, numbers = shifts.shape
    square = (shifts.sum(0).square().sum() - shifts.square().sum()) / (count * (count - 1) * numbers)
    return math.sqrt(max(0.0, float(square)))


def _climb(look: Callable[[float], Look], progress: OnProgress) -> tuple[list[Look], float]:
    """The looks at all strengths that were tried, and where the score is greatest.

    Every second power of the factor around 1 until the best one has a lower one on both sides, then its neighbours,
    then a parabola through the three.
    """
    looks: dict[int, Look] = {}
    expected = 5

    def at(power: int) -> float:
        nonlocal expected
        if power not in looks:
            looks[power] = look(_FACTOR**power)
            expected = max(expected, len(looks))
            progress(len(looks), expected)
        return looks[power].score

    best = max((0, -2, 2), key=at)
    while True:
        nexts = [power for power in (best - 2, best + 2) if _LOWEST <= power <= _HIGHEST]
        missing = [power for power in nexts if power not in looks]
        expected += len(missing)
        best = max((best, *nexts), key=at)
        if not missing:
            break
    sides = [power for power in (best - 1, best + 1) if _LOWEST <= power <= _HIGHEST]
    best = max((best, *sides), key=at)
    low, high = at(best - 1) if best - 1 in looks else None, at(best + 1) if best + 1 in looks else None
    if low is None or high is None:
        return list(looks.values()), _FACTOR**best
    bend = low - 2 * at(best) + high
    return list(looks.values()), _FACTOR ** (best + (0.5 * (low - high) / bend if bend < 0 else 0.0))


def _things(model: Model, count: int) -> list[str]:
    if not (model.folder / "words.json").is_file():
        return [_EVERYDAY[place % len(_EVERYDAY)] for place in range(count)]
    words = pocket_words(model.folder)
    objects, colours, grounds = words.objects, words.colours, words.backgrounds

    def thing(place: int) -> str:
        # Steps that have no factor with the lists' lengths: all of each comes in turn.
        kind = objects[_turn(5, place, len(objects))]
        colour = colours[_turn(3, place, len(colours))]
        return f"a {colour} {kind} on a {grounds[place % len(grounds)]} background"

    return [thing(place) for place in range(count)]


def _turn(step: int, place: int, length: int) -> int:
    return (step * place + place // length) % length


def _tags(metadata: Mapping[str, str]) -> list[str]:
    """The parts of the captions, the commonest first, as the header counts them."""
    try:
        folders = json.loads(metadata.get("ss_tag_frequency", "{}"))
    except (ValueError, RecursionError):
        return []
    counts = [counts for counts in (folders.values() if isinstance(folders, dict) else ()) if isinstance(counts, dict)]
    return list(dict.fromkeys(str(tag).strip().lower() for one in counts for tag in one))


def write_folded(adapter: Adapter, path: Path, facts: Mapping[str, Any], name: str = "") -> None:
    """Write the adapter so that strength 1 is the one that the facts tell, with the note beside it, under a new name if
    one is given. Every tensor keeps its dtype.

    Raises AdapterFileError (DoRA), OutputError, WorkspaceError.
    """
    folded = at_strength(adapter, facts["strength"])
    metadata = named(folded.metadata, name) if name else folded.metadata
    told = {**facts, "strength": 1.0, "folded": facts["strength"]}
    write_adapter(replace(folded, metadata=with_calibration(metadata, told)), path, None)
    write_notes(path, {"preferred_weight": 1.0})
