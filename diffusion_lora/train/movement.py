"""How far an adapter has moved: its change against the base's weights, and which layers have none yet.

Cheap enough to be asked now and then while training: products of rank size only, and one wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lora.lora.trainable import TrainedLayer

GONE = 6e-8
"""What is not larger is zero in an fp16 file (its smallest number)."""


@dataclass(frozen=True)
class Movement:
    """What one part of an adapter ("unet", "te") does to its layers.

    `change` is the Frobenius norm of all it adds, DoRA's magnitudes aside, over that of the weights it adds to.
    `still` counts the layers of which no up-matrix element has left its start by more than an fp16 file can hold.
    """

    change: float
    still: int
    layers: int


@torch.no_grad()
def movement(layers: Mapping[str, TrainedLayer], base_weight: Callable[[str], Tensor]) -> dict[str, Movement]:
    """The movement of each part, by the beginning of its layers' keys; `te1` and `te2` are one part, "te"."""
    parts: dict[str, list[Tensor]] = {}
    for key, layer in layers.items():
        down, up = _difference(layer)
        added = (up.T @ up * (down @ down.T)).sum().clamp(min=0) * layer.scale**2
        base = base_weight(key).detach().float().square().sum()
        moved = layer.up.detach() if layer.start is None else layer.up.detach() - layer.start[1]
        numbers = torch.stack([added, base.to(added.device), (moved.abs().amax() <= GONE).float()])
        parts.setdefault("unet" if key.startswith("unet.") else "te", []).append(numbers)
    if not parts:
        return {}
    counts = {part: len(rows) for part, rows in parts.items()}
    sums = torch.stack([torch.stack(rows).sum(0) for rows in parts.values()]).tolist()
    return {
        part: Movement((added / base) ** 0.5 if base else 0.0, round(still), counts[part])
        for part, (added, base, still) in zip(parts, sums, strict=True)
    }


def _difference(layer: TrainedLayer) -> tuple[Tensor, Tensor]:
    """(down [r, in * k * k], up [out, r]) of which the product, times the scale, is what the layer adds.

    What PiSSA starts from is taken off factor by factor, U D - U0 D0 = (U - U0) D + U0 (D - D0): the difference of two
    nearly equal products would be lost in rounding.
    """
    down, up = layer.down.detach().flatten(1), layer.up.detach().flatten(1)
    if layer.directions is not None and layer.directions.matrix is not None:
        return layer.directions.matrix.flatten(1) @ down, up
    if layer.start is not None:
        first_down, first_up = layer.start[0].flatten(1), layer.start[1].flatten(1)
        return torch.cat([down, down - first_down]), torch.cat([up - first_up, first_up], dim=1)
    return down, up
