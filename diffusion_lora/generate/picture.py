"""A drawn picture with the request that made it, and saving pictures without overwriting any."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffusion_lora.errors import OutputError
from diffusion_lora.generate.company import Company
from diffusion_lora.generate.embedded import exif_of
from diffusion_lora.generate.infotext import png_chunks, to_json, write_infotext
from diffusion_lora.generate.request import Request

if TYPE_CHECKING:
    from torch import Tensor

KINDS: Mapping[str, str] = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}
_JPEG_ROOM = 65_000
_NUMBERED = re.compile(r"(\d+)\D.*\.(png|jpg|webp)", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Picture:
    """An image and its request, in which everything the model decided (size, guidance, base, hashes) is filled in.

    `latents` [C, h, w] are those the image was decoded from, in fp32 on the CPU, empty where it comes from a file.
    `notes` are sentences for the user: what was cut off a prompt, an adapter made on another checkpoint. `company` is
    the batch it was drawn in.
    """

    image: Image.Image
    request: Request
    latents: "Tensor"
    notes: tuple[str, ...] = ()
    company: Company | None = None


def save_pictures(folder: Path, pictures: Sequence[Picture], kind: str = "png") -> list[Path]:
    """Save as `00001-SEED.png`, … in the order given, counting on from what lies there; nothing is overwritten.

    `kind` is png, jpg or webp. Each file carries its request (`infotext`) and appears whole or not at all. Raises
    OutputError when the folder cannot be made or written.
    """
    check_kind(kind)
    return [
        _save(folder, picture.image, str(picture.request.seed), kind, _options(kind, picture)) for picture in pictures
    ]


def save_png(folder: Path, image: Image.Image, label: str, chunks: PngInfo | None = None) -> Path:
    """Save one image as `NUMBER-LABEL.png` under the next free number of the folder. Raises OutputError."""
    return _save(folder, image, label, "png", {"pnginfo": chunks})


def replace_png(path: Path, picture: Picture) -> None:
    """Save under this very name, in place of what lies there. Raises OutputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{os.getpid()}-{path.name}.tmp")
        try:
            picture.image.save(temporary, format="PNG", pnginfo=png_chunks(picture.request, picture.company))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error})") from error


def check_kind(kind: str) -> None:
    """Raises OutputError for a kind of file that is not written."""
    if kind not in KINDS:
        raise OutputError(f"pictures are not written as {kind!r}; say {', '.join(KINDS)}")


def _options(kind: str, picture: Picture) -> dict[str, Any]:
    """How Pillow is to save, settings included; of a JPEG, which has room for 64 KiB, without our own where they are
    longer."""
    if kind == "png":
        return {"pnginfo": png_chunks(picture.request, picture.company)}
    infotext, document = write_infotext(picture.request), to_json(picture.request, picture.company, ascii_only=True)
    exif = exif_of(infotext, document)
    if kind == "jpg":
        return {"quality": 95, "subsampling": 0, "exif": exif if len(exif) < _JPEG_ROOM else exif_of(infotext, "")}
    return {"quality": 95, "exif": exif}


def _save(folder: Path, image: Image.Image, label: str, kind: str, options: dict[str, Any]) -> Path:
    folder = Path(folder)
    temporary = folder / f".{os.getpid()}-{label}.{kind}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                image.save(file, format=KINDS[kind], **options)
                file.flush()
                os.fsync(file.fileno())
            return _publish(temporary, folder, f"{label}.{kind}")
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"the pictures cannot be written to {folder} ({error.strerror or error})") from error


def _publish(temporary: Path, folder: Path, name: str) -> Path:
    """Give the file the next free number. Another process may take that number at the same time: then the next."""
    number = 1 + max(
        (int(match[1]) for entry in folder.iterdir() if (match := _NUMBERED.fullmatch(entry.name))), default=0
    )
    while True:
        path = folder / f"{number:05d}-{name}"
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
