"""Where in a picture an adapter acts: a mask, and the gate that follows it into every layer of a UNet.

A layer of a UNet sees the picture as a plane (convolutions), as its places in a row (attention, feed-forward), or not
at all (time embedding); the keys and values of cross-attention see the words of the prompt instead. An area says for
each of them how much of an adapter's change is let through: the mask resampled to the plane; the adapter's own words;
and the mask's mean, where a layer knows no place. Soft edges are values between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Sight = Literal["places", "words", "nothing"]
"""What a layer sees of the picture."""


@dataclass(frozen=True, eq=False)
class Area:
    """A mask at the size of the picture's latents, ``[H, W]`` from 0 to 1, and the share that each word of the
    prompt's conditioning has in it, ``[T]``; no words means none of them."""

    mask: Tensor
    words: Tensor
    _sizes: dict[tuple[int, int], Tensor] = field(default_factory=dict, repr=False)

    def at(self, size: tuple[int, int]) -> Tensor:
        """The mask averaged down to ``[h, w]``."""
        if size not in self._sizes:
            self._sizes[size] = F.adaptive_avg_pool2d(self.mask[None], size)[0]
        return self._sizes[size]

    @property
    def mean(self) -> float:
        """The share of the picture that it covers."""
        return float(self.mask.mean())


@dataclass(frozen=True)
class Setting:
    """How an adapter acts: its strength, times a factor for the block that a layer is in (1 where none is given),
    everywhere or in an area."""

    strength: float
    blocks: tuple[tuple[str, float], ...] = ()
    area: Area | None = None

    def in_block(self, block: str) -> float:
        """The strength in this block."""
        return self.strength * dict(self.blocks).get(block, 1.0)


class Patch(NamedTuple):
    """Rank rows `start` to `stop` of batch row `row` act by `value` inside `area`."""

    row: int
    start: int
    stop: int
    value: float
    area: Area


class Spread:
    """A gate that differs from place to place: rows that act everywhere, ``[batch, R]``, and patches on top."""

    def __init__(self, everywhere: Tensor, patches: Sequence[Patch], sight: Sight) -> None:
        self._everywhere = everywhere
        self._patches = tuple(patches)
        self._sight = sight
        self._planes: dict[tuple[int, int], Tensor] = {}

    def on_plane(self, size: tuple[int, int]) -> Tensor:
        """The gate on a plane of h x w places, ``[batch, R, h, w]``."""
        if size not in self._planes:
            plane = self._everywhere[:, :, None, None].repeat(1, 1, *size)
            for row, start, stop, value, area in self._patches:
                plane[row, start:stop] += value * area.at(size).to(plane.device)
            self._planes[size] = plane
        return self._planes[size]

    def on_tokens(self, count: int) -> Tensor:
        """The gate on as many places in a row, or words, ``[batch, count, R]``."""
        if self._sight == "places":
            return self.on_plane(self._size_of(count)).flatten(2).transpose(1, 2)
        if (count, 0) not in self._planes:
            words = self._everywhere[:, None, :].repeat(1, count, 1)
            for row, start, stop, value, area in self._patches:
                shares = area.words.to(words.device)[:, None]
                if len(shares) != count:
                    raise ValueError(f"an area knows {len(shares)} words but the prompt has {count}")
                words[row, :, start:stop] += value * shares
            self._planes[count, 0] = words
        return self._planes[count, 0]

    def _size_of(self, count: int) -> tuple[int, int]:
        """Which halving of the picture has so many places."""
        height, width = self._patches[0].area.mask.shape
        while height * width > count:
            height, width = -(-height // 2), -(-width // 2)
        if height * width != count:
            raise ValueError(f"{count} places are no halving of {tuple(self._patches[0].area.mask.shape)} latents")
        return height, width


def summed(rows: Sequence[tuple[float, Area | None]], sight: Sight) -> tuple[float, list[tuple[float, Area]]]:
    """Of the strengths with which one adapter acts: what acts everywhere, and what in areas, as this sight has it."""
    everywhere, inside = 0.0, list[tuple[float, Area]]()
    for strength, area in rows:
        if area is None:
            everywhere += strength
        elif sight == "nothing":
            everywhere += strength * area.mean
        elif strength:
            inside.append((strength, area))
    return everywhere, inside


def stacked(mask_of_parts: Sequence[Tensor]) -> Tensor:
    """Masks of regions, ``[n, H, W]``, scaled down where they overlap so that they sum to at most 1."""
    masks = torch.stack(list(mask_of_parts))
    return masks / masks.sum(dim=0, keepdim=True).clamp(min=1.0)
