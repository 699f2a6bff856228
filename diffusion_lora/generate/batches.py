"""Which requests are drawn as one batch: those alike in size, steps and sampler, as many as memory is likely to hold.

No torch."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffusion_lora.generate.request import SIZE_STEP_PX, Request
from diffusion_lora.generate.samplers import sampler_named

if TYPE_CHECKING:
    from diffusion_lora.families.family import Model

# Latents in one pass, 64 x 64 being a 512 px picture: 4 of Stable Diffusion 1, 64 of pocket. Decoding takes more room.
_LATENTS_A_BATCH = 4 * 64 * 64


@dataclass(frozen=True)
class Job:
    """A request with its place in the list that was asked for."""

    index: int
    request: Request


def kind(request: Request) -> Hashable:
    """Equal for resolved requests that one batch can draw."""
    start = request.start.steps(request.steps) if request.start else None
    return request.height, request.width, request.steps, request.sampler, start, request.hires, request.tiling


def at_once(model: Model, request: Request) -> int:
    """How many pictures like this one batch draws, where memory suffices."""
    width, height = request.width, request.height
    if request.hires:
        width, height = request.hires.size(width, height, SIZE_STEP_PX)
    _, rows, columns = model.latent_shape(height, width)
    return max(1, _LATENTS_A_BATCH // (rows * columns))


def batches(model: Model, jobs: Sequence[Job], batch_size: int | None) -> Iterator[list[Job]]:
    """The jobs in batches of those alike, of at most `batch_size` (None: by memory)."""
    alike: dict[Hashable, list[Job]] = {}
    for job in jobs:
        alike.setdefault(kind(job.request), []).append(job)
    for group in alike.values():
        size = batch_size or at_once(model, group[0].request)
        for start in range(0, len(group), size):
            yield group[start : start + size]


def evaluations(request: Request) -> int:
    """How often the model is asked for this picture, or for a batch of its kind."""
    sampler = sampler_named(request.sampler)
    count = sampler.evaluations(request.start.steps(request.steps) if request.start else request.steps)
    return count + (sampler.evaluations(request.hires.drawn_steps(request.steps)) if request.hires else 0)
