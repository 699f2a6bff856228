"""Pictures to latents and back: the verbs of the autoencoder, which all families share.

Its arithmetic is fp32: half precision overflows in XL's and then gives black pictures. One whose publisher says that it
stands half precision (`force_upcast` false, such as sdxl-vae-fp16-fix) is used in the base's precision on a graphics
card, for half the memory; should a picture come out as no numbers all the same, it is decoded again in fp32, for good.
"""

from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lora.families.model import Model


def vae_dtype(vae: nn.Module, device: torch.device, base: torch.dtype) -> torch.dtype:
    """The precision of an autoencoder beside a base of this one."""
    config: Any = vae.config
    return base if device.type == "cuda" and config.get("force_upcast") is False else torch.float32


def encode_image(model: Model, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the scaled latents, in fp32."""
    shift, scale = _shift_and_scale(model)

    def moments() -> tuple[Tensor, Tensor]:
        vae: Any = model.vae
        posterior = vae.encode(x_BCHW.to(model.device, vae.dtype)).latent_dist
        return (posterior.mean.float() - shift) * scale, posterior.std.float() * scale

    with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
        mean, std = moments()
        if _overflown(model, mean):
            mean, std = moments()
    return mean, std


def decode(model: Model, latents: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] in [0, 1] from scaled latents, in fp32."""
    shift, scale = _shift_and_scale(model)
    unscaled = latents.to(model.device, torch.float32) / scale + shift

    def pictures() -> Tensor:
        vae: Any = model.vae
        return vae.decode(unscaled.to(vae.dtype)).sample.float()

    with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
        x_BCHW = pictures()
        if _overflown(model, x_BCHW):
            x_BCHW = pictures()
    return (x_BCHW / 2 + 0.5).clamp(0, 1)


def _overflown(model: Model, result: Tensor) -> bool:
    """Whether half precision failed; the autoencoder is then in fp32 from here on, and the person is told."""
    vae: Any = model.vae
    if vae.dtype == torch.float32 or bool(torch.isfinite(result).all()):
        return False
    model.notes.append(
        f"the autoencoder of {model.name} gave no numbers in {str(vae.dtype).removeprefix('torch.')}: "
        "it works in fp32 from here on"
    )
    vae.float()
    return True


def _shift_and_scale(model: Model) -> tuple[float, float]:
    config: Any = model.vae.config
    return config.shift_factor or 0.0, config.scaling_factor
