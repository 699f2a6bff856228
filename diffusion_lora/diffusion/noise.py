"""The noise of a training step beyond plain white noise. Everything is drawn from the generator that is passed in."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def with_offset(noise_BCHW: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Noise that also moves whole channels up and down, so that pictures can be learned that are dark or bright as a
    whole (Guttenberg 2023, "Diffusion with offset noise", https://www.crosslabs.org/blog/diffusion-with-offset-noise)."""
    batch, channels = noise_BCHW.shape[:2]
    return noise_BCHW + strength * torch.randn(batch, channels, 1, 1, generator=generator)


def with_pyramid(noise_BCHW: Tensor, discount: float, levels: int, generator: torch.Generator) -> Tensor:
    """Noise of several resolutions: level i is 2 to 4 times coarser than the one before and counts `discount` ** i.

    Whitaker 2023, "Multi-resolution noise for diffusion model training". Scaled back to a standard deviation of 1,
    picture by picture, so that none depends on its neighbours.
    """
    height, width = noise_BCHW.shape[2:]
    total, coarseness = noise_BCHW, 1.0
    for level in range(1, levels + 1):
        coarseness *= 2.0 + 2.0 * torch.rand(1, generator=generator).item()
        size = max(1, int(height / coarseness)), max(1, int(width / coarseness))
        coarse = torch.randn(*noise_BCHW.shape[:2], *size, generator=generator)
        total = total + discount**level * F.interpolate(coarse, (height, width), mode="bilinear")
        if size == (1, 1):
            break
    return total / total.std(dim=(1, 2, 3), keepdim=True)


def perturbed(noise_BCHW: Tensor, gamma: float, generator: torch.Generator) -> Tensor:
    """The noise that the input is made with, while the target keeps the plain one: a model that has seen inputs
    slightly off drifts less when drawing (Ning et al. 2023, https://arxiv.org/abs/2301.11706, algorithm 2)."""
    return noise_BCHW + gamma * torch.randn(noise_BCHW.shape, generator=generator)
