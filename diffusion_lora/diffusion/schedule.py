"""The noise schedule of a discrete-time diffusion model, read from a diffusers scheduler config.

x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise, t = 0 ... T-1 (Ho et al. 2020, eq. 4). Samplers for
pictures one keeps live elsewhere (diffusers' schedulers); this is what training and its previews need.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from diffusion_lora.errors import BaseModelError, ConfigError

Prediction = Literal["epsilon", "v_prediction"]
_NEARLY_NOISE = 2.0**-24


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """alpha_bar for every timestep, and what the model predicts."""

    alphas_cumprod: Tensor  # [T], fp32, falling
    prediction: Prediction

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """From the entries of a `scheduler_config.json`. Raises BaseModelError for a schedule it does not know."""
        prediction = config.get("prediction_type", "epsilon")
        if prediction not in ("epsilon", "v_prediction"):
            raise BaseModelError(
                f"the base model predicts {prediction!r}; training knows models that predict epsilon or v_prediction"
            )
        alphas_cumprod = torch.cumprod(1.0 - _betas(config), dim=0)
        if config.get("rescale_betas_zero_snr"):
            alphas_cumprod = _zero_terminal_snr(alphas_cumprod)
        return cls(alphas_cumprod, prediction)

    def ending_in_noise(self) -> NoiseSchedule:
        """The schedule whose last timestep holds nothing of the picture (Lin et al. 2023, algorithm 1).

        ConfigError for a model that predicts epsilon: there its answer would say nothing of the picture either.
        """
        if self.prediction == "epsilon":
            raise ConfigError(
                "loss.zero_terminal_snr needs a base that predicts v, and this one predicts epsilon, which says "
                "nothing of the picture where there is only noise: set it to false"
            )
        return replace(self, alphas_cumprod=_zero_terminal_snr(self.alphas_cumprod))

    def to(self, device: torch.device) -> NoiseSchedule:
        return replace(self, alphas_cumprod=self.alphas_cumprod.to(device))

    @property
    def timesteps(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def betas(self) -> Tensor:
        """The schedule as betas [T], for samplers that are given these; an end in pure noise, which they would divide
        by, is lifted to 2**-24, as diffusers does."""
        lifted = self.alphas_cumprod.double().clamp(min=_NEARLY_NOISE)
        return (1.0 - lifted / torch.cat([lifted.new_ones(1), lifted[:-1]])).float()

    def add_noise(self, x0_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """x_t, in fp32."""
        signal, sigma = self.coefficients(timesteps_B)
        return signal * x0_BCHW + sigma * noise_BCHW

    def snr(self, timesteps_B: Tensor) -> Tensor:
        """alpha_bar / (1 - alpha_bar), [B]; 0 at the end of a zero-terminal schedule."""
        alpha_bar = self.alphas_cumprod[timesteps_B]
        return alpha_bar / (1.0 - alpha_bar)

    def coefficients(self, timesteps_B: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar) and sqrt(1 - alpha_bar), each [B, 1, 1, 1]."""
        alpha_bar = self.alphas_cumprod[timesteps_B][:, None, None, None]
        return alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt()


def _betas(config: Mapping[str, Any]) -> Tensor:
    kind, steps = config.get("beta_schedule", "linear"), int(config.get("num_train_timesteps", 1000))
    start, end = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
    if config.get("trained_betas") is not None:
        return torch.tensor(config["trained_betas"], dtype=torch.float32)
    if kind == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float32)
    if kind == "scaled_linear":  # latent diffusion (Rombach et al. 2022)
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32) ** 2
    if kind == "squaredcos_cap_v2":  # Nichol & Dhariwal 2021, eq. 17
        bar = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
        return torch.tensor([min(1 - bar[i + 1] / bar[i], 0.999) for i in range(steps)], dtype=torch.float32)
    raise BaseModelError(
        f"the base model's beta_schedule {kind!r} is not known; known are linear, scaled_linear, squaredcos_cap_v2"
    )


def _zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Shift and stretch sqrt(alpha_bar) so that the last timestep is pure noise (Lin et al. 2023, algorithm 1,
    https://arxiv.org/abs/2305.08891)."""
    root = alphas_cumprod.sqrt()
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    return root**2
