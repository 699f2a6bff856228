"""The door of the room: load a base, and the verbs every family has.

    model = load_base("pocket")
    cond = encode_text(model, ["a red cat on a sky background"])
    noise = predict(model, noisy, timesteps, cond)
    picture = decode(model, latents)

The verbs are methods of no class: each hands over to the model's family, so that a new family is a new record.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from diffusion_lora.errors import BaseModelError
from diffusion_lora.families.assemble import load
from diffusion_lora.families.device import pick_device
from diffusion_lora.families.model import Conditioning, Family, Model, Sizes
from diffusion_lora.families.primitives import keep_primitives

__all__ = [
    "Conditioning",
    "Family",
    "Model",
    "Sizes",
    "decode",
    "encode_ids",
    "encode_image",
    "encode_text",
    "load_base",
    "pick_device",
    "predict",
    "tokens",
    "with_sizes",
]

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def load_base(
    base: str, *, device: str = "auto", dtype: str = "auto", revision: str | None = None, vae: str | None = None
) -> Model:
    """Load a base: `pocket`, a diffusers folder, a single checkpoint file, or a hub id (from the hub's cache, or
    fetched into it once). `vae`, a file, folder or hub id, takes the place of its own autoencoder.

    `dtype` is fp32, fp16, bf16 or auto: fp16 on CUDA, fp32 elsewhere. Raises BaseModelError when there is no such base,
    it is out of reach, incomplete or of an architecture that is not served, DeviceError when the device is not there.
    """
    keep_primitives()
    place = pick_device(device)
    if dtype not in (*_DTYPES, "auto"):
        raise BaseModelError(f"the dtype {dtype!r} of the base is unknown; say auto, {', '.join(_DTYPES)}")
    chosen = _DTYPES["fp16" if place.type == "cuda" else "fp32"] if dtype == "auto" else _DTYPES[dtype]
    return load(base, revision, vae, place, chosen)


def encode_text(model: Model, prompts: Sequence[str]) -> Conditioning:
    """Encode prompts, one row each. Gradients flow, so that the text encoder can be trained."""
    return model.family.encode_text(model, prompts)


def encode_ids(model: Model, ids: Mapping[str, Tensor], clip_skip: int = 1) -> Conditioning:
    """Encode token ids [B, max_tokens + 2] of every tokenizer, start, end and padding included, one row each.

    `clip_skip` 1 reads the layer that the family always reads; others count from the last one, which is 1.
    """
    return model.family.encode_ids(model, ids, clip_skip)


def encode_image(model: Model, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures [B, 3, H, W] in [-1, 1] to mean and standard deviation [B, C, h, w] of their scaled latents, in fp32.

    A sample is `mean + std * noise`. No gradient.
    """
    return model.family.encode_image(model, x_BCHW)


def decode(model: Model, latents: Tensor) -> Tensor:
    """Scaled latents [B, C, h, w] to pictures [B, 3, H, W] in [0, 1], in fp32. No gradient."""
    return model.family.decode(model, latents)


def predict(model: Model, noisy: Tensor, timesteps: Tensor, cond: Conditioning) -> Tensor:
    """What the base predicts for noisy latents [B, C, h, w] at timesteps [B] (or one for all) and B encoded prompts."""
    return model.family.predict(model, noisy, timesteps, cond)


def tokens(model: Model, prompt: str) -> int:
    """How many tokens a prompt has; the base reads the first `model.max_tokens` of them."""
    return model.family.tokens(model, prompt)


def with_sizes(model: Model, cond: Conditioning, sizes: Sequence[Sizes]) -> Conditioning:
    """The conditioning with what the base wants to know of each row's size; unchanged where it wants nothing.

    Without it a base that wants sizes takes the picture for whole and of the size that is drawn.
    """
    return model.family.with_sizes(model, cond, sizes)
