"""Every picture of a set, encoded once: mean and spread of its latents, in memory.

The encoder is passed in; training draws a fresh latent from the distribution each time, as if it encoded again. A
picture that cannot be read is left out and reported, never half used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffusion_lora.data.folder import Item
from diffusion_lora.errors import DatasetError
from diffusion_lora.images import open_image, square


@dataclass(frozen=True, eq=False)
class LatentCache:
    """The readable items of a set and their latents; `views` is 2 when each is kept mirrored as well."""

    items: tuple[Item, ...]
    mean: Tensor  # [items, views, channels, height, width], fp32, on the CPU
    std: Tensor  # the same

    def sample(self, indices: Sequence[int], mirrored: Sequence[bool], generator: torch.Generator) -> Tensor:
        """One draw of the latents of each picture, [len(indices), C, H, W]."""
        rows, views = torch.tensor(indices), torch.tensor(mirrored).long()
        mean, std = self.mean[rows, views], self.std[rows, views]
        return mean + std * torch.randn(mean.shape, generator=generator)


def cache_latents(
    items: Sequence[Item],
    encode: Callable[[Tensor], tuple[Tensor, Tensor]],
    *,
    size_px: int,
    flip: bool = False,
    batch_size: int = 8,
    on_problem: Callable[[Item, str], None],
) -> LatentCache:
    """Open, crop and encode every item.

    `encode` takes pictures [B, 3, size, size] in [-1, 1] to the (mean, std) [B, C, h, w] of their latents;
    `on_problem(item, why)` is called for each picture that is left out. Raises DatasetError when none is left, or when
    a picture's latents are not finite.
    """
    readable: list[Item] = []
    encoded: list[tuple[Tensor, Tensor]] = []
    pending: list[Tensor] = []
    views = 2 if flip else 1

    def encode_pending() -> None:
        mean, std = encode(torch.stack(pending))
        encoded.append((mean.float().cpu(), std.float().cpu()))
        pending.clear()

    for item in items:
        try:
            pixels_CHW = _pixels(item, size_px)
        except DatasetError as problem:
            on_problem(item, str(problem))
            continue
        readable.append(item)
        pending += [pixels_CHW, pixels_CHW.flip(-1)][:views]
        if len(pending) >= batch_size:
            encode_pending()
    if not readable:
        raise DatasetError(f"none of the {len(items)} pictures in {items[0].path.parent} can be read")
    if pending:
        encode_pending()
    mean, std = (torch.cat(parts).unflatten(0, (-1, views)) for parts in zip(*encoded, strict=True))
    _demand_finite(readable, mean, std)
    return LatentCache(tuple(readable), mean, std)


def _pixels(item: Item, size_px: int) -> Tensor:
    pixels_HWC = torch.from_numpy(np.array(square(open_image(item.path), size_px)))
    return pixels_HWC.permute(2, 0, 1).float() / 127.5 - 1.0


def _demand_finite(items: Sequence[Item], mean: Tensor, std: Tensor) -> None:
    finite = mean.isfinite().flatten(1).all(1) & std.isfinite().flatten(1).all(1)
    if not finite.all():
        name = items[int((~finite).nonzero()[0])].name
        raise DatasetError(
            f"the autoencoder gives latents that are not finite for {name}: take the picture out, or use another "
            "autoencoder if it happens to all of them"
        )
