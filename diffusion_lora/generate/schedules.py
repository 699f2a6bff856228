"""How strongly an adapter acts from step to step, written as a few words. No torch.

    0.2-0.8                 from a fifth to four fifths of the steps, not at all elsewhere
    0:1 0.5:0.4 1:0         keyframes: a straight line from one to the next, level before the first and after the last
    switch 2/3              the second of three that take turns, a step each; `switch 2/3 every 5` gives each five

A number up to 1 is a share of the steps, a larger one counts steps from 1. Turns are LoRA Switch (Zhong et al. 2024,
https://arxiv.org/abs/2402.16843, section 3.2); its LoRA Composite is `Request.combine`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from diffusion_lora.errors import PromptError

_NUMBER = r"(\d{1,6}(?:\.\d{0,9})?|\.\d{1,9})"
_FACTOR = r"([+-]?(?:\d{1,6}(?:\.\d{0,9})?|\.\d{1,9}))"
_RANGE = re.compile(rf"{_NUMBER}\s*-\s*{_NUMBER}")
_KEYFRAME = re.compile(rf"{_NUMBER}\s*:\s*{_FACTOR}")
_SWITCH = re.compile(r"switch\s+(\d{1,3})\s*/\s*(\d{1,3})(?:\s+every\s+(\d{1,4}))?", re.IGNORECASE)


@dataclass(frozen=True)
class FromTo:
    """Acts from one bound to the other, both included."""

    start: float
    end: float

    def at(self, step: int, steps: int) -> float:
        """The factor of a step, 1 being the first."""
        counts = self.start > 1 or (self.start == 1 and self.end > 1)
        first = (self.start - 1) / steps if counts else self.start
        last = self.end / steps if self.end > 1 else self.end
        return 1.0 if first <= (step - 0.5) / steps < last else 0.0


@dataclass(frozen=True)
class Keyframes:
    """Straight lines between (place, factor), in order."""

    points: tuple[tuple[float, float], ...]

    def at(self, step: int, steps: int) -> float:
        """The factor of a step, 1 being the first."""
        now = (step - 0.5) / steps
        points = [((place - 0.5) / steps if place > 1 else place, factor) for place, factor in self.points]
        if now <= points[0][0]:
            return points[0][1]
        for (before, low), (after, high) in pairwise(points):
            if now <= after:
                return high if after == before else low + (high - low) * (now - before) / (after - before)
        return points[-1][1]


@dataclass(frozen=True)
class Switch:
    """Takes turns: number `turn` of `count`, `every` steps each."""

    turn: int
    count: int
    every: int = 1

    def at(self, step: int, steps: int) -> float:
        """The factor of a step, 1 being the first."""
        return 1.0 if (step - 1) // self.every % self.count == self.turn - 1 else 0.0


Schedule = FromTo | Keyframes | Switch


@lru_cache(maxsize=256)
def parse_schedule(text: str) -> Schedule | None:
    """The schedule that the words mean; None for none at all. Raises PromptError."""
    words = text.strip()
    if not words:
        return None
    if match := _RANGE.fullmatch(words):
        start, end = float(match[1]), float(match[2])
        if (start > 1) == (end > 1) and start > end:
            raise PromptError(f"the steps {words!r} end before they begin")
        return FromTo(start, end)
    if match := _SWITCH.fullmatch(words):
        turn, count, every = int(match[1]), int(match[2]), int(match[3] or 1)
        if not 1 <= turn <= count or every < 1:
            raise PromptError(f"the steps {words!r} are not understood: the turn is 1 to {count}, of at least a step")
        return Switch(turn, count, every)
    frames = re.split(r"[\s,]+", re.sub(r"\s*:\s*", ":", words))
    matches = [_KEYFRAME.fullmatch(frame) for frame in frames]
    if len(frames) > 1 and all(matches):
        points = tuple((float(match[1]), float(match[2])) for match in matches if match)
        if [place for place, _ in points] != sorted(place for place, _ in points):
            raise PromptError(f"the keyframes {words!r} are not in order")
        return Keyframes(points)
    raise PromptError(f"the steps {words!r} are not understood; give 0.2-0.8, or 0:1 0.5:0.4 1:0, or switch 1/2")


def factor_at(text: str, step: int, steps: int) -> float:
    """What a schedule multiplies a strength by at a step, 1 being the first; no schedule is 1. Raises PromptError."""
    schedule = parse_schedule(text)
    return 1.0 if schedule is None else schedule.at(step, steps)
