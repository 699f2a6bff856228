"""Regions as tensors: where each of them is, at the size of the latents, and how they share the picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffusion_lora.generate.region import Region


def shares(regions: Sequence[Region], height: int, width: int) -> Tensor:
    """What the request's own prompt and each region have of every place, ``[1 + regions, h, w]``, summing to 1.

    Regions that overlap share the place in the ratio of their masks; the request's own prompt has what is left.
    """
    if not regions:
        return torch.ones(1, height, width)
    masks = torch.stack([mask(region, height, width) for region in regions])
    masks = masks / masks.sum(dim=0, keepdim=True).clamp(min=1.0)
    return torch.cat([(1 - masks.sum(dim=0, keepdim=True)).clamp(min=0.0), masks])


def mask(region: Region, height: int, width: int) -> Tensor:
    """Where a region is, ``[h, w]`` from 0 to 1."""
    image = region.mask_image()
    if image is not None:
        small = image.resize((width, height), Image.Resampling.BOX)
        return torch.from_numpy(np.asarray(small, dtype=np.float32) / 255)
    left, top, right, bottom = region.box
    return _ramp(top, bottom, region.soft, height)[:, None] * _ramp(left, right, region.soft, width)[None, :]


def _ramp(start: float, end: float, soft: float, count: int) -> Tensor:
    """1 between start and end, with edges `soft` wide around them; the picture's own borders have no edge."""
    places = (torch.arange(count) + 0.5) / count
    edge = max(soft, 1e-6)
    inside = torch.ones(count)
    if start > 0:
        inside = inside * ((places - start) / edge + 0.5).clamp(0, 1)
    if end < 1:
        inside = inside * ((end - places) / edge + 0.5).clamp(0, 1)
    return inside
