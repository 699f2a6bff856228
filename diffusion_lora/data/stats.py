"""What a set is made of, in numbers: words, tags, lengths, shapes; and, on request, how its pixels look. No torch."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffusion_lora.data.buckets import Size, bucket_sizes, place
from diffusion_lora.data.problems import Problem
from diffusion_lora.data.rewriting import captioned
from diffusion_lora.data.sources import Layout
from diffusion_lora.errors import DatasetError
from diffusion_lora.images import image_size, oddities, open_image

_LOOKED_AT_PX = 512  # the longer side when sharpness is measured: a large picture is not blurred by being large
_BLURRED = 1 / 8  # of the set's median sharpness
_DARK, _BRIGHT = 30, 235  # mean brightness of 255
_STEPS_A_SIDE = 8  # of buckets, as training has them


@dataclass
class Stats:
    """Counts of a set. `lengths` is (tokens, captions of that length), `too_long` names captions the base cuts off,
    `shapes` is (bucket, pictures); `hints` and `problems` are (picture, sentence)."""

    pictures: int = 0
    captions: int = 0
    words: Counter[str] = field(default_factory=Counter)
    tags: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    room: int = 0
    too_long: list[str] = field(default_factory=list)
    shapes: Counter[Size] = field(default_factory=Counter)
    hints: list[tuple[str, str]] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The same in JSON's types, the most frequent first."""
        told = asdict(self)
        told["words"], told["tags"] = dict(self.words.most_common()), dict(self.tags.most_common())
        told["lengths"] = {str(length): count for length, count in sorted(self.lengths.items())}
        told["shapes"] = {f"{width}x{height}": count for (width, height), count in sorted(self.shapes.items())}
        return told


@dataclass(frozen=True)
class Look:
    """How a picture looks: `sharpness` (the variance of its Laplacian, Pech-Pacheco 2000) and mean `brightness`."""

    sharpness: float
    brightness: float


def describe(
    root: Path,
    layout: Layout,
    *,
    count: Callable[[str], int],
    room: int,
    size_px: int,
    factor: int,
    look: bool = False,
) -> Stats:
    """The statistics of a folder. `count` tells a caption's tokens, `room` how many the base reads at once, `size_px`
    and `factor` its pictures' side and its pixels to a latent. Raises DatasetError."""
    found, looks = Stats(room=room), {}
    step = max(factor, min(64, size_px // _STEPS_A_SIDE) // factor * factor)
    buckets = bucket_sizes(size_px, step)

    def report(problem: Problem) -> None:
        found.problems.append((problem.picture, problem.text))

    for each in captioned(root, layout, report):
        name = each.item.name
        try:
            size = image_size(each.item.path)
            found.hints += [(name, odd) for odd in oddities(each.item.path)]
            if look:
                looks[name] = look_at(open_image(each.item.path))
        except DatasetError as error:
            found.problems.append((name, str(error)))
            continue
        found.pictures += 1
        found.shapes[place(size, buckets).bucket] += 1
        if each.text:
            found.captions += 1
            found.words.update(_words(each.text))
            found.tags.update(tag for part in each.text.split(",") if (tag := part.strip()))
            tokens = count(each.text)
            found.lengths[tokens] += 1
            if tokens > room:
                found.too_long.append(name)
    if not found.pictures:
        raise DatasetError(f"there is no picture in {root} that can be read")
    found.hints += hints_of(looks)
    return found


def look_at(image: Image.Image) -> Look:
    """Sharpness and brightness of an RGB picture."""
    grey = image.convert("L")
    grey.thumbnail((_LOOKED_AT_PX, _LOOKED_AT_PX), Image.Resampling.BOX)
    x_HW = np.asarray(grey, dtype=np.float32)
    if min(x_HW.shape) < 3:
        return Look(0.0, float(x_HW.mean()))
    laplacian = (
        x_HW[:-2, 1:-1] + x_HW[2:, 1:-1] + x_HW[1:-1, :-2] + x_HW[1:-1, 2:] - 4 * x_HW[1:-1, 1:-1]
    )  # fmt: skip
    return Look(float(laplacian.var()), float(x_HW.mean()))


def hints_of(looks: dict[str, Look]) -> list[tuple[str, str]]:
    """Pictures that are much softer than the others of their set, nearly black or nearly white."""
    usual = statistics.median(look.sharpness for look in looks.values()) if looks else 0.0
    hints = []
    for name, look in looks.items():
        if look.brightness < _DARK:
            hints.append((name, f"is nearly black (mean {look.brightness:.0f} of 255)"))
        elif look.brightness > _BRIGHT:
            hints.append((name, f"is nearly white (mean {look.brightness:.0f} of 255)"))
        elif look.sharpness < _BLURRED * usual:
            hints.append((name, f"looks blurred: sharpness {look.sharpness:.0f}, in the set {usual:.0f}"))
    return hints


def histogram(counts: Counter[int], bins: int = 10) -> list[tuple[int, int, int]]:
    """(from, to, how many), at most `bins` of equal width, empty ones between included."""
    if not counts:
        return []
    width = -(-(max(counts) + 1) // bins)
    lows = range(0, max(counts) + 1, width)
    return [(low, low + width - 1, sum(counts[i] for i in range(low, low + width))) for low in lows]


def _words(text: str) -> Sequence[str]:
    return [word for part in text.lower().split() if (word := part.strip(".,:;!?\"'()[]{}"))]
