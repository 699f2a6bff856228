"""Which timesteps a training step sees: places in a distribution, spread evenly over the pictures of the step.

Each distribution is given by its inverse, so that the even spread of uniform places carries over to all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_lora.config import LossTable
from diffusion_lora.errors import ConfigError


def draw_timesteps(table: LossTable, count: int, timesteps: int, generator: torch.Generator) -> Tensor:
    """`count` timesteps [count] of a schedule of `timesteps`, in the range and by the distribution of `[loss]`.

    Low-discrepancy sampling (Kingma et al. 2021, https://arxiv.org/abs/2107.00630, appendix I.1): each timestep is
    distributed as asked, together they are spread evenly and in random order; the same expectation as independent
    draws, less noise in the gradient of a small batch. Small timesteps are early, near the picture; late ones noise.
    """
    first, end = timestep_range(table, timesteps)
    offset = torch.rand(1, generator=generator, dtype=torch.float64)
    places = (offset + torch.arange(count, dtype=torch.float64) / count) % 1.0
    drawn = (first + _distributed(table, places) * (end - first)).long().clamp(max=end - 1)
    return drawn[torch.randperm(count, generator=generator)]


def timestep_range(table: LossTable, timesteps: int) -> tuple[int, int]:
    """The first timestep that is trained and the one after the last. ConfigError where nothing lies between them."""
    first, end = table.min_timestep, table.max_timestep or timesteps
    if not first < end <= timesteps:
        raise ConfigError(
            f"loss.min_timestep = {first} and loss.max_timestep = {table.max_timestep} leave no timestep: "
            f"the base has 0 to {timesteps - 1}, and the maximum (0 = all) is the first that is not trained"
        )
    return first, end


def _distributed(table: LossTable, places: Tensor) -> Tensor:
    """Uniform places in [0, 1) as places of the distribution: the inverse of its cumulative function.

        uniform         all alike
        logit-normal    sigmoid of a normal variable: the middle more than the ends (Esser et al. 2024,
                        https://arxiv.org/abs/2403.03206, section 3.1, its time over the discrete schedule)
        late, early     density (b + 1) x^b of the distance x from the other end, b = `timestep_bias`
    """
    match table.timesteps:
        case "logit-normal":
            return (table.logit_mean + table.logit_std * torch.special.ndtri(places)).sigmoid()
        case "late":
            return places ** (1.0 / (table.timestep_bias + 1.0))
        case "early":
            return 1.0 - (1.0 - places) ** (1.0 / (table.timestep_bias + 1.0))
    return places
