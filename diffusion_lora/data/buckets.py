"""Aspect-ratio buckets: pictures are trained in a few shapes of about the same area, and what that cuts off is told.

A batch holds one bucket, so its shape is one of a few that never change. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

Size = tuple[int, int]
"""(width, height) in pixels."""

LONGEST_ASPECT = 2.0  # of a bucket: beyond it a side would leave what the base was trained on
_ENLARGED = 1.5  # a picture that has to grow by more than this is told to be too small


@dataclass(frozen=True)
class Place:
    """The bucket of one picture.

    `scale` is the enlargement (below 1: the picture shrinks) and `cropped` the share of its area that is cut off.
    """

    bucket: Size
    scale: float
    cropped: float

    @property
    def too_small(self) -> bool:
        return self.scale > _ENLARGED


@lru_cache(maxsize=8)
def bucket_sizes(size_px: int, step_px: int) -> tuple[Size, ...]:
    """The shapes of a base trained at `size_px`: sides that are multiples of the step, no more area than its square."""
    area = size_px**2
    sizes = {(size_px, size_px)}
    for side in range(step_px, int(size_px * LONGEST_ASPECT) + 1, step_px):
        other = min(area // side, int(side * LONGEST_ASPECT)) // step_px * step_px
        if other and max(side, other) / min(side, other) <= LONGEST_ASPECT and side * other > area * 0.7:
            sizes |= {(side, other), (other, side)}
    return tuple(sorted(sizes))


def place(size: Size, buckets: Sequence[Size]) -> Place:
    """The bucket whose aspect is nearest to that of a picture, the larger one of two that are as near."""
    aspect = math.log(size[0] / size[1])
    bucket = min(buckets, key=lambda shape: (round(abs(math.log(shape[0] / shape[1]) - aspect), 9), -math.prod(shape)))
    return _placed(size, bucket)


def place_unenlarged(size: Size, size_px: int, step_px: int) -> Place | None:
    """A bucket that a picture fills without being enlarged: its own shape, shrunk to the area and cut to the step.

    None for a picture that is smaller than the step itself.
    """
    shrink = min(1.0, size_px / math.sqrt(size[0] * size[1]))
    longest = int(size_px * LONGEST_ASPECT) // step_px * step_px
    width, height = (min(int(side * shrink + 1e-6) // step_px * step_px, longest) for side in size)
    return _placed(size, (width, height)) if width and height else None


def crop_report(places: Sequence[Place]) -> list[tuple[Size, int, float, float]]:
    """For each bucket in use: its size, how many pictures, and what share is cut off on average and at most."""
    shares: dict[Size, list[float]] = {}
    for each in places:
        shares.setdefault(each.bucket, []).append(each.cropped)
    return [(size, len(cut), sum(cut) / len(cut), max(cut)) for size, cut in sorted(shares.items())]


def _placed(size: Size, bucket: Size) -> Place:
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    return Place(bucket, scale, 1 - math.prod(bucket) / (math.prod(size) * scale**2))
