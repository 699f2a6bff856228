"""What training minimises: the target of each prediction type, the measure of an error, the weight of each timestep."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_lora.config import LossTable
from diffusion_lora.diffusion.schedule import NoiseSchedule


def picture_losses(
    table: LossTable,
    schedule: NoiseSchedule,
    prediction_BCHW: Tensor,
    x0_BCHW: Tensor,
    noise_BCHW: Tensor,
    timesteps_B: Tensor,
    mask_B1HW: Tensor | None = None,
) -> Tensor:
    """The loss of each picture [B] as `[loss]` says, in fp32 whatever the prediction's type: the mean over its latents,
    times the weight of its timestep. Each latent counts as its mask says; the mean is over all, masked or not."""
    errors = prediction_BCHW.float() - target(schedule, x0_BCHW, noise_BCHW, timesteps_B).float()
    if table.kind == "huber":
        errors = pseudo_huber(errors, huber_widths(table, schedule, timesteps_B)[:, None, None, None])
    else:
        errors = errors.square()
    if mask_B1HW is not None:
        errors = errors * mask_B1HW.to(errors.device, non_blocking=True)
    losses = errors.mean(dim=(1, 2, 3))
    if table.min_snr_gamma is not None:
        losses = losses * min_snr_weights(schedule, timesteps_B, table.min_snr_gamma)
    if table.debiased:
        losses = losses * debiased_weights(schedule, timesteps_B)
    return losses


def target(schedule: NoiseSchedule, x0_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
    """What the model should answer: the noise, or v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x0
    (Salimans & Ho 2022, appendix D)."""
    if schedule.prediction == "epsilon":
        return noise_BCHW
    signal, sigma = schedule.coefficients(timesteps_B)
    return signal * noise_BCHW - sigma * x0_BCHW


def min_snr_weights(schedule: NoiseSchedule, timesteps_B: Tensor, gamma: float) -> Tensor:
    """Weights [B] on the loss of the model's own prediction (Hang et al. 2023, section 3.4).

    https://arxiv.org/abs/2303.09556. In terms of x0 the weight is min(SNR, gamma); an error of epsilon is SNR times,
    one of v is SNR + 1 times, the error of x0. Where SNR is 0 the weight of epsilon takes its limit, 1.
    """
    snr = schedule.snr(timesteps_B)
    if schedule.prediction == "epsilon":
        return (gamma / snr).clamp(max=1.0)
    return snr.clamp(max=gamma) / (snr + 1.0)


def debiased_weights(schedule: NoiseSchedule, timesteps_B: Tensor) -> Tensor:
    """Weights [B] of debiased estimation (Yu et al. 2023, https://arxiv.org/abs/2310.08442): 1 / sqrt(SNR) on the error
    of epsilon, hence sqrt(SNR) on that of x0, hence sqrt(SNR) / (SNR + 1) on that of v.

    SNR is taken at most as 1000, as the authors do. (sd-scripts weighs v by 1 / (SNR + 1), another loss in terms of
    x0.)
    """
    snr = schedule.snr(timesteps_B).clamp(min=1e-8, max=1000.0)
    return snr.rsqrt() if schedule.prediction == "epsilon" else snr.sqrt() / (snr + 1.0)


def pseudo_huber(errors: Tensor, width: Tensor) -> Tensor:
    """2 c (sqrt(e^2 + c^2) - c): e squared where e is small beside c, 2 c |e| where it is large, so that odd pixels and
    pictures weigh less (Khrapov et al. 2024, https://arxiv.org/abs/2403.16728)."""
    squares = errors.square()
    # The same without the difference of two nearly equal numbers.
    return 2.0 * width * squares / ((squares + width.square()).sqrt() + width)


def huber_widths(table: LossTable, schedule: NoiseSchedule, timesteps_B: Tensor) -> Tensor:
    """The width c [B] of pseudo-Huber: all the same, or falling from 1 at the picture to `huber_c` at noise.

    "snr" is c + (1 - c) / (1 + sigma)^2 with sigma = sqrt(1 / SNR), "exponential" is c ** (t / T) (the same paper,
    section 4).
    """
    c = table.huber_c
    match table.huber_schedule:
        case "snr":
            return c + (1.0 - c) / (1.0 + schedule.snr(timesteps_B).rsqrt()).square()
        case "exponential":
            return c ** (timesteps_B / schedule.timesteps)
    return torch.full_like(timesteps_B, c, dtype=torch.float32)
