"""What training minimises: the target of each prediction type, and the weight of each timestep."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_lora.diffusion.schedule import NoiseSchedule


def target(schedule: NoiseSchedule, x0_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
    """What the model should answer: the noise, or v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x0
    (Salimans & Ho 2022, appendix D)."""
    if schedule.prediction == "epsilon":
        return noise_BCHW
    signal, sigma = schedule.coefficients(timesteps_B)
    return signal * noise_BCHW - sigma * x0_BCHW


def min_snr_weights(schedule: NoiseSchedule, timesteps_B: Tensor, gamma: float) -> Tensor:
    """Weights [B] on the loss of the model's own prediction (Hang et al. 2023, section 3.4).

    In terms of x0 the weight is min(SNR, gamma); an error of epsilon is SNR times, one of v is SNR + 1 times, the
    error of x0. Where SNR is 0 the weight of epsilon takes its limit, 1.
    """
    snr = schedule.snr(timesteps_B)
    if schedule.prediction == "epsilon":
        return (gamma / snr).clamp(max=1.0)
    return snr.clamp(max=gamma) / (snr + 1.0)


def denoising_loss(prediction_BCHW: Tensor, target_BCHW: Tensor, weights_B: Tensor | None = None) -> Tensor:
    """Mean squared error over everything, in fp32 whatever the prediction's type, each picture by its weight."""
    per_picture = (prediction_BCHW.float() - target_BCHW.float()).square().mean(dim=(1, 2, 3))
    return per_picture.mean() if weights_B is None else (per_picture * weights_B).mean()


def stratified_timesteps(count: int, timesteps: int, generator: torch.Generator) -> Tensor:
    """`count` timesteps [count], each uniform over 0 ... timesteps-1, together spread evenly and in random order.

    Low-discrepancy sampling (Kingma et al. 2021, appendix I.1): the same expectation as independent draws, less noise
    in the gradient of a small batch.
    """
    offset = torch.rand(1, generator=generator, dtype=torch.float64)
    positions = (offset + torch.arange(count, dtype=torch.float64) / count) % 1.0
    return (positions * timesteps).long()[torch.randperm(count, generator=generator)]
