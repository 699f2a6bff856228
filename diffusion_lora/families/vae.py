"""Pictures to latents and back: the verbs of the autoencoder, which all families share.

Its arithmetic is fp32: half precision overflows in XL's and then gives black pictures. One whose publisher says that it
stands half precision (`force_upcast` false, such as sdxl-vae-fp16-fix) is used in the base's precision on a graphics
card, for half the memory; should a picture come out as no numbers all the same, it is made again in fp32, for good.
Where memory does not suffice it works in tiles, for good too. Both are told, once, in the model's notes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lora.families.model import Model

_SMALLEST_TILE = 16  # latents along a side


def vae_dtype(vae: nn.Module, device: torch.device, base: torch.dtype) -> torch.dtype:
    """The precision of an autoencoder beside a base of this one."""
    config: Any = vae.config
    return base if device.type == "cuda" and config.get("force_upcast") is False else torch.float32


def encode_image(model: Model, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the scaled latents, in fp32."""
    shift, scale = _shift_and_scale(model)

    def moments(vae: Any) -> Tensor:
        posterior = vae.encode(x_BCHW.to(model.device, vae.dtype)).latent_dist
        return torch.stack([(posterior.mean.float() - shift) * scale, posterior.std.float() * scale])

    mean, std = _carefully(model, moments, max(x_BCHW.shape[-2:]) // model.vae_factor)
    return mean, std


def decode(model: Model, latents: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] in [0, 1] from scaled latents, in fp32."""
    shift, scale = _shift_and_scale(model)
    unscaled = latents.to(model.device, torch.float32) / scale + shift
    x_BCHW = _carefully(model, lambda vae: vae.decode(unscaled.to(vae.dtype)).sample.float(), max(latents.shape[-2:]))
    return (x_BCHW / 2 + 0.5).clamp(0, 1)


def _carefully(model: Model, compute: Callable[[Any], Tensor], side: int) -> Tensor:
    """What the autoencoder computes for latents of this many along the longer side, and what helps where it cannot."""
    vae: Any = model.vae
    with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
        while True:
            try:
                result = compute(vae)
            except torch.OutOfMemoryError:
                if not _smaller_tiles(model, side):
                    raise
            else:
                if vae.dtype == torch.float32 or bool(torch.isfinite(result).all()):
                    return result
                dtype = str(vae.dtype).removeprefix("torch.")
                model.notes.append(
                    f"the autoencoder of {model.name} gave no numbers in {dtype}: it works in fp32 from here on"
                )
                vae.float()
            if model.device.type == "cuda":  # outside the handler: until here the error held what filled the memory
                torch.cuda.empty_cache()


def _smaller_tiles(model: Model, side: int) -> bool:
    """Let the autoencoder work in tiles of half the size; whether it can."""
    vae: Any = model.vae
    tile = min(side, vae.tile_latent_min_size if vae.use_tiling else side) // 2
    if tile < _SMALLEST_TILE:
        return False
    if not vae.use_tiling:
        model.notes.append(
            f"memory does not hold a whole picture in the autoencoder of {model.name}: it works in tiles, which can "
            "be seen where there are large even areas"
        )
    vae.enable_tiling()
    vae.tile_latent_min_size, vae.tile_sample_min_size = tile, tile * model.vae_factor
    return True


def _shift_and_scale(model: Model) -> tuple[float, float]:
    config: Any = model.vae.config
    return config.shift_factor or 0.0, config.scaling_factor
