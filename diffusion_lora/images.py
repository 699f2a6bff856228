"""The one place that opens pictures of unknown origin.

A picture comes back upright (EXIF orientation), as RGB, alpha laid on white, the first frame of an animation; file
types that start other programs (EPS, PDF) are not tried and sizes are limited. Anything that cannot be read whole is a
`DatasetError`, never half a picture. What pictures are for is not known here. No torch.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from diffusion_lora.errors import DatasetError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
MAX_PIXELS = 80_000_000

_ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 stand on their side
_LYING = (5, 6, 7, 8)
_WITH_ALPHA = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})
_WARNINGS = threading.Lock()


def open_image(path: Path) -> Image.Image:
    """The picture in a file, as upright RGB.

    Raises DatasetError: `PATH cannot be read as a picture (why)`.
    """
    with _opened(path) as image:
        image.load()
        return _rgb(_eight_bits(ImageOps.exif_transpose(image)))


def open_alpha(path: Path) -> Image.Image | None:
    """How opaque each pixel of a picture is, upright, as 8-bit grey; None for a picture without transparency.

    Raises DatasetError as `open_image` does.
    """
    with _opened(path) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
        return upright.convert("RGBA").getchannel("A") if _has_alpha(upright) else None


def image_size(path: Path) -> tuple[int, int]:
    """Width and height, upright, from the file's header alone: whether the pixels are whole is not known then.

    Raises DatasetError as `open_image` does.
    """
    with _opened(path) as image:
        width, height = image.size
        return (height, width) if _orientation(image) in _LYING else (width, height)


def oddities(path: Path) -> list[str]:
    """What is unusual about the file of a picture, each as the end of a sentence: `holds a JPEG, whatever its ending`.

    From the header alone; `open_image` sets all of it right. Raises DatasetError as `open_image` does.
    """
    found = []
    with _opened(path) as image:
        endings = {ending for ending, kind in Image.registered_extensions().items() if kind == image.format}
        if path.suffix.lower() not in endings:
            found.append(f"holds a {image.format}, whatever its ending says")
        if (frames := getattr(image, "n_frames", 1)) > 1:
            found.append(f"has {frames} frames, of which the first is used")
        if image.mode == "CMYK":
            found.append("is CMYK, made for printing: its colours are turned to RGB")
        if image.mode.startswith(("I", "F")):
            found.append("has more than 8 bits a pixel: it is reduced to 8")
        if _orientation(image) != 1:
            found.append("is turned upright, as its EXIF asks for")
    return found


def square(image: Image.Image, size_px: int) -> Image.Image:
    """The largest centred square of a picture, resampled to `size_px`."""
    return ImageOps.fit(image, (size_px, size_px), method=Image.Resampling.LANCZOS, centering=(0.5, 0.5))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A picture whose header has been read; what goes wrong inside the block is told as one sentence."""
    try:
        with _header(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
            yield image
        return
    except UnidentifiedImageError:
        reason = "empty file" if path.is_file() and path.stat().st_size == 0 else f"not one of {', '.join(FORMATS)}"
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = str(error).rstrip(".") or type(error).__name__
    except Image.DecompressionBombWarning:
        reason = f"more than {MAX_PIXELS:,} pixels"
    raise DatasetError(f"{path} cannot be read as a picture ({reason})")


def _header(path: Path) -> Image.Image:
    # Filters of warnings belong to the whole process: one thread at a time may change them.
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(path, formats=FORMATS)


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode the whole picture in search of a tag behind the pixels
    return int(image.getexif().get(_ORIENTATION, 1))


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 and 32 bits scaled to 8, where Pillow's own conversion would clip it to white."""
    if not image.mode.startswith(("I", "F")):
        return image
    import numpy as np  # for such rare pictures only: commands that open none start sooner

    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    if image.mode.startswith("I;16") or values.max(initial=0) > 255:
        values = values / 256  # the high byte
    elif image.mode == "F" and values.max(initial=0) <= 1:
        values = values * 255
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in _WITH_ALPHA or "transparency" in image.info


def _rgb(image: Image.Image) -> Image.Image:
    if not _has_alpha(image):
        return image.convert("RGB")
    with_alpha = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", with_alpha.size, "white"), with_alpha).convert("RGB")
