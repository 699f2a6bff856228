"""Drawing from a picture: what is given, how much of it is drawn anew, and where. No torch.

    Start(Path("photo.png"), strength=0.6)                           all of it, to 60 % of the steps
    Start(Path("photo.png"), 0.8, mask=Path("mask.png"), blur_px=4)  only where the mask is white

`only_masked` draws the surroundings of the mask alone, at the request's size, and puts them back: details of a large
picture get as many pixels as a whole one has.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageFilter

from diffusion_lora.errors import DatasetError, PromptError
from diffusion_lora.images import open_image

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Start:
    """The picture to begin with. `strength` is the share of the steps that is drawn: 0 leaves it, 1 forgets it.

    `mask` is a grey picture, white where to draw; `blur_px` softens its edge, `padding_px` is what `only_masked` shows
    of the surroundings, all in pixels of the picture. `sha` is the SHA-256 of the picture's file, `mask_sha` of the
    mask's; when given, other files are refused. Raises PromptError on construction.
    """

    image: Path
    strength: float = 0.75
    mask: Path | None = None
    blur_px: int = 4
    only_masked: bool = False
    padding_px: int = 32
    sha: str = ""
    mask_sha: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "image", Path(self.image).expanduser())
        if self.mask is not None:
            object.__setattr__(self, "mask", Path(self.mask).expanduser())
        if not (math.isfinite(self.strength) and 0 < self.strength <= 1):
            raise PromptError(f"the strength of the start is {self.strength}; give more than 0 and up to 1")
        for name, value in (("blur", self.blur_px), ("padding", self.padding_px)):
            if not isinstance(value, int) or not 0 <= value <= 512:
                raise PromptError(f"the {name} of the mask is {value} px; give 0 to 512")
        if self.only_masked and self.mask is None:
            raise PromptError("only the masked part is asked for and there is no mask")

    def steps(self, steps: int) -> int:
        """How many of the request's steps are drawn, at least one."""
        return max(1, min(int(steps * self.strength), steps))

    def resolved(self) -> Start:
        """With the hashes of its files filled in. Raises PromptError for a file that is gone or another by now."""
        mask_sha = _checked(self.mask, self.mask_sha, "mask") if self.mask else ""
        return replace(self, sha=_checked(self.image, self.sha, "picture to start from"), mask_sha=mask_sha)


@dataclass(frozen=True, eq=False)
class Canvas:
    """The start made ready for a size: the picture and the mask to draw with, and how to put the result back."""

    image: Image.Image
    mask: Image.Image | None
    whole: Image.Image
    whole_mask: Image.Image | None
    box: Box | None

    def finished(self, drawn: Image.Image) -> Image.Image:
        """The drawn picture with what the mask keeps; of the whole one's size where only a part was drawn."""
        if self.whole_mask is None:
            return drawn
        if self.box is None:
            return Image.composite(drawn, self.image, self.whole_mask.resize(drawn.size, Image.Resampling.LANCZOS))
        left, top, right, bottom = self.box
        patched = self.whole.copy()
        patched.paste(drawn.resize((right - left, bottom - top), Image.Resampling.LANCZOS), (left, top))
        return Image.composite(patched, self.whole, self.whole_mask)


def prepared(start: Start, width: int, height: int) -> Canvas:
    """Open the files and fit them to the size: what does not fit its shape is cut off evenly. Raises PromptError."""
    whole = _opened(start.image)
    mask = None
    if start.mask is not None:
        mask = _opened(start.mask).convert("L").resize(whole.size, Image.Resampling.BILINEAR)
        if mask.getbbox() is None:
            raise PromptError(f"the mask {start.mask} is black: there is nothing to draw")
        mask = mask.filter(ImageFilter.GaussianBlur(start.blur_px)) if start.blur_px else mask
    if start.only_masked and mask is not None:
        box = _around(mask, start.padding_px, width / height)
        size = (width, height)
        return Canvas(
            whole.crop(box).resize(size, Image.Resampling.LANCZOS),
            mask.crop(box).resize(size, Image.Resampling.BILINEAR),
            whole,
            mask,
            box,
        )
    fitted = _cut(whole, width, height).resize((width, height), Image.Resampling.LANCZOS)
    fitted_mask = None if mask is None else _cut(mask, width, height).resize((width, height), Image.Resampling.BILINEAR)
    return Canvas(fitted, fitted_mask, fitted, fitted_mask, None)


