"""The records of the room: a base model in memory, its family's verbs, and text as the model reads it.

Not here: how a family loads and runs (`sd.py`), and where a base is looked for (`source.py`).
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
class Sizes:
    """What XL is told of a picture beside its text, each as (height, width) in pixels: the size it once had, how much
    was cut off above and to the left, the size it has now (Podell et al. 2023, sections 2.2 and 2.3)."""

    original_px: tuple[int, int]
    cut_px: tuple[int, int]
    target_px: tuple[int, int]


@dataclass(frozen=True)
class Family:
    """The verbs of one architecture. `Model` passes itself; shapes are told where the functions stand (`family.py`)."""

    name: str
    encode_text: Callable[["Model", Sequence[str]], Conditioning]
    encode_ids: Callable[["Model", Mapping[str, Tensor], int], Conditioning]
    encode_image: Callable[["Model", Tensor], tuple[Tensor, Tensor]]
    decode: Callable[["Model", Tensor], Tensor]
    predict: Callable[["Model", Tensor, Tensor, Conditioning], Tensor]
    tokens: Callable[["Model", str], int]
    with_sizes: Callable[["Model", Conditioning, Sequence[Sizes]], Conditioning]


@dataclass(eq=False)
class Model:
    """A base model in memory, frozen and in eval mode.

    `dtype` is that of the UNet and the text encoders; the autoencoder has its own (`vae`). `source` is what was asked
    for, `folder` where it was found, `file` the checkpoint if it is one. `size_px` is the side of the pictures the base
    was trained on, `vae_factor` the pixels to a latent along each side, `max_tokens` what the text encoder
    reads of a prompt, its start and end marks apart. `vae_source` is the autoencoder that was asked for in place of the
    base's own, with the SHA-256 of its weights; both are empty where it is the base's. `notes` are sentences for
    the person, more of which may come.
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
    zero_empty_prompt: bool = False
    file: Path | None = None
    vae_source: str = ""
    vae_hash: str = ""
    notes: list[str] = field(default_factory=list)
    words: dict[str, str] = field(default_factory=dict)  # learned ones, as `learned_words` spells them

    @property
    def kind(self) -> str:
        """What the base is, in words: "Stable Diffusion XL, v-prediction, zero terminal SNR"."""
        words = [self.layout.title]
        if self.scheduler_config.get("prediction_type") == "v_prediction":
            words.append("v-prediction")
        if self.scheduler_config.get("rescale_betas_zero_snr"):
            words.append("zero terminal SNR")
        return ", ".join(words)

    @property
    def components(self) -> dict[str, nn.Module]:
        """The modules that adapters may change, by the names adapter keys begin with."""
        return {"unet": self.unet, **self.text_encoders}

    def latent_shape(self, height_px: int, width_px: int) -> tuple[int, int, int]:
        """(channels, height, width) of the latents of a picture of this size."""
        return self.latent_channels, height_px // self.vae_factor, width_px // self.vae_factor

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256, in hex: the base's identity in files and pictures.

        Of a single file, all of it: the number by which sites list it and whose first ten digits A1111 calls the model
        hash. Of a folder, its UNet's weight files, one after the other. Read when first asked for. A file in the hub's
        cache is named by this very hash, so nothing is read there.
        """
        files = [self.file] if self.file else sorted((self.folder / "unet").glob("*.safetensors"))
        if len(files) == 1 and len(blob := files[0].resolve().name) == 64 and set(blob) <= set("0123456789abcdef"):
            return blob
        digest = hashlib.sha256()
        for file in files:
            with file.open("rb") as stream:
                while chunk := stream.read(1 << 22):
                    digest.update(chunk)
        return digest.hexdigest()
