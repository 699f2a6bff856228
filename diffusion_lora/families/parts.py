"""The parts of a base in memory, however they were stored, and loading them from a diffusers folder.

Here and in `single_file` are the model classes of diffusers and transformers made; the verbs only call them.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffusion_lora.errors import BaseModelError
from diffusion_lora.families.quiet import quiet
from diffusion_lora.families.source import Source, weights_file
from diffusion_lora.families.streamed import streamed

# Old checkpoints carry the numbers 0..76 among their weights, newer ones lack them: neither says anything.
_NO_WEIGHT = "position_ids"
TEXT_FOLDERS = {"sd": {"te": ""}, "sdxl": {"te1": "", "te2": "_2"}}
"""The text encoders of each architecture, and what their folders' names end in."""


@dataclass(frozen=True, eq=False)
class Parts:
    """UNet, text encoders and tokenizers by component, autoencoder, noise schedule; and sentences for the person."""

    unet: nn.Module
    text_encoders: Mapping[str, nn.Module]
    tokenizers: Mapping[str, Any]
    vae: nn.Module
    scheduler_config: Mapping[str, Any]
    notes: list[str] = field(default_factory=list)


def load_folder(source: Source, dtype: torch.dtype, vae: nn.Module | None) -> Parts:
    """The parts of a diffusers folder, on the CPU; `vae` takes the place of its own autoencoder.

    Raises BaseModelError naming the part that does not load.
    """
    quiet()
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    folder = source.folder
    endings = TEXT_FOLDERS[source.architecture]
    scheduler_config = _scheduler_config(folder / "scheduler" / "scheduler_config.json")
    tokenizers = {part: load_tokenizer(folder / f"tokenizer{end}") for part, end in endings.items()}
    classes = {"te2": CLIPTextModelWithProjection}
    # The largest part last, when what loading the others took is free again.
    text_encoders = {
        part: load_part(classes.get(part, CLIPTextModel).from_pretrained, folder / f"text_encoder{end}", dtype)
        for part, end in endings.items()
    }
    vae = vae or load_vae_folder(folder / "vae")
    file = weights_file(folder, "unet") or weights_file(folder, "unet", "fp16")
    unet = streamed(UNet2DConditionModel, folder / "unet", file, dtype)
    return Parts(
        unet=frozen(unet) if unet else load_part(UNet2DConditionModel.from_pretrained, folder / "unet", dtype),
        text_encoders=text_encoders,
        tokenizers=tokenizers,
        vae=vae,
        scheduler_config=scheduler_config,
    )


def load_vae_folder(folder: Path) -> nn.Module:
    """An autoencoder in diffusers' layout, in fp32. Raises BaseModelError."""
    from diffusers import AutoencoderKL

    return load_part(AutoencoderKL.from_pretrained, folder, torch.float32)


def load_tokenizer(folder: Path) -> Any:
    """A CLIP tokenizer. Raises BaseModelError."""
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise unreadable(folder, error) from error


def load_part(from_pretrained: Callable[..., Any], place: Path, dtype: torch.dtype) -> Any:
    """One component, frozen and in eval mode. Raises BaseModelError, also when its weights have gaps."""
    variant = None if weights_file(place.parent, place.name) else "fp16"
    try:
        part, report = from_pretrained(
            place, dtype=dtype, variant=variant, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    # A wrong config, a truncated file and weights of another shape each raise what the libraries please.
    except Exception as error:
        raise unreadable(place, error) from error
    _refuse_gaps(place, report)
    return frozen(part)


def frozen(module: Any) -> Any:
    """The module itself, in eval mode and without gradients."""
    return module.eval().requires_grad_(False)


def unreadable(place: Path, error: Exception) -> BaseModelError:
    """The sentence for a part that a library could not make."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return BaseModelError(f"{place} cannot be loaded ({reason}); fetch the base again or give another")


def _scheduler_config(path: Path) -> dict[str, Any]:
    """The noise schedule, with the two old entries corrected that diffusers' own pipelines correct at load."""
    try:
        config = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise unreadable(path, error) from error
    return config | {"clip_sample": False, "steps_offset": 1}


def _refuse_gaps(place: Path, report: Mapping[str, Any]) -> None:
    """Without this a base whose file lacks weights would draw with random ones, and the libraries only log it."""
    missing = sorted(str(key) for key in report["missing_keys"] if _NO_WEIGHT not in str(key))
    mismatched = sorted(str(key) for key in report["mismatched_keys"])
    if missing or mismatched:
        bad = missing or mismatched
        what = "lack" if missing else "have the wrong shape for"
        raise BaseModelError(f"{place}: the weights {what} {bad[0]} and {len(bad) - 1} more that config.json asks for")
