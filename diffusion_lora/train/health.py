"""Whether a training does what it should: numbers in, warnings out, each said once, with what to change.

    standing still      after 40 steps the change is under a millionth of the base's weights
    up matrices zero    after 40 steps a quarter of a part's layers would be zero in the saved file
    no gradient         a part that should learn gets a gradient of exactly zero
    too strong          the change is larger than the base's weights
    loss grows          a step's mean loss is ten times that of the first steps
    loss does not move  at fixed noise, on held-out pictures, half way through (see `validate`)
    black previews      a preview of one single colour

A loss or gradient that is not finite is no warning: it stops the run (`outcome.judge`). What the numbers are measured
on is the callers' business; nothing here knows a model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median

from PIL import ImageStat

from diffusion_lora.config import TrainConfig
from diffusion_lora.images import open_image
from diffusion_lora.train.movement import Movement
from diffusion_lora.train.rates import rests, segment_rate

LOOKED_AT = (1, 2, 5, 10, 20, 40)
EVERY = 50
JUDGED_FROM = 40
"""The step from which on standing still is told; a run shorter than that is judged at its end."""

_STILL = 1e-6
_SHARE_STILL = 0.25  # an encoder of which the last layer is skipped has a few layers that nothing reaches
_TOO_STRONG = 1.0
_GROWN = 10.0
_FIRST_STEPS = 5
_UNMOVED = 1e-3
_COLOURS = 3.0  # levels of 255 between the darkest and the brightest of a picture of one colour
_PARTS = {"unet": "the UNet's part", "te": "the text encoder's part", "word": "the learned word"}


@dataclass(frozen=True)
class Warned:
    """One warning: `about` is its kind and part, told once in a run; `text` what was seen and what to change."""

    about: str
    text: str


@dataclass(eq=False)
class Health:
    """What has been seen of one adapter. `told` are the warnings an earlier process of the run has given."""

    config: TrainConfig
    told: set[str] = field(default_factory=set)
    _first: list[float] = field(default_factory=list)
    _recent: list[float] = field(default_factory=list)

    def due(self, step: int) -> bool:
        """Whether it is time to look at the adapter, after `step` steps."""
        return step in LOOKED_AT or step % EVERY == 0 or step == self.config.train.steps

    def of_step(self, step: int, loss: float, grad_norms: Mapping[str, float]) -> list[Warned]:
        """After step 1, 2, ...: its loss, and the norm of each segment's gradient before clipping."""
        found: list[Warned | None] = []
        if len(self._first) < _FIRST_STEPS:
            self._first.append(loss)
        self._recent = [*self._recent[1 - _FIRST_STEPS :], loss]
        if step > _FIRST_STEPS and median(self._recent) > _GROWN * median(self._first):
            found.append(self._grown(step))
        if step == min(LOOKED_AT[3], self.config.train.steps) and step > 1:
            # Of a part that is cut in several, one of them may well rest: down matrices while the up ones are zero.
            largest: dict[str, float] = {}
            for segment, norm in grad_norms.items():
                part = part_of(segment)
                largest[part] = max(largest.get(part, 0.0), norm)
            found += [self._no_gradient(step, part) for part, norm in largest.items() if norm == 0.0]
        return self._new(found)

    def of_movement(self, step: int, parts: Mapping[str, Movement]) -> list[Warned]:
        """After `step` steps: how far each part of the adapter has come."""
        found = []
        judged = step >= JUDGED_FROM or (step == self.config.train.steps and step >= JUDGED_FROM // 2)
        for part, moved in parts.items():
            if moved.change > _TOO_STRONG or not math.isfinite(moved.change):
                found.append(self._too_strong(step, part, moved))
            elif not judged or not self._learns(part, step):
                continue
            elif moved.still > _SHARE_STILL * moved.layers:
                found.append(self._zero(step, part, moved))
            elif moved.change < _STILL:
                found.append(self._still(step, part, moved))
        return self._new(found)

    def of_validation(self, losses: Sequence[tuple[int, float]]) -> list[Warned]:
        """(step, loss) at fixed noise so far, the first before any step: whether anything has changed by half way."""
        step, newest = losses[-1]
        first = losses[0][1]
        if step * 2 < self.config.train.steps or step < JUDGED_FROM or max(
            abs(loss - first) for _, loss in losses
        ) >= _UNMOVED * abs(first):
            return []
        text = (
            f"after {step} steps the loss on the held-out pictures is where it was ({newest:.4f}, from {first:.4f}): "
            f"what is learned does not show; try {self._higher_rate('unet')}, or a higher lora.alpha"
        )
        return self._new([Warned("loss does not move", text)])

    def of_previews(self, step: int, pictures: Iterable[Path]) -> list[Warned]:
        """After `step` steps: the previews just drawn."""
        plain = [(path.name, colour) for path in pictures if (colour := one_colour(path)) is not None]
        if not plain:
            return []
        name, colour = plain[0]
        what = f"the preview {name} is all {colour}"
        if len(plain) > 1:
            what = f"{len(plain)} previews of step {step} are of one colour ({name}: all {colour})"
        half = [f'{key} = "fp32"' for key, value in self._precisions().items() if value == "fp16"]
        remedy = f"try {' and '.join(half)}" if half else f"try {self._lower_rate('unet')}, or look at model.vae"
        return self._new([Warned("black previews", f"{what}: {remedy}")])

    # --- the sentences ------------------------------------------------------------------------------------------------

    def _grown(self, step: int) -> Warned:
        text = (
            f"by step {step} the loss has grown to {median(self._recent):.3g}, from {median(self._first):.3g} in the "
            f"first steps: the training runs away; try {self._lower_rate('unet')}"
        )
        return Warned("loss grows", text)

    def _no_gradient(self, step: int, part: str) -> Warned | None:
        if rests(self.config.optimizer, part, step):
            return None
        text = (
            f"in step {step} the gradient of {_PARTS[part]} is exactly 0, so that it learns nothing: look at "
            f"{'the captions' if part != 'unet' else 'lora.targets and lora.blocks'}, or leave it out"
        )
        return Warned(f"no gradient: {part}", text)

    def _too_strong(self, step: int, part: str, moved: Movement) -> Warned:
        text = (
            f"after {step} steps {_PARTS[part]} changes the base's weights by {100 * moved.change:.3g} % of their "
            f"size, more than they are themselves: pictures will break; try {self._lower_rate(part)}"
        )
        return Warned(f"too strong: {part}", text)

    def _still(self, step: int, part: str, moved: Movement) -> Warned:
        text = (
            f"after {step} steps {_PARTS[part]} does not move: it changes the base's weights by "
            f"{100 * moved.change:.1g} % of their size; try {self._higher_rate(part)}"
        )
        return Warned(f"standing still: {part}", text)

    def _zero(self, step: int, part: str, moved: Movement) -> Warned:
        if self.config.optimizer.lora_plus < 1:
            remedy = f"set optimizer.lora_plus to 1 or more (now {self.config.optimizer.lora_plus:g})"
        elif self.config.train.precision == "fp16":
            why = "fp16 gradients may overflow all the time"
            remedy = f'try train.precision = "bf16" ({why}), or {self._higher_rate(part)}'
        else:
            remedy = f"try {self._higher_rate(part)}"
        text = (
            f"after {step} steps {moved.still} of the {moved.layers} up matrices of {_PARTS[part]} are still zero, so "
            f"that these layers do nothing: {remedy}"
        )
        return Warned(f"up matrices zero: {part}", text)

    # --- what they are made of ----------------------------------------------------------------------------------------

    def _learns(self, part: str, step: int) -> bool:
        """Whether a part should have moved by now."""
        table = self.config.optimizer
        stopped_early = part == "te" and 0 < table.text_stop_step < JUDGED_FROM // 2
        return segment_rate(table, part) > 0 and not stopped_early

    def _higher_rate(self, part: str) -> str:
        key, rate = self._rate(part)
        usual = {"lr": 1e-4, "text_lr": 5e-5, "word_lr": 5e-4}[key]
        warmup = self.config.optimizer.warmup_steps
        if rate >= usual and warmup > JUDGED_FROM:
            return f"a shorter optimizer.warmup_steps (now {warmup})"
        return f"a higher optimizer.{key} (now {rate:g}, often {usual:g})"

    def _lower_rate(self, part: str) -> str:
        key, rate = self._rate(part)
        return f"a lower optimizer.{key} (now {rate:g}, say {rate / 3 if rate < 0.1 else 1e-4:.1g})"

    def _rate(self, part: str) -> tuple[str, float]:
        key = {"te": "text_lr", "word": "word_lr"}.get(part, "lr")
        return key, float(getattr(self.config.optimizer, key))

    def _precisions(self) -> dict[str, str]:
        return {"train.precision": self.config.train.precision, "model.dtype": self.config.model.dtype}

    def _new(self, found: Iterable[Warned | None]) -> list[Warned]:
        fresh = [warning for warning in found if warning is not None and warning.about not in self.told]
        self.told |= {warning.about for warning in fresh}
        return fresh


def one_colour(path: Path) -> str | None:
    """The colour of a picture that is nothing else ("black", "rgb(127, 127, 127)"), else None."""
    image = open_image(path).convert("RGB")
    seen = ImageStat.Stat(image)
    if any(high - low > _COLOURS for low, high in seen.extrema):
        return None
    mean = [round(value) for value in seen.mean]
    return "black" if fmean(mean) <= _COLOURS else "rgb({}, {}, {})".format(*mean)


def part_of(segment: str) -> str:
    """"unet@mid.up" -> "unet"."""
    return segment.partition("@")[0].partition(".")[0]
