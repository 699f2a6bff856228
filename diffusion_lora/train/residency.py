"""Which parts of a base are on the device when: 8 to 12 GB hold a UNet in training, and not all the rest beside it.

UNet and text encoders wait in main memory while pictures are encoded; autoencoder and frozen text encoders go there
once all that they make is cached, and come back for as long as a preview is drawn or a cache entry made again. On a
CPU they lie in a file meanwhile, mapped, so that they are there as soon as they are touched. Weights move unchanged, so
nothing else depends on it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from diffusion_lora.config import TrainConfig
from diffusion_lora.families.family import Model
from diffusion_lora.train.on_disk import in_turn, lay_on_disk

AUTOENCODER, UNET = "vae", "unet"


def free_to_go(config: TrainConfig, model: Model, *, text_is_frozen: bool) -> list[str]:
    """The parts that no step needs: all that is cached is made by them, and kept."""
    if config.dataset.cache == "off":
        return []
    return [AUTOENCODER, *(model.text_encoders if text_is_frozen else ())]


def send_away(model: Model, parts: Collection[str], folder: Path) -> str | None:
    """Put parts into main memory, or from there into a file in the folder; a sentence on what that freed, None where it
    was nothing worth a word."""
    if not parts:
        return None
    wait = "wait" if len(parts) > 1 else "waits"
    if model.device.type == "cpu":
        freed = lay_on_disk(_modules(model, parts), folder)
        return f"{', '.join(parts)} {wait} in a file, which frees {freed / 1e9:.1f} GB of memory" if freed else None
    freed = sum(_bytes(module) for module in _modules(model, parts) if not _is_away(model, module))
    _move(model, parts, torch.device("cpu"))
    sentence = f"{', '.join(parts)} {wait} in main memory, which frees {freed / 1e9:.1f} GB of {model.device}"
    if model.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(model.device)
        sentence += f"; {free / 1e9:.1f} of {total / 1e9:.1f} GB are free for the training"
    return sentence


@contextmanager
def at_work(model: Model, parts: Collection[str]) -> Iterator[None]:
    """Inside, these parts are on the model's device; those that were away, or in a file, go there again."""
    names = [name for name in parts if _is_away(model, _module(model, name))]
    _move(model, names, model.device)
    try:
        with in_turn(_modules(model, parts)):
            yield
    finally:
        _move(model, names, torch.device("cpu"))


@contextmanager
def away(model: Model, parts: Collection[str], folder: Path) -> Iterator[None]:
    """Inside, these parts are in main memory; on a CPU all but the UNet, which is soon needed whole, are in a file."""
    if model.device.type == "cpu":
        lay_on_disk(_modules(model, [part for part in parts if part != UNET]), folder)
    _move(model, parts, torch.device("cpu"))
    try:
        yield
    finally:
        _move(model, parts, model.device)


def _module(model: Model, part: str) -> nn.Module:
    return model.vae if part == AUTOENCODER else model.components[part]


def _modules(model: Model, parts: Collection[str]) -> list[nn.Module]:
    return [_module(model, part) for part in parts]


def _is_away(model: Model, module: nn.Module) -> bool:
    return next(module.parameters()).device.type != model.device.type


def _move(model: Model, parts: Collection[str], device: torch.device) -> None:
    if model.device.type == "cpu" or not parts:
        return
    for module in _modules(model, parts):
        module.to(device)
    if model.device.type == "cuda" and device.type == "cpu":
        torch.cuda.empty_cache()


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.parameters())
