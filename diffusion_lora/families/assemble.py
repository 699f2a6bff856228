"""From what was asked for to a `Model`: find the base, load its parts, check that they fit, name its family."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lora.errors import BaseModelError
from diffusion_lora.families import sd, sdxl
from diffusion_lora.families.model import Family, Model
from diffusion_lora.families.original import recognise
from diffusion_lora.families.parts import Parts, load_folder, load_vae_folder
from diffusion_lora.families.quiet import quiet
from diffusion_lora.families.single_file import load_file, load_vae_file
from diffusion_lora.families.source import Source, locate, locate_vae
from diffusion_lora.families.vae import vae_dtype
from diffusion_lora.layouts.configs import configs_of
from diffusion_lora.layouts.layout import Architecture, Layout, layout_of_base

_LIKE_NOISE = 0.5  # between the 1 of a model that predicts noise and the 0 of one that predicts velocity
_PROBE_PX, _V_SIZE_PX = 512, 768

FAMILIES: dict[Architecture, Family] = {"sd": sd.FAMILY, "sdxl": sdxl.FAMILY}


def load(base: str, revision: str | None, vae: str | None, device: torch.device, dtype: torch.dtype) -> Model:
    """The base on its device. Raises BaseModelError."""
    source = locate(base, revision)
    place = None if vae is None else locate_vae(vae)
    other = None if place is None else _other_vae(place, source)
    model = _loaded(source, other, device, dtype)
    if vae is not None and place is not None:
        model.vae_source, model.vae_hash = vae, _sha256(place)
    return model


def _loaded(source: Source, other: nn.Module | None, device: torch.device, dtype: torch.dtype) -> Model:
    if source.file is None:
        return _model(source, source.architecture, load_folder(source, dtype, other), device, dtype)
    found, parts = load_file(source.file, dtype, other)
    model = _model(source, found.architecture, parts, device, dtype, zero_empty_prompt=found.architecture == "sdxl")
    if found.layout_name == "sd2" and not found.prediction_is_told:
        _find_out_prediction(model)
    return model


def _model(
    source: Source,
    architecture: Architecture,
    parts: Parts,
    device: torch.device,
    dtype: torch.dtype,
    zero_empty_prompt: bool | None = None,
) -> Model:
    unet: Any = parts.unet.config
    vae: Any = parts.vae.config
    width = unet.cross_attention_dim
    if not isinstance(width, int):
        raise BaseModelError(f"the base {source.asked} has cross-attentions of several widths, which is not served")
    if unet.in_channels != vae.latent_channels:
        raise BaseModelError(
            f"the UNet of {source.asked} reads {unet.in_channels} channels and its autoencoder gives "
            f"{vae.latent_channels}: inpainting, editing and depth models, and a VAE of another family, are not served"
        )
    if vae.latents_mean is not None:
        raise BaseModelError(f"the autoencoder of {source.asked} scales every channel by itself, which is not served")
    vae_factor = 2 ** (len(vae.block_out_channels) - 1)
    encoders: dict[str, Any] = dict(parts.text_encoders)
    return Model(
        family=FAMILIES[architecture],
        layout=_layout(architecture, width, parts.scheduler_config),
        unet=parts.unet.to(device),
        text_encoders={part: encoder.to(device) for part, encoder in encoders.items()},
        tokenizers=dict(parts.tokenizers),
        vae=parts.vae.to(device, vae_dtype(parts.vae, device, dtype)),
        scheduler_config=dict(parts.scheduler_config),
        device=device,
        dtype=dtype,
        name=source.name,
        source=source.asked,
        folder=source.folder,
        size_px=_side(unet.sample_size) * vae_factor,
        vae_factor=vae_factor,
        latent_channels=unet.in_channels,
        max_tokens=min(encoder.config.max_position_embeddings for encoder in encoders.values()) - 2,
        zero_empty_prompt=source.zero_empty_prompt if zero_empty_prompt is None else zero_empty_prompt,
        file=source.file,
        notes=list(parts.notes),
    )


def _sha256(place: Path) -> str:
    """Of the weights of an autoencoder: a file's, or that which lies in a folder."""
    file = place if place.is_file() else next(iter(sorted(place.glob("*.safetensors"))))
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _layout(architecture: Architecture, width: int, scheduler_config: Mapping[str, Any]) -> Layout:
    return layout_of_base(architecture, width, scheduler_config.get("prediction_type", "epsilon"))


def _other_vae(place: Path, source: Source) -> nn.Module:
    """The autoencoder that takes the place of the base's own, which must scale its latents alike."""
    quiet()
    if source.file is not None:
        own = configs_of(recognise(source.file).layout_name)["vae"]
    else:
        own = json.loads((source.folder / "vae" / "config.json").read_text(encoding="utf-8"))
    if place.is_file():
        return load_vae_file(place, own)
    vae: Any = load_vae_folder(place)
    wanted = own.get("scaling_factor", vae.config.scaling_factor)
    if vae.config.scaling_factor != wanted:
        raise BaseModelError(
            f"the VAE {place} scales latents by {vae.config.scaling_factor} and the base {source.asked} by {wanted}: "
            "it belongs to another family"
        )
    return vae


def _find_out_prediction(model: Model) -> None:
    """Set what a Stable Diffusion 2 that does not say so predicts.

    A `.yaml` of the same name beside the file decides (`parameterization: "v"`, or "eps"), as it does in A1111's web
    UI. Else the model is asked: shown pure noise at the last timestep, one that predicts noise answers with that noise,
    and one that predicts velocity with hardly any of it (v = alpha noise - sigma x0, and alpha is nearly 0).
    """
    assert model.file is not None
    settings = model.file.with_suffix(".yaml")
    said = settings.read_text(encoding="utf-8", errors="replace") if settings.is_file() else ""
    if found := re.search(r"parameterization:\s*[\"']?(v|eps)\b", said):
        is_v = found[1] == "v"
    else:
        likeness = _likeness_to_noise(model)
        is_v = likeness < _LIKE_NOISE
        model.notes.append(
            f"{model.file.name} does not say what it predicts: its answer to noise is like that noise to "
            f"{likeness:.0%}, so it is taken to predict {'velocity' if is_v else 'noise'}; should pictures be mere "
            f"noise, put 'parameterization: \"{'eps' if is_v else 'v'}\"' into {settings.name} beside it"
        )
    if is_v:
        model.scheduler_config["prediction_type"] = "v_prediction"
        model.layout = layout_of_base("sd", model.layout.cross_attention_width, "v_prediction")
        if model.size_px == model.layout.size_px:  # nothing else was said: those that predict velocity are of 768 px
            model.size_px = _V_SIZE_PX


@torch.no_grad()
def _likeness_to_noise(model: Model) -> float:
    """Cosine between pure noise and the model's answer to it at the last timestep."""
    shape = model.latent_shape(_PROBE_PX, _PROBE_PX)
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    last = int(model.scheduler_config.get("num_train_timesteps", 1000)) - 1
    answer: Tensor = sd.predict(model, noise, torch.tensor([last], device=model.device), sd.encode_text(model, [""]))
    return float(torch.cosine_similarity(answer.float().flatten(), noise.flatten(), dim=0))


def _side(sample_size: int | Sequence[int]) -> int:
    return sample_size if isinstance(sample_size, int) else max(sample_size)
