"""Losses at fixed noise: the same pictures, timesteps and noise every time, so that only what was learned shows.

A training step's loss is mostly the luck of its timesteps; these have none. Nothing is drawn from the streams of
training, and nothing is kept that training would see: a run that is measured learns the same numbers as one that is
not.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lora.config import LossTable, TrainConfig
from diffusion_lora.data.dataset import Dataset
from diffusion_lora.diffusion.objective import picture_losses
from diffusion_lora.diffusion.timesteps import timestep_range
from diffusion_lora.families.family import predict, with_sizes
from diffusion_lora.train.conditioning import learning, text_learns
from diffusion_lora.train.draws import Draw, seeded, sizes_of
from diffusion_lora.train.learner import Learner
from diffusion_lora.train.prepare import Prepared

_PROBE = 30  # a stream of random numbers, apart from those of training


@dataclass(frozen=True, eq=False)
class Probe:
    """Rows to be measured again and again, in passes of one shape; `pictures` says which picture each row is of."""

    names: tuple[str, ...]
    passes: tuple[Draw, ...]
    pictures: tuple[tuple[int, ...], ...]


def make_probe(
    ready: Prepared, config: TrainConfig, dataset: Dataset, *, timesteps: int, captions: bool = True
) -> Probe:
    """Each picture of a set at `timesteps` timesteps, spread evenly over those that are trained, with its first caption
    or with none. The noise depends on the timestep alone, so that pictures are compared under the same one."""
    views = dataset.plain_views()
    places = spread_timesteps(config.loss, ready.schedule.timesteps, timesteps)
    rows: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for index, place in enumerate(dataset.places):
        rows.setdefault(place.bucket, []).extend((index, number) for number in range(timesteps))
    passes, pictures = [], []
    for own in rows.values():
        for start in range(0, len(own), config.train.batch_size):
            part = own[start : start + config.train.batch_size]
            encoded = [ready.latents.of(views[index]) for index, _ in part]
            x0_BCHW = torch.stack([each.mean for each in encoded])
            noise_BCHW = torch.stack(
                [torch.randn(x0_BCHW.shape[1:], generator=seeded(_PROBE, 0, number)) for _, number in part]
            )
            whole = torch.ones(1, *x0_BCHW.shape[2:])
            masks = [each.mask for each in encoded]
            passes.append(
                Draw(
                    names=tuple(dataset.items[index].name for index, _ in part),
                    captions=tuple(dataset.caption(index, 0) if captions else "" for index, _ in part),
                    x0_BCHW=x0_BCHW,
                    noise_BCHW=noise_BCHW,
                    input_noise_BCHW=noise_BCHW,
                    timesteps_B=torch.tensor([places[number] for _, number in part]),
                    sizes=tuple(sizes_of(views[index]) for index, _ in part),
                    mask_B1HW=None
                    if all(mask is None for mask in masks)
                    else torch.stack([whole if mask is None else mask for mask in masks]),
                )
            )
            pictures.append(tuple(index for index, _ in part))
    return Probe(tuple(item.name for item in dataset.items), tuple(passes), tuple(pictures))


@torch.no_grad()
def measure(ready: Prepared, learners: Sequence[Learner], probe: Probe) -> Tensor:
    """The mean loss of each picture, [learners, pictures] on the CPU, with what would be saved of each adapter now.

    It is the loss that the learner is trained by. Inside `AdapterBank.side_by_side` where there are several learners.
    """
    schedule, device, count = ready.schedule, ready.model.device, len(learners)
    sums = torch.zeros(count, len(probe.names), dtype=torch.float64)
    rows = torch.zeros(len(probe.names), dtype=torch.float64)
    configs, adapters = [learner.config for learner in learners], [learner.adapter for learner in learners]
    text = any(text_learns(config, adapter) for config, adapter in zip(configs, adapters, strict=True))
    # Encoders of its own: what training keeps of resting ones must not come from an average.
    condition = learning(configs, ready.model, adapters) if text else ready.condition
    with ExitStack() as averages:
        for learner in learners:
            averages.enter_context(learner.optimizer.averaged())
        for single, pictures in zip(probe.passes, probe.pictures, strict=True):
            draw = Draw.joined([single] * count)
            x0_BCHW, noise_BCHW, timesteps_B = (
                tensor.to(device) for tensor in (draw.x0_BCHW, draw.noise_BCHW, draw.timesteps_B)
            )
            with ready.arithmetic():
                cond = with_sizes(ready.model, condition(draw.captions), draw.sizes)
                prediction_BCHW = predict(
                    ready.model, schedule.add_noise(x0_BCHW, noise_BCHW, timesteps_B), timesteps_B, cond
                )
            mask = draw.mask_B1HW
            parts = [tensor.chunk(count) for tensor in (prediction_BCHW, x0_BCHW, noise_BCHW, timesteps_B)]
            masks = [None] * count if mask is None else mask.chunk(count)
            which = torch.tensor(pictures)
            for row, (learner, prediction, x0, noise, timesteps, own) in enumerate(
                zip(learners, *parts, masks, strict=True)
            ):
                losses_B = picture_losses(learner.config.loss, schedule, prediction, x0, noise, timesteps, own)
                sums[row].index_add_(0, which, losses_B.double().cpu())
            rows.index_add_(0, which, torch.ones(len(pictures), dtype=torch.float64))
    return sums / rows


def spread_timesteps(table: LossTable, timesteps: int, count: int) -> list[int]:
    """`count` timesteps of a schedule, in the middle of equal parts of the range that is trained."""
    first, end = timestep_range(table, timesteps)
    return [first + int((number + 0.5) / count * (end - first)) for number in range(count)]
