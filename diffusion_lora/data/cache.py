"""Latents and encoded captions, made once and kept: in memory, on the disk, or not at all, with the same numbers.

What is kept of a picture's view is mean and spread of its latents in fp32; training draws a fresh latent from the
distribution each time, as if it encoded again. The encoders are passed in, and each gets what it is to encode in a
batch of one fixed size, so that a result does not depend on what was encoded beside it, or on where an interrupted pass
went on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffusion_lora.data.store import TensorStore, key_of
from diffusion_lora.data.views import Shown, mask_pixels, pixels
from diffusion_lora.errors import DatasetError

Keep = Literal["disk", "ram", "off"]
Progress = Callable[[int, int], None]

MEMORY_BYTES = 2 << 30
"""What is kept in memory besides the disk; beyond it an entry is read from the disk when it is drawn."""

TEXTS_AT_ONCE = 8


@dataclass(frozen=True, eq=False)
class Encoded:
    """One view: mean and spread of its latents [C, h, w] in fp32, and what of it counts [1, h, w], all on the CPU."""

    mean: Tensor
    std: Tensor
    mask: Tensor | None = None


@dataclass(eq=False)
class _Kept:
    """Entries by key: in memory as far as there is room, on the disk if there is a store."""

    store: TensorStore | None
    in_memory: bool
    room_bytes: int = MEMORY_BYTES
    memory: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def get(self, key: str) -> dict[str, Tensor] | None:
        if key in self.memory:
            return self.memory[key]
        found = self.store.get(key) if self.store else None
        if found is not None:
            self._remember(key, found)
        return found

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        if self.store:
            self.store.put(key, tensors)
        self._remember(key, tensors)

    def _remember(self, key: str, tensors: dict[str, Tensor]) -> None:
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if self.in_memory and (self.store is None or size <= self.room_bytes):
            self.room_bytes -= size
            self.memory[key] = tensors


class LatentCache:
    """The latents of views. `encode` takes pictures [1, 3, H, W] in [-1, 1] to (mean, std) [1, C, h, w] of their
    latents; `encoder` is its identity: another one's latents are kept under other names."""

    def __init__(
        self,
        encode: Callable[[Tensor], tuple[Tensor, Tensor]],
        *,
        encoder: str,
        factor: int,
        keep: Keep = "ram",
        store: TensorStore | None = None,
        mask_floor: float = 0.0,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self._encode, self._encoder, self._factor, self._floor = encode, encoder, factor, mask_floor
        self._off = keep == "off"
        self._kept = _Kept(store if keep == "disk" else None, in_memory=not self._off, room_bytes=memory_bytes)

    def fill(self, shown: Iterable[Shown], progress: Progress = lambda done, total: None) -> None:
        """Encode what is not kept yet. With `keep = "off"` nothing is. Raises DatasetError, OutputError."""
        if self._off:
            return
        wanted = list(dict.fromkeys(shown))
        for done, each in enumerate(wanted, start=1):
            self.of(each)
            progress(done, len(wanted))

    def of(self, shown: Shown) -> Encoded:
        """The latents of a view, kept or made. Raises DatasetError: a picture that cannot be read any more,
        latents that are not finite."""
        key = key_of("latents", self._encoder, shown.pixels, shown.mask, shown.view.key)
        found = self._kept.get(key)
        if found is None:
            found = self._made(shown)
            if not self._off:
                self._kept.put(key, found)
        mask = found.get("mask")
        return Encoded(found["mean"], found["std"], None if mask is None else mask.clamp(min=self._floor))

    def sample(self, shown: Sequence[Shown], generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """One draw of the latents of each view, [B, C, h, w], and what of them counts, [B, 1, h, w].

        The masks are None where no view has one; a view without one among others counts in full.
        """
        entries = [self.of(each) for each in shown]
        mean, std = (torch.stack([getattr(entry, name) for entry in entries]) for name in ("mean", "std"))
        x0_BCHW = mean + std * torch.randn(mean.shape, generator=generator)
        if all(entry.mask is None for entry in entries):
            return x0_BCHW, None
        whole = torch.ones(1, *mean.shape[2:])
        return x0_BCHW, torch.stack([whole if entry.mask is None else entry.mask for entry in entries])

    def _made(self, shown: Shown) -> dict[str, Tensor]:
        mean, std = self._encode(_tensor(pixels(shown.item.path, shown.view))[None] / 127.5 - 1.0)
        made = {"mean": mean[0].float().cpu(), "std": std[0].float().cpu()}
        if not all(tensor.isfinite().all() for tensor in made.values()):
            raise DatasetError(
                f"the autoencoder gives latents that are not finite for {shown.item.name}: take the picture out, or "
                "use another autoencoder if it happens to all of them"
            )
        if shown.mask:
            grey = mask_pixels(shown.item.path, shown.view, shown.item.mask)
            if grey is not None:
                made["mask"] = torch.nn.functional.avg_pool2d(_tensor(grey)[None] / 255, self._factor)[0]
        return made


class TextCache:
    """Encoded texts. `encode` takes texts to named tensors, one row each; `encoder` is its identity."""

    def __init__(
        self,
        encode: Callable[[Sequence[str]], Mapping[str, Tensor]],
        *,
        encoder: str,
        keep: Keep = "ram",
        store: TensorStore | None = None,
    ) -> None:
        self._encode, self._encoder = encode, encoder
        self._off = keep == "off"
        self._kept = _Kept(store if keep == "disk" else None, in_memory=not self._off)

    def fill(self, texts: Iterable[str], progress: Progress = lambda done, total: None) -> None:
        """Encode what is not kept yet. With `keep = "off"` nothing is. Raises OutputError."""
        if self._off:
            return
        wanted = sorted(set(texts))
        for start in range(0, len(wanted), TEXTS_AT_ONCE):
            part = wanted[start : start + TEXTS_AT_ONCE]
            missing = [text for text in part if self._kept.get(self._key(text)) is None]
            for text, row in zip(missing, self._rows(missing), strict=True):
                self._kept.put(self._key(text), row)
            progress(start + len(part), len(wanted))

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """The tensors of these texts, one row each; what is not kept is encoded now."""
        rows: dict[str, dict[str, Tensor]] = {}
        for text in dict.fromkeys(texts):
            row = self._kept.get(self._key(text))
            if row is not None:
                rows[text] = row
        missing = [text for text in dict.fromkeys(texts) if text not in rows]
        for text, row in zip(missing, self._rows(missing), strict=True):
            rows[text] = row
            if not self._off:
                self._kept.put(self._key(text), row)
        first = rows[texts[0]]
        return {name: torch.stack([rows[text][name] for text in texts]) for name in first}

    def _key(self, text: str) -> str:
        return key_of("text", self._encoder, text)

    def _rows(self, texts: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """Each text encoded, always so many at once: the last ones in company of empty ones."""
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            part = list(texts[start : start + TEXTS_AT_ONCE])
            tensors = self._encode(part + [""] * (TEXTS_AT_ONCE - len(part)))
            for row in range(len(part)):
                yield {name: tensor[row].detach().cpu() for name, tensor in tensors.items()}


def _tensor(image: Image.Image) -> Tensor:
    """RGB to [3, H, W], grey to [1, H, W], fp32 from 0 to 255."""
    values = torch.from_numpy(np.array(image))
    return (values[None] if values.ndim == 2 else values.permute(2, 0, 1)).float()
