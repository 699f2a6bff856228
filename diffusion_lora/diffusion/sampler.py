"""Deterministic DDIM, for the previews of a training run. The samplers a user chooses from are the generator's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion_lora.diffusion.schedule import NoiseSchedule


@torch.no_grad()
def ddim(
    predict: Callable[[Tensor, Tensor], Tensor], noise_BCHW: Tensor, schedule: NoiseSchedule, steps: int
) -> Tensor:
    """Latents [B, C, H, W] from noise, by Song et al. 2021, eq. 12 with sigma = 0.

    `predict(x_BCHW, timesteps_B)` answers in the schedule's prediction type. Timesteps are spaced "trailing"
    (Lin et al. 2023, section 3.3), so that the first one is the noisiest, T-1, whatever the number of steps.
    """
    stops = torch.linspace(schedule.timesteps, 0, min(steps, schedule.timesteps) + 1).round().long() - 1
    x_BCHW = noise_BCHW.float()
    for now, after in zip(stops[:-1].tolist(), stops[1:].tolist(), strict=True):
        timesteps_B = torch.full((len(x_BCHW),), now, device=x_BCHW.device)
        signal, sigma = schedule.coefficients(timesteps_B)
        prediction = predict(x_BCHW, timesteps_B).float()
        if schedule.prediction == "epsilon":
            x0_BCHW, noise_hat_BCHW = (x_BCHW - sigma * prediction) / signal, prediction
        else:
            x0_BCHW, noise_hat_BCHW = signal * x_BCHW - sigma * prediction, sigma * x_BCHW + signal * prediction
        if after < 0:
            return x0_BCHW
        x_BCHW = schedule.add_noise(x0_BCHW, noise_hat_BCHW, torch.full_like(timesteps_B, after))
    return x_BCHW
