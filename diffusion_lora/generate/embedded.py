"""The texts that programs put into pictures: PNG text, EXIF comments, and bits hidden in the pixels. No torch.

Whatever is in the file, this ends soon, in little memory, and with a dict or a PromptError: sizes are looked at before
anything is unpacked.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, UnidentifiedImageError

from diffusion_lora.errors import PromptError

if TYPE_CHECKING:
    import numpy as np

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 80_000_000
MAX_TEXT_BYTES = 4_000_000
COMMENT = "exif comment"
"""The name under which an EXIF UserComment, or what was hidden in the pixels, is given."""
DESCRIPTION = "exif description"

_EXIF_IFD, _USER_COMMENT, _IMAGE_DESCRIPTION = 0x8769, 0x9286, 0x010E
_STEALTH = {b"stealth_pnginfo": (3, False), b"stealth_pngcomp": (3, True), b"stealth_rgbinfo": (0, False),
            b"stealth_rgbcomp": (0, True)}  # fmt: skip
_SIGNATURE_BYTES = 15
# Everything that Pillow and the parsers under it were seen to raise for damaged files.
_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, TypeError, KeyError, IndexError, AttributeError, OverflowError,
            struct.error, zlib.error, Image.DecompressionBombError, RecursionError)  # fmt: skip


def texts_in(path: Path) -> dict[str, str]:
    """The texts of a picture by their names. Raises PromptError when the file is no picture, or cannot be read."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise PromptError(f"{path} has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
            image.load()  # some programs write their text after the pixels
            texts = {str(key): value for key, value in image.info.items() if isinstance(value, str)}
            texts |= _exif(image)
            if not texts and (hidden := _hidden(image)):
                texts[COMMENT] = hidden
    except UnidentifiedImageError as error:
        raise PromptError(f"{path} is no PNG, JPEG or WebP picture") from error
    except _DAMAGED as error:
        raise PromptError(f"{path} cannot be read ({str(error) or type(error).__name__})") from error
    return {key: text for key, text in texts.items() if len(text) <= MAX_TEXT_BYTES}


def exif_of(comment: str, description: str) -> bytes:
    """EXIF data with the infotext as UserComment, as the web UI writes it, and another text as ImageDescription."""
    exif = Image.Exif()
    exif[_IMAGE_DESCRIPTION] = description
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = b"UNICODE\0" + comment.encode("utf-16-be", "replace")
    return exif.tobytes()


def _exif(image: Image.Image) -> Mapping[str, str]:
    texts = {}
    exif = image.getexif()
    comment = exif.get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    if isinstance(comment, bytes):
        comment = _decoded(comment[:MAX_TEXT_BYTES])
    if isinstance(comment, str) and comment.strip("\0 "):
        texts[COMMENT] = comment.strip("\0")
    description = exif.get(_IMAGE_DESCRIPTION)
    if isinstance(description, str) and description:
        texts[DESCRIPTION] = description
    return texts


def _decoded(comment: bytes) -> str:
    """EXIF 2.3, UserComment: eight bytes say the encoding; of UTF-16 no byte order is told, programs use either."""
    code, text = comment[:8], comment[8:]
    if code == b"UNICODE\0":
        big, little = text.decode("utf-16-be", "replace"), text.decode("utf-16-le", "replace")
        return big if _ascii(big) >= _ascii(little) else little
    if code in (b"ASCII\0\0\0", b"\0" * 8):
        return text.decode("utf-8", "replace")
    return comment.decode("utf-8", "replace")


def _ascii(text: str) -> int:
    return sum(letter < "\x80" for letter in text[:1000])


def _hidden(image: Image.Image) -> str:
    """The text that "stealth" extensions put into the lowest bits, column by column; "" where there is none."""
    if image.mode not in ("RGB", "RGBA"):
        return ""
    import numpy as np  # only where pixels are looked into: requests are read without it

    pixels = np.asarray(image)
    for channels in ((3,) if image.mode == "RGBA" else ()), (0, 1, 2):
        if channels and (text := _in_bits(pixels, channels)):
            return text
    return ""


def _in_bits(pixels: np.ndarray, channels: tuple[int, ...]) -> str:
    import numpy as np

    head_bits = 8 * _SIGNATURE_BYTES + 32
    height = pixels.shape[0]

    def bits(count: int) -> np.ndarray:
        columns = -(-count // (height * len(channels)))
        part = pixels[:, :columns, list(channels)].transpose(1, 0, 2).reshape(-1)
        return part[:count] & 1

    if pixels.shape[0] * pixels.shape[1] * len(channels) < head_bits:
        return ""
    head = np.packbits(bits(head_bits)).tobytes()
    known = _STEALTH.get(head[:_SIGNATURE_BYTES])
    if known is None or (known[0] == 3) != (channels == (3,)):
        return ""
    length = int.from_bytes(head[_SIGNATURE_BYTES:], "big")
    if length % 8 or not 0 < length <= 8 * MAX_TEXT_BYTES or head_bits + length > pixels[..., 0].size * len(channels):
        return ""
    payload = np.packbits(bits(head_bits + length)[head_bits:]).tobytes()
    if known[1]:
        unpacker = zlib.decompressobj(31)  # gzip
        payload = unpacker.decompress(payload, MAX_TEXT_BYTES)
    return payload.decode("utf-8", "replace")
