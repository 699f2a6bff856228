"""Stable Diffusion 1 and 2, pocket and any other base of their architecture: loading and the verbs.

One text encoder (CLIP, last hidden state after its final norm), a UNet with cross-attention, a KL autoencoder.
This is the only code that knows the model classes of diffusers and transformers.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_lora.errors import BaseModelError
from diffusion_lora.families.model import Conditioning, Family, Model
from diffusion_lora.families.quiet import quiet
from diffusion_lora.families.source import Source, weights_file
from diffusion_lora.layouts.layout import layout_of_width

# Old checkpoints carry the numbers 0..76 among their weights, newer ones lack them: neither says anything.
_NO_WEIGHT = "position_ids"


def load(source: Source, device: torch.device, dtype: torch.dtype) -> Model:
    """Load the parts of a diffusers folder, frozen. Raises BaseModelError naming the part that does not load."""
    quiet()
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = source.folder
    scheduler_config = _scheduler_config(folder / "scheduler" / "scheduler_config.json")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(folder / "tokenizer", error) from error
    unet = _load_part(UNet2DConditionModel.from_pretrained, folder, "unet", dtype)
    text_encoder = _load_part(CLIPTextModel.from_pretrained, folder, "text_encoder", dtype)
    vae = _load_part(AutoencoderKL.from_pretrained, folder, "vae", torch.float32)
    if not isinstance(unet.config.cross_attention_dim, int):
        raise BaseModelError(f"the base {source.asked} has cross-attentions of several widths, which is not served")
    vae_factor = 2 ** (len(vae.config.block_out_channels) - 1)
    return Model(
        family=FAMILY,
        layout=layout_of_width(unet.config.cross_attention_dim),
        unet=unet.to(device),
        text_encoders={"te": text_encoder.to(device)},
        tokenizers={"te": tokenizer},
        vae=vae.to(device),
        scheduler_config=scheduler_config,
        device=device,
        dtype=dtype,
        name=source.name,
        source=source.asked,
        folder=folder,
        size_px=_side(unet.config.sample_size) * vae_factor,
        vae_factor=vae_factor,
        latent_channels=unet.config.in_channels,
        max_tokens=text_encoder.config.max_position_embeddings - 2,
    )


def encode_text(model: Model, prompts: Sequence[str]) -> Conditioning:
    """Hidden states [B, tokens, width] of the prompts; what goes beyond the encoder's length is cut off."""
    encoder = model.text_encoders["te"]
    ids = model.tokenizers["te"](
        list(prompts), padding="max_length", max_length=model.max_tokens + 2, truncation=True, return_tensors="pt"
    ).input_ids
    return Conditioning({"hidden_BTC": encoder(ids.to(model.device)).last_hidden_state})


def encode_image(model: Model, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the scaled latents."""
    shift, scale = _latent_shift_and_scale(model)
    with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
        vae: Any = model.vae
        posterior = vae.encode(x_BCHW.to(model.device, torch.float32)).latent_dist
        return (posterior.mean - shift) * scale, posterior.std * scale


def decode(model: Model, latents: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] in [0, 1] from scaled latents."""
    shift, scale = _latent_shift_and_scale(model)
    with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
        vae: Any = model.vae
        x_BCHW = vae.decode(latents.to(model.device, torch.float32) / scale + shift).sample
        return (x_BCHW / 2 + 0.5).clamp(0, 1)


def predict(model: Model, noisy: Tensor, timesteps: Tensor, cond: Conditioning) -> Tensor:
    """The UNet's output [B, C, h, w]: noise or velocity, as the base's scheduler config says."""
    dtype = model.dtype
    hidden_BTC = cond.tensors["hidden_BTC"].to(dtype)
    return model.unet(noisy.to(dtype), timesteps, encoder_hidden_states=hidden_BTC, return_dict=False)[0]


def tokens(model: Model, prompt: str) -> int:
    """How many tokens the prompt has, start and end marks apart."""
    return len(model.tokenizers["te"](prompt, add_special_tokens=False, verbose=False).input_ids)


FAMILY = Family(
    name="sd",
    encode_text=encode_text,
    encode_image=encode_image,
    decode=decode,
    predict=predict,
    tokens=tokens,
)


def _side(sample_size: int | Sequence[int]) -> int:
    return sample_size if isinstance(sample_size, int) else max(sample_size)


def _latent_shift_and_scale(model: Model) -> tuple[float, float]:
    config: Any = model.vae.config
    return config.shift_factor or 0.0, config.scaling_factor


def _scheduler_config(path: Path) -> dict[str, Any]:
    """The noise schedule, with the two old entries corrected that diffusers' own pipelines correct at load."""
    try:
        config = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _unreadable(path, error) from error
    return config | {"clip_sample": False, "steps_offset": 1}


def _load_part(from_pretrained: Callable[..., Any], folder: Path, component: str, dtype: torch.dtype) -> Any:
    variant = None if weights_file(folder, component) else "fp16"
    try:
        part, report = from_pretrained(
            folder / component,
            dtype=dtype,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    # A wrong config, a truncated file and weights of another shape each raise what the libraries please.
    except Exception as error:
        raise _unreadable(folder / component, error) from error
    _refuse_gaps(folder / component, report)
    return part.eval().requires_grad_(False)


def _refuse_gaps(place: Path, report: Mapping[str, Any]) -> None:
    """Without this a base whose file lacks weights would draw with random ones, and the libraries only log it."""
    missing = sorted(str(key) for key in report["missing_keys"] if _NO_WEIGHT not in str(key))
    mismatched = sorted(str(key) for key in report["mismatched_keys"])
    if missing or mismatched:
        bad = missing or mismatched
        what = "lack" if missing else "have the wrong shape for"
        raise BaseModelError(f"{place}: the weights {what} {bad[0]} and {len(bad) - 1} more that config.json asks for")


def _unreadable(place: Path, error: Exception) -> BaseModelError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return BaseModelError(f"{place} cannot be loaded ({reason}); fetch the base again or give another")
