"""The records of the room: a base model in memory, its family's verbs, and text as the model reads it.

Not here: how a family loads and runs (`sd.py`), and where a base is looked for (`source.py`).
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from diffusion_lora.layouts.layout import Layout


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts: named tensors whose first dimension is the batch. Nobody outside the family knows the names."""

    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: int | slice | Sequence[int] | Tensor) -> Self:
        """The rows chosen, still a batch: an int gives a batch of one."""
        index = [rows] if isinstance(rows, int) else rows if isinstance(rows, (slice, Tensor)) else list(rows)
        return type(self)({name: tensor[index] for name, tensor in self.tensors.items()})

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """`Tensor.to` for every tensor."""
        return type(self)({name: tensor.to(*args, **kwargs) for name, tensor in self.tensors.items()})

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts, one after the other."""
        return cls({name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors})


@dataclass(frozen=True)
class Family:
    """The verbs of one architecture. `Model` passes itself; shapes are told where the functions stand (`family.py`)."""

    name: str
    encode_text: Callable[["Model", Sequence[str]], Conditioning]
    encode_image: Callable[["Model", Tensor], tuple[Tensor, Tensor]]
    decode: Callable[["Model", Tensor], Tensor]
    predict: Callable[["Model", Tensor, Tensor, Conditioning], Tensor]
    tokens: Callable[["Model", str], int]


@dataclass(eq=False)
class Model:
    """A base model in memory, frozen and in eval mode.

    `dtype` is that of the UNet and the text encoders; the autoencoder stays in fp32, where half precision overflows on
    some models and then gives black pictures. `source` is what was asked for, `folder` where it was found. `size_px` is
    the side of the pictures the base was trained on, `vae_factor` the pixels to a latent along each side, `max_tokens`
    what the text encoder reads of a prompt, its start and end marks apart.
    """

    family: Family
    layout: Layout
    unet: nn.Module
    text_encoders: dict[str, nn.Module]
    tokenizers: dict[str, Any]
    vae: nn.Module
    scheduler_config: dict[str, Any]
    device: torch.device
    dtype: torch.dtype
    name: str
    source: str
    folder: Path
    size_px: int
    vae_factor: int
    latent_channels: int
    max_tokens: int

    @property
    def components(self) -> dict[str, nn.Module]:
        """The modules that adapters may change, by the names adapter keys begin with."""
        return {"unet": self.unet, **self.text_encoders}

    def latent_shape(self, height_px: int, width_px: int) -> tuple[int, int, int]:
        """(channels, height, width) of the latents of a picture of this size."""
        return self.latent_channels, height_px // self.vae_factor, width_px // self.vae_factor

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256, in hex, of the UNet's weight files, one after the other: the base's identity in files and pictures.

        Read when first asked for. A file in the hub's cache is named by this very hash, so nothing is read there.
        """
        files = sorted((self.folder / "unet").glob("*.safetensors"))
        if len(files) == 1 and len(blob := files[0].resolve().name) == 64 and set(blob) <= set("0123456789abcdef"):
            return blob
        digest = hashlib.sha256()
        for file in files:
            with file.open("rb") as stream:
                while chunk := stream.read(1 << 22):
                    digest.update(chunk)
        return digest.hexdigest()
