"""What a pass of drawing works with: its scheduler, its steps, its noise, the latents it begins with and its masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffusion_lora.diffusion.schedule import NoiseSchedule
from diffusion_lora.families.family import Model, encode_image
from diffusion_lora.families.quiet import quiet
from diffusion_lora.generate.request import Request
from diffusion_lora.generate.samplers import Sampler
from diffusion_lora.generate.start import Canvas


@dataclass(frozen=True)
class Steps:
    """Of a pass: all the steps its schedule has, how many of them are drawn, and those of the pass before it."""

    all: int
    drawn: int
    before: int | None = None


def scheduler_of(sampler: Sampler, config: Mapping[str, Any], steps: int) -> Any:
    """A fresh diffusers scheduler for a base with this config."""
    quiet()
    import diffusers  # after quiet(), or it chatters

    options = dict(sampler.options)
    if steps >= config.get("num_train_timesteps", 1000):
        options["steps_offset"] = 0  # every timestep is taken: an offset would lead beyond the last
    if sampler.scheduler_class == "LCMScheduler":  # its steps are chosen among those it was distilled for, 50 as a rule
        options["original_inference_steps"] = max(50, steps)
    kind = getattr(diffusers, sampler.scheduler_class)
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in signature(kind).parameters:
        options["trained_betas"] = NoiseSchedule.from_config(config).betas.tolist()  # it would not end in noise
    return kind.from_config(dict(config), **options)


def noise_of(request: Request, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """The noise of a request's seed, turned towards that of its variation seed."""
    noise = torch.randn(shape, generator=generator)
    if request.variation_seed is None or not request.variation_strength:
        return noise
    other = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(request.variation_seed))
    # Along the great circle, so that what is between two noises is noise: Shoemake 1985.
    cosine = (noise * other).sum() / (noise.norm() * other.norm())
    angle = torch.acos(cosine.clamp(-0.9995, 0.9995))
    share = torch.tensor(request.variation_strength)
    return (torch.sin((1 - share) * angle) * noise + torch.sin(share * angle) * other) / torch.sin(angle)


def latents_of(model: Model, images: Sequence[Image.Image]) -> Tensor:
    """The mean latents of pictures of one size, in fp32."""
    means = []
    for image in images:
        x_HWC = torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 127.5 - 1)
        means.append(encode_image(model, x_HWC.permute(2, 0, 1)[None].to(model.device))[0])
    return torch.cat(means)


def drawn_shares(model: Model, canvases: Sequence[Canvas | None]) -> Tensor:
    """Of each picture how much of every latent is drawn, [B, 1, h, w]; 1 everywhere without a mask."""
    rows = []
    for canvas in canvases:
        assert canvas is not None
        image = canvas.mask or Image.new("L", canvas.image.size, 255)
        mask = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)[None]
        _, height, width = model.latent_shape(image.height, image.width)
        rows.append(torch.nn.functional.adaptive_avg_pool2d(mask, (height, width)))
    return torch.stack(rows).to(model.device)