def _around(mask: Image.Image, padding: int, aspect: float) -> Box:
    """The mask's box with padding, widened to the aspect as far as the picture reaches."""
    found = mask.point(lambda value: 255 if value > 8 else 0).getbbox() or (0, 0, *mask.size)
    left, top = max(0, found[0] - padding), max(0, found[1] - padding)
    right, bottom = min(mask.width, found[2] + padding), min(mask.height, found[3] + padding)
    width, height = right - left, bottom - top
    if width / height < aspect:
        left, right = _widened(left, right, round(height * aspect), mask.width)
    else:
        top, bottom = _widened(top, bottom, round(width / aspect), mask.height)
    return left, top, right, bottom


def _widened(low: int, high: int, wanted: int, limit: int) -> tuple[int, int]:
    wanted = min(max(wanted, high - low), limit)
    low = min(max(0, (low + high - wanted) // 2), limit - wanted)
    return low, low + wanted


def _cut(image: Image.Image, width: int, height: int) -> Image.Image:
    scale = min(image.width / width, image.height / height)
    wide, high = round(width * scale), round(height * scale)
    left, top = (image.width - wide) // 2, (image.height - high) // 2
    return image.crop((left, top, left + wide, top + high))


def _opened(path: Path) -> Image.Image:
    try:
        return open_image(path)
    except DatasetError as error:
        raise PromptError(str(error)) from error


def _checked(path: Path, sha: str, what: str) -> str:
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise PromptError(f"the {what} {path} cannot be read ({error.strerror or error})") from error
    if sha and not found.startswith(sha):
        raise PromptError(f"the {what} {path} is another by now ({found[:12]}) than the one asked for ({sha[:12]})")
    return found


@dataclass(frozen=True)
class Hires:
    """A second pass at `scale` times the size, begun from the first one's picture (hires fix).

    `strength` is the share of its steps that is drawn, `steps` 0 as many as the request's. `upscaler` is "latent"
    (bilinear, in the latents), "lanczos" (of the decoded picture), or the path of a model's safetensors file (ESRGAN
    and its kin, `upscaling`). Raises PromptError on construction.
    """

    scale: float = 2.0
    strength: float = 0.7
    steps: int = 0
    upscaler: str = "latent"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and 1 < self.scale <= 4):
            raise PromptError(f"the scale of the second pass is {self.scale}; give more than 1 and up to 4")
        if not (math.isfinite(self.strength) and 0 < self.strength <= 1):
            raise PromptError(f"the strength of the second pass is {self.strength}; give more than 0 and up to 1")
        if not isinstance(self.steps, int) or not 0 <= self.steps <= 1000:
            raise PromptError(f"the steps of the second pass are {self.steps}; give 1 to 1000, or 0 for the request's")
        if self.upscaler not in UPSCALERS and not self.upscaler.endswith(MODEL_SUFFIX):
            raise PromptError(
                f"the upscaler {self.upscaler!r} is unknown; say {' or '.join(UPSCALERS)}, or name a model's "
                f"{MODEL_SUFFIX} file"
            )

    def size(self, width: int, height: int, step_px: int) -> tuple[int, int]:
        """The second pass's size, rounded to what the base can draw."""
        return round(width * self.scale / step_px) * step_px, round(height * self.scale / step_px) * step_px

    def drawn_steps(self, steps: int) -> int:
        """How many steps the second pass draws, of a request with so many."""
        whole = self.steps or steps
        return max(1, min(int(whole * self.strength), whole))


UPSCALERS: Sequence[str] = ("latent", "lanczos")
MODEL_SUFFIX = ".safetensors"
