"""A drawn picture with the request that made it, and saving pictures without overwriting any."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffusion_lora.errors import OutputError
from diffusion_lora.generate.company import Company
from diffusion_lora.generate.infotext import png_chunks
from diffusion_lora.generate.request import Request

if TYPE_CHECKING:
    from torch import Tensor

_NUMBERED = re.compile(r"(\d+)\D.*\.png", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Picture:
    """An image and its request, in which everything the model decided (size, guidance, base, hashes) is filled in.

    `latents` [C, h, w] are those the image was decoded from, in fp32 on the CPU. `notes` are sentences for the user:
    what was cut off a prompt, an adapter made on another checkpoint. `company` is the batch it was drawn in.
    """

    image: Image.Image
    request: Request
    latents: "Tensor"
    notes: tuple[str, ...] = ()
    company: Company | None = None


def save_pictures(folder: Path, pictures: Sequence[Picture]) -> list[Path]:
    """Save as `00001-SEED.png`, … in the order given, counting on from what lies there; nothing is overwritten.

    Each file carries its request (`infotext`) and appears whole or not at all. Raises OutputError when the folder
    cannot be made or written.
    """
    return [
        save_png(folder, picture.image, str(picture.request.seed), png_chunks(picture.request, picture.company))
        for picture in pictures
    ]


def save_png(folder: Path, image: Image.Image, label: str, chunks: PngInfo | None = None) -> Path:
    """Save one image as `NUMBER-LABEL.png` under the next free number of the folder. Raises OutputError."""
    folder = Path(folder)
    temporary = folder / f".{os.getpid()}-{label}.png.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                image.save(file, format="PNG", pnginfo=chunks)
                file.flush()
                os.fsync(file.fileno())
            return _publish(temporary, folder, label)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"the pictures cannot be written to {folder} ({error.strerror or error})") from error


def _publish(temporary: Path, folder: Path, label: str) -> Path:
    """Give the file the next free number. Another process may take that number at the same time: then the next."""
    number = 1 + max(
        (int(match[1]) for entry in folder.iterdir() if (match := _NUMBERED.fullmatch(entry.name))), default=0
    )
    while True:
        path = folder / f"{number:05d}-{label}.png"
        try:
            os.link(temporary, path)
            return path
        except FileExistsError:
            number += 1
        except (
            OSError
        ):  # a file system without hard links (FAT, some shares): reserve the name, then replace our own file
            try:
                path.touch(exist_ok=False)
            except FileExistsError:
                number += 1
                continue
            temporary.replace(path)
            return path
