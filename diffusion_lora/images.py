"""The one place that opens pictures of unknown origin.

A picture comes back upright (EXIF orientation), as RGB, alpha laid on white, the first frame of an animation; file
types that start other programs (EPS, PDF) are not tried and sizes are limited. Anything that cannot be read whole is a
`DatasetError`, never half a picture. What pictures are for is not known here. No torch.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from diffusion_lora.errors import DatasetError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
MAX_PIXELS = 80_000_000


def open_image(path: Path) -> Image.Image:
    """The picture in a file, as upright RGB.

    Raises DatasetError: `PATH cannot be read as a picture (why)`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
                image.load()
                return _upright_rgb(image)
    except UnidentifiedImageError:
        reason = "empty file" if path.is_file() and path.stat().st_size == 0 else f"not one of {', '.join(FORMATS)}"
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = str(error).rstrip(".") or type(error).__name__
    except Image.DecompressionBombWarning:
        reason = f"more than {MAX_PIXELS:,} pixels"
    raise DatasetError(f"{path} cannot be read as a picture ({reason})")


def square(image: Image.Image, size_px: int) -> Image.Image:
    """The largest centred square of a picture, resampled to `size_px`."""
    return ImageOps.fit(image, (size_px, size_px), method=Image.Resampling.LANCZOS, centering=(0.5, 0.5))


def _upright_rgb(image: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):  # Pillow would clip 16-bit grey to white instead of scaling it
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    if "A" in upright.mode or "transparency" in upright.info:
        with_alpha = upright.convert("RGBA")
        paper = Image.new("RGBA", with_alpha.size, "white")
        return Image.alpha_composite(paper, with_alpha).convert("RGB")
    return upright.convert("RGB")
