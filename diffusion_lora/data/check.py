"""Everything that can be said against a data set before it is trained on, and what becomes of its pictures. No torch.

Reading and decoding report as they go (`sources`, `dataset`); here is what only shows when pictures are compared, or
their captions counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from diffusion_lora.data.dataset import Dataset
from diffusion_lora.data.examine import duplicates
from diffusion_lora.data.problems import Problem

TooLong = Callable[[str], tuple[int, str]]
"""The number of tokens of a caption, and what of its text is cut off (empty: nothing)."""


def check(dataset: Dataset, too_long: TooLong | None = None) -> Iterator[Problem]:
    """The problems of a set's pictures and captions, in the order of the pictures; `too_long` counts tokens."""
    for item, where in zip(dataset.items, dataset.places, strict=True):
        if where.too_small:
            yield Problem(
                "too small",
                item.name,
                f"{item.name} is {item.size[0]} x {item.size[1]} px and is enlarged {where.scale:.1f} times to "
                f"{where.bucket[0]} x {where.bucket[1]}",
            )
    for index, other, same in duplicates(dataset.seen):
        name, like = dataset.items[index].name, dataset.items[other].name
        if same:
            yield Problem("duplicate", name, f"{name} has the very pixels of {like}")
        else:
            yield Problem("near duplicate", name, f"{name} looks like {like}")
    for item in dataset.items:
        if not item.caption:
            yield Problem("no caption", item.name, f"{item.name} has no caption")
    if too_long is not None:
        yield from _long_captions(dataset, too_long)


def _long_captions(dataset: Dataset, too_long: TooLong) -> Iterator[Problem]:
    for index, item in enumerate(dataset.items):
        rules = dataset.rules_of(item)
        for caption in rules.every_variant(item.captions, dataset.seed, index):
            tokens, cut = too_long(caption)
            if cut:
                yield Problem(
                    "long caption", item.name, f"the caption of {item.name} has {tokens} tokens: cut off is {cut!r}"
                )
                break
