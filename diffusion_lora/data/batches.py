"""Which pictures a step sees, and how: a function of (seed, step) and the set, never of what came before.

So a resumed run sees what it would have seen, and nothing of a random generator's state has to be stored. A step holds
pictures of one bucket, so that its tensors have one shape however it is split into passes. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from diffusion_lora.data.buckets import Size

_ORDER, _CHANCE = 1, 2  # separate streams of numbers for separate questions
_BUCKET, _VIEW, _VARIANT = 7, 8, 9


@dataclass(frozen=True)
class Share:
    """Pictures (by index) of which `per_round` are shown each time a bucket is gone through, one after the other."""

    pictures: tuple[int, ...]
    per_round: int


@dataclass(frozen=True)
class Bucket:
    """The pictures of one shape."""

    size: Size
    shares: tuple[Share, ...]

    @property
    def per_round(self) -> int:
        return sum(share.per_round for share in self.shares)


@dataclass(frozen=True)
class Chances:
    """How pictures vary: mirrored half of the time, without caption at a rate, in views and captions by number.

    `variants` = 0 stands for a new caption every time.
    """

    flip: bool = False
    caption_dropout: float = 0.0
    views: int = 1
    variants: int = 1


@dataclass(frozen=True)
class Selection:
    """The pictures of one step, all of one size: for each its index, whether it is mirrored, which view of it, whether
    it loses its caption, and which of its captions it has."""

    size: Size
    indices: tuple[int, ...]
    mirrored: tuple[bool, ...]
    views: tuple[int, ...]
    uncaptioned: tuple[bool, ...]
    variants: tuple[int, ...]


def make_buckets(
    sizes: Sequence[Size], sources: Sequence[int], repeats: Sequence[float], regularising: Sequence[bool]
) -> tuple[Bucket, ...]:
    """The buckets of a set, from each picture's bucket size and source, and each source's repeats and purpose.

    Sources for regularisation share as many places as all others have, whatever their number (prior preservation, Ruiz
    et al. 2023, section 3.2).
    """
    groups: dict[Size, dict[int, list[int]]] = {}
    for index, (size, source) in enumerate(zip(sizes, sources, strict=True)):
        groups.setdefault(size, {}).setdefault(source, []).append(index)
    wanted = [repeats[source] for source in sources]
    learned = sum(times for times, source in zip(wanted, sources, strict=True) if not regularising[source])
    kept = sum(times for times, source in zip(wanted, sources, strict=True) if regularising[source])
    balance = learned / kept if learned and kept else 1.0
    return tuple(
        Bucket(
            size,
            tuple(
                Share(
                    tuple(members),
                    max(1, round(len(members) * repeats[source] * _factor(regularising, source, balance))),
                )
                for source, members in sorted(by_source.items())
            ),
        )
        for size, by_source in sorted(groups.items())
    )


def select(step: int, buckets: Sequence[Bucket], *, count: int, seed: int, chances: Chances) -> Selection:
    """The `count` pictures of step 0, 1, ...: each bucket is gone through in a new random order each time round."""
    which, turn = _bucket_of(step, tuple(bucket.per_round for bucket in buckets), seed)
    bucket = buckets[which]
    places = range(turn * count, (turn + 1) * count)
    rolls = np.random.default_rng((_CHANCE, seed, step)).random((2, count))
    views = np.random.default_rng((_VIEW, seed, step)).integers(chances.views, size=count)
    if chances.variants:
        variants = np.random.default_rng((_VARIANT, seed, step)).integers(chances.variants, size=count)
    else:
        variants = np.arange(step * count, (step + 1) * count)
    return Selection(
        size=bucket.size,
        indices=tuple(_picture(bucket, which, place, seed) for place in places),
        mirrored=tuple((rolls[0] < 0.5).tolist()) if chances.flip else (False,) * count,
        views=tuple(views.tolist()),
        uncaptioned=tuple((rolls[1] < chances.caption_dropout).tolist()),
        variants=tuple(variants.tolist()),
    )


def selections(
    steps: int, buckets: Sequence[Bucket], *, count: int, seed: int, chances: Chances
) -> Iterator[Selection]:
    """All steps of a run, ahead of time: what has to be encoded is known before the first one."""
    return (select(step, buckets, count=count, seed=seed, chances=chances) for step in range(steps))


def _factor(regularising: Sequence[bool], source: int, balance: float) -> float:
    return balance if regularising[source] else 1.0


def _bucket_of(step: int, sizes: tuple[int, ...], seed: int) -> tuple[int, int]:
    """The bucket of a step, and how many steps that bucket has had before.

    Buckets come in proportion to what they hold, spread evenly: in a cycle of as many steps as there are places, each
    comes as often as it has places, at jittered but regular distances.
    """
    if len(sizes) == 1:
        return 0, step
    divisor = math.gcd(*sizes)
    sizes = tuple(size // divisor for size in sizes)
    cycle, offset = divmod(step, sum(sizes))
    order, ranks = _cycle(sizes, seed, cycle)
    which = int(order[offset])
    return which, cycle * sizes[which] + int(ranks[offset])


@lru_cache(maxsize=4)
def _cycle(sizes: tuple[int, ...], seed: int, cycle: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The buckets of one cycle in their order, and for each place how many of the same bucket come before it."""
    rng = np.random.default_rng((_BUCKET, seed, cycle))
    of = np.repeat(np.arange(len(sizes)), sizes)
    ranks = np.concatenate([np.arange(size) for size in sizes])
    when = (ranks + rng.random(len(of))) / np.repeat(sizes, sizes)
    order = np.argsort(when, kind="stable")
    return of[order], ranks[order]


def _picture(bucket: Bucket, which: int, place: int, seed: int) -> int:
    """The picture at a place of a bucket's endless row."""
    turn, offset = divmod(place, bucket.per_round)
    slot = int(_order(bucket.per_round, seed, turn, which)[offset])
    for share in bucket.shares:
        if slot < share.per_round:
            return share.pictures[(turn * share.per_round + slot) % len(share.pictures)]
        slot -= share.per_round
    raise AssertionError("a slot lies in one of the shares")


@lru_cache(maxsize=64)
def _order(places: int, seed: int, turn: int, which: int) -> NDArray[np.int64]:
    # The first bucket's key has no number: a set of one shape keeps the order it always had.
    return np.random.default_rng((_ORDER, seed, turn, *((which,) if which else ()))).permutation(places)
