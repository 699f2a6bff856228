"""Pictures that are kept back from a training, to see whether what is learned holds for others too. No torch."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from diffusion_lora.data.dataset import Dataset

AUTOMATICALLY_FROM = 12
"""Fewer pictures than these are all needed for learning."""

_SHARE, _LEAST, _MOST = 0.1, 2, 32


def held_out_count(pictures: int, wanted: int) -> int:
    """How many of so many pictures are kept back: `wanted`, with -1 a tenth, from 12 pictures up; one always stays."""
    if wanted >= 0:
        return min(wanted, max(0, pictures - 1))
    return 0 if pictures < AUTOMATICALLY_FROM else min(_MOST, max(_LEAST, round(_SHARE * pictures)))


def hold_out(dataset: Dataset, wanted: int) -> tuple[Dataset, Dataset | None]:
    """The set without its held-out pictures, and these as a set; None if none are.

    Which ones is a function of the seed and of each picture's pixels: adding a picture to a folder does not change the
    fate of the others, and a copy of a held-out picture is not trained on. Pictures for regularisation always stay.
    """
    learned = [i for i, item in enumerate(dataset.items) if not dataset.sources[item.source].regularisation]
    count = held_out_count(len(learned), wanted)
    order = sorted(learned, key=lambda index: _draw(dataset.seed, dataset.seen[index].pixels))
    chosen = {dataset.seen[index].pixels for index in order[:count]}
    held = [index for index in learned if dataset.seen[index].pixels in chosen]
    if not held or len(held) == len(learned):
        return dataset, None
    return _part(dataset, [i for i in range(len(dataset.items)) if i not in set(held)]), _part(dataset, held)


def _part(dataset: Dataset, indices: list[int]) -> Dataset:
    return replace(
        dataset,
        items=tuple(dataset.items[i] for i in indices),
        seen=tuple(dataset.seen[i] for i in indices),
        masks=tuple(dataset.masks[i] for i in indices),
        places=tuple(dataset.places[i] for i in indices),
    )


def _draw(seed: int, pixels: str) -> bytes:
    return hashlib.sha256(f"held out {seed} {pixels}".encode()).digest()
