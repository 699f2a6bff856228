"""Everything a training step draws at random: a function of (seed, step), whatever happened before.

All draws are made on the CPU, so that a run is the same on every device up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffusion_lora.config import TrainConfig
from diffusion_lora.data.cache import LatentCache
from diffusion_lora.data.dataset import Dataset
from diffusion_lora.data.views import Shown
from diffusion_lora.diffusion.noise import perturbed, with_offset, with_pyramid
from diffusion_lora.diffusion.timesteps import draw_timesteps
from diffusion_lora.families.family import Sizes

# Streams of numbers, apart from those of `data`. What is off draws nothing and shifts nobody else's numbers.
_STEP, _PREVIEW = 3, 4
_OFFSET, _PYRAMID, _PERTURBATION = 20, 21, 22


@dataclass(frozen=True, eq=False)
class Draw:
    """One forward pass: pictures by name, their captions (empty where dropped), latents, noise and timesteps.

    `sizes` is what a base may want to know of each picture's size. `input_noise_BCHW` is what the input is made with:
    the noise, or more of it (`loss.input_perturbation`).
    `weights_B` is what each picture's loss counts, None where all count the same; `mask_B1HW` what counts of each
    latent, from 0 to 1, None where all of it does.
    """

    names: tuple[str, ...]
    captions: tuple[str, ...]
    x0_BCHW: Tensor  # noqa: N815
    noise_BCHW: Tensor  # noqa: N815
    input_noise_BCHW: Tensor  # noqa: N815
    timesteps_B: Tensor  # noqa: N815
    sizes: tuple[Sizes, ...]
    weights_B: Tensor | None = None  # noqa: N815
    mask_B1HW: Tensor | None = None  # noqa: N815

    @classmethod
    def joined(cls, draws: Sequence[Draw], *, pin: bool = False) -> Draw:
        """The rows of all, one after the other; `pin` puts them where a GPU fetches them without being waited for."""

        def join(tensors: Sequence[Tensor]) -> Tensor:
            together = tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
            return together.pin_memory() if pin else together

        def join_if_any(tensors: Sequence[Tensor | None]) -> Tensor | None:
            there = [tensor for tensor in tensors if tensor is not None]
            return join(there) if there else None

        return cls(
            tuple(name for draw in draws for name in draw.names),
            tuple(caption for draw in draws for caption in draw.captions),
            join([draw.x0_BCHW for draw in draws]),
            join([draw.noise_BCHW for draw in draws]),
            join([draw.input_noise_BCHW for draw in draws]),
            join([draw.timesteps_B for draw in draws]),
            tuple(sizes for draw in draws for sizes in draw.sizes),
            join_if_any([draw.weights_B for draw in draws]),
            join_if_any([draw.mask_B1HW for draw in draws]),
        )


def draw_step(
    step: int,
    dataset: Dataset,
    latents: LatentCache,
    config: TrainConfig,
    timesteps: int,
    share: tuple[int, int] = (0, 1),
) -> list[Draw]:
    """The forward passes of step 0, 1, ...: `train.accumulation` of `train.batch_size` pictures each.

    `share`, (i, n), is the part of the i-th of n processes: together they see what one sees with n times the batch.
    """
    rank, processes = share
    size = config.train.batch_size
    count = size * config.train.accumulation * processes
    chosen = dataset.select(step, count)
    generator = seeded(_STEP, config.train.seed, step)
    shown = dataset.shown(chosen)
    x0_BCHW, mask_B1HW = latents.sample(shown, generator)
    noise_BCHW, input_noise_BCHW = _noises(torch.randn(x0_BCHW.shape, generator=generator), step, config)
    timesteps_B = draw_timesteps(config.loss, count, timesteps, generator)
    names = [dataset.items[index].name for index in chosen.indices]
    captions = dataset.captions(chosen)
    weights = dataset.weights(chosen)
    weights_B = None if set(weights) == {1.0} else torch.tensor(weights)
    return [
        Draw(
            tuple(names[part]),
            tuple(captions[part]),
            x0_BCHW[part],
            noise_BCHW[part],
            input_noise_BCHW[part],
            timesteps_B[part],
            tuple(sizes_of(each) for each in shown[part]),
            None if weights_B is None else weights_B[part],
            None if mask_B1HW is None else mask_B1HW[part],
        )
        for part in (slice(start, start + size) for start in range(rank * size, count, processes * size))
    ]


def sizes_of(shown: Shown) -> Sizes:
    """What was done to a picture before it is shown: its own size, and what is cut off once it has the view's scale."""
    (width, height), (target_width, target_height) = shown.item.size, shown.view.size
    scale = max(target_width / width, target_height / height)
    left, top = (
        round(share * max(0.0, scale * side - target))
        for share, side, target in zip(shown.view.crop, shown.item.size, shown.view.size, strict=True)
    )
    if shown.view.mirrored:
        left = max(0, round(scale * width - target_width) - left)
    return Sizes((height, width), (top, left), (target_height, target_width))


def _noises(white_BCHW: Tensor, step: int, config: TrainConfig) -> tuple[Tensor, Tensor]:
    """The noise that is to be told, and the noise in the input."""
    loss, seed = config.loss, config.train.seed
    noise_BCHW = white_BCHW
    if loss.noise_offset:
        noise_BCHW = with_offset(noise_BCHW, loss.noise_offset, seeded(_OFFSET, seed, step))
    if loss.pyramid_noise:
        levels, generator = loss.pyramid_levels, seeded(_PYRAMID, seed, step)
        noise_BCHW = with_pyramid(noise_BCHW, loss.pyramid_noise, levels, generator)
    if loss.input_perturbation:
        return noise_BCHW, perturbed(noise_BCHW, loss.input_perturbation, seeded(_PERTURBATION, seed, step))
    return noise_BCHW, noise_BCHW


def preview_noise(shape_CHW: tuple[int, int, int], seed: int) -> Tensor:
    """The noise one preview picture starts from, [C, H, W]."""
    return torch.randn(shape_CHW, generator=seeded(_PREVIEW, seed, 0))


def seeded(stream: int, seed: int, step: int) -> torch.Generator:
    """A generator of its own for every (stream, seed, step), unrelated to its neighbours."""
    words = np.random.SeedSequence((stream, seed, step)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]))
