"""A view of a picture: what of it is shown, which way round and in which colours. A few fixed ones of each picture.

Which views there are is a function of the seed, so that each can be encoded once and drawn many times. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from diffusion_lora.data.buckets import Size
from diffusion_lora.data.sources import Item
from diffusion_lora.images import open_alpha, open_image

_LOOK = 5  # a stream of random numbers, apart from those of `batches` and `captions`
_PLAIN = (1.0, 1.0, 1.0, 0.0)


@dataclass(frozen=True)
class View:
    """How a picture is shown.

    `crop` says where the excess is cut off, (0, 0) keeping the upper left and (0.5, 0.5) the middle; `colour` holds the
    factors of brightness, contrast and saturation and a turn of the hue (1 = all the way round).
    """

    size: Size
    mirrored: bool = False
    crop: tuple[float, float] = (0.5, 0.5)
    colour: tuple[float, float, float, float] = _PLAIN

    @property
    def key(self) -> str:
        """What makes it another view than others: part of the name under which its latents are kept."""
        return repr((self.size, self.mirrored, self.crop, self.colour))


@dataclass(frozen=True)
class Shown:
    """A view of a picture, with all that its latents are made from."""

    item: Item
    pixels: str  # hash of the picture's
    mask: str  # hash of the mask's; "alpha": the picture's own opacity is the mask; "": there is none
    view: View


@dataclass(frozen=True)
class Looks:
    """Which views of a picture there are: one in the middle, or `count` with random crops and colours."""

    random_crop: bool = False
    colour_jitter: float = 0.0
    count: int = 4

    @property
    def different(self) -> int:
        """How many views of a picture there are, mirrored ones apart."""
        return self.count if self.random_crop or self.colour_jitter else 1

    def view(self, seed: int, picture: int, number: int, size: Size, mirrored: bool) -> View:
        """One of the views of a picture: a function of its arguments."""
        rng = np.random.default_rng((_LOOK, seed, picture, number))
        where, turns = rng.random(2), rng.uniform(-1, 1, 4) * self.colour_jitter
        return View(
            size,
            mirrored,
            (round(float(where[0]), 4), round(float(where[1]), 4)) if self.random_crop else (0.5, 0.5),
            (*(round(1 + float(turn), 4) for turn in turns[:3]), round(float(turns[3]) / 10, 4))  # type: ignore[arg-type]
            if self.colour_jitter
            else _PLAIN,
        )


def pixels(path: Path, view: View) -> Image.Image:
    """The picture in a file as a view shows it, RGB. Raises DatasetError for one that cannot be read."""
    image = _fitted(open_image(path), view)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for enhance, factor in zip(enhancers, view.colour[:3], strict=True):
        if factor != 1:
            image = enhance(image).enhance(factor)
    return _hue_turned(image, view.colour[3]) if view.colour[3] else image


def mask_pixels(path: Path, view: View, mask: Path | None) -> Image.Image | None:
    """What of a view counts, as 8-bit grey (255 = fully): the mask's brightness, or else the picture's own opacity.

    None for a picture that has neither. Raises DatasetError for a file that cannot be read.
    """
    grey = open_image(mask).convert("L") if mask is not None else open_alpha(path)
    return _fitted(grey, view, Image.Resampling.BOX) if grey is not None else None


def _fitted(image: Image.Image, view: View, method: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    fitted = ImageOps.fit(image, view.size, method=method, centering=view.crop)
    return ImageOps.mirror(fitted) if view.mirrored else fitted


def _hue_turned(image: Image.Image, turn: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    shift = round(turn * 256)
    turned = hue.point([(level + shift) % 256 for level in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")
