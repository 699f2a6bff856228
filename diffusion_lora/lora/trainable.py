"""An adapter under training: its matrices and gradients as views of one flat buffer per parameter group.

8-bit optimizers keep fp32 state for small tensors and one scale for every 256 elements; a flat, aligned buffer gives
every layer 8-bit state, however small, and costs the optimizer one call a group. Which layers is `inject`'s to say, who
opens their gates is the bank's, and no optimizer is known here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffusion_lora.lora.adapter import Adapter, AdapterLayer
from diffusion_lora.lora.inject import Site

ALIGNMENT = 256
"""Elements of one block of 8-bit optimizers: no two matrices share a block, hence no scale."""

MIN_SEGMENT = 4096
"""bitsandbytes keeps fp32 state for parameters of fewer elements, so no segment is shorter."""


@dataclass(frozen=True)
class Report:
    """What is trained; `str()` is the line to show."""

    layers: int
    parameters: int
    base_parameters: int

    @property
    def share_percent(self) -> float:
        """Trained parameters in percent of those of the components they sit in."""
        return 100 * self.parameters / self.base_parameters

    def __str__(self) -> str:
        return f"{self.layers} layers, {self.parameters:,} parameters, trainable {self.share_percent:.1f} % of the base"


@dataclass(frozen=True, eq=False)
class TrainableAdapter:
    """An adapter under training.

    `segments` is what the optimizer gets: one flat fp32 parameter per group ("unet", and "te" for all text encoders),
    whose `.grad` is one buffer too. The (down, up) in `layers` are views of the segment, their gradients views of its
    gradient, so the backward pass writes straight into the flat buffers. Hence: clear gradients with `zero_grad()`, or
    an optimizer's `zero_grad(set_to_none=False)`; restore a state with ``segment.data.copy_()``; never replace either.
    """

    name: str
    rank: int
    alpha: float
    segments: Mapping[str, nn.Parameter]
    layers: Mapping[str, tuple[Tensor, Tensor]]
    report: Report

    def zero_grad(self) -> None:
        """Zero all gradients in place."""
        for group, segment in self.segments.items():
            if segment.grad is None:
                raise RuntimeError(f"the flat gradient of {group} was set to None: clear it with this zero_grad()")
            segment.grad.zero_()

    def adapter(self, metadata: Mapping[str, str] | None = None) -> Adapter:
        """A copy of the present state on the CPU, fp32."""
        layers = {key: AdapterLayer(_copy(down), _copy(up), self.alpha) for key, (down, up) in self.layers.items()}
        return Adapter(layers, dict(metadata or {}))


def new_trainable(
    name: str, sites: Mapping[str, Site], rank: int, alpha: float, seed: int, base_parameters: int
) -> TrainableAdapter:
    """A fresh adapter for these layers: down ~ N(0, 1 / in) whatever the rank (`in` counts the kernel), up = 0.

    A layer's numbers depend on the seed and its key alone, so a wider choice of layers does not change them.
    """
    groups: dict[str, list[str]] = {}
    for key in sites:
        groups.setdefault(_group(key), []).append(key)
    segments, layers = {}, {}
    for group, keys in groups.items():
        shapes = [shape for key in keys for shape in _shapes(sites[key].weight, rank)]
        segment, views = _flat_buffer(shapes, sites[keys[0]].weight.device)
        segments[group] = segment
        for key, down, up in zip(keys, views[::2], views[1::2], strict=True):
            with torch.no_grad():
                down.copy_(_initial_down(down.shape, seed, key))
            layers[key] = (down, up)
    parameters = sum(down.numel() + up.numel() for down, up in layers.values())
    return TrainableAdapter(name, rank, alpha, segments, layers, Report(len(layers), parameters, base_parameters))


def _group(key: str) -> str:
    return "unet" if key.startswith("unet.") else "te"


def _shapes(weight: Tensor, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of down and up for a base weight ``[out, in(, k, k)]``."""
    out, kernel = weight.shape[0], weight.shape[2:]
    return (rank, *weight.shape[1:]), (out, rank, *(1 for _ in kernel))


def _flat_buffer(shapes: list[tuple[int, ...]], device: torch.device) -> tuple[nn.Parameter, list[Tensor]]:
    """A zero parameter with its gradient, and a leaf tensor for every shape that is a view of both."""
    lengths = [-(-math.prod(shape) // ALIGNMENT) * ALIGNMENT for shape in shapes]
    flat = nn.Parameter(torch.zeros(max(sum(lengths), MIN_SEGMENT), device=device))
    flat.grad = torch.zeros_like(flat)
    views, start = [], 0
    for shape, length in zip(shapes, lengths, strict=True):
        stop = start + math.prod(shape)
        view = flat.detach()[start:stop].view(shape).requires_grad_()
        view.grad = flat.grad[start:stop].view(shape)
        views.append(view)
        start += length
    return flat, views


def _initial_down(shape: tuple[int, ...], seed: int, key: str) -> Tensor:
    digest = hashlib.sha256(f"{seed} {key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    return torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)
