"""A folder of pictures with captions beside them: `cat.png` and `cat.txt`. No torch; pictures are not opened here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffusion_lora.errors import DatasetError
from diffusion_lora.images import SUFFIXES


@dataclass(frozen=True)
class Item:
    """One picture and its caption (empty: none)."""

    path: Path
    caption: str

    @property
    def name(self) -> str:
        return self.path.name


def scan_folder(folder: Path, *, caption: str | None = None, captions_required: bool = True) -> list[Item]:
    """The pictures of a folder by name, with the caption of the `.txt` file beside each, or `caption` for all.

    Raises DatasetError: no such folder, no picture in it, a picture without caption when captions are required, a
    caption that is not text.
    """
    if not folder.exists():
        places = (
            "" if folder.is_absolute() else " beside the config, in the working directory or among the shipped sets"
        )
        raise DatasetError(f"dataset.path = {str(folder)!r}: there is no such folder{places}")
    if not folder.is_dir():
        raise DatasetError(f"dataset.path = {str(folder)!r} is a file; name the folder that holds the pictures")
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not pictures:
        raise DatasetError(f"there is no picture in {folder}: it needs files ending in {', '.join(sorted(SUFFIXES))}")
    items = [Item(path, caption if caption is not None else read_caption(path)) for path in pictures]
    bare = [item.name for item in items if not item.caption]
    if bare and captions_required:
        others = f" (and {len(bare) - 1} more)" if len(bare) > 1 else ""
        raise DatasetError(
            f"{folder / bare[0]}{others} has no caption: write it into {Path(bare[0]).with_suffix('.txt')}, give one "
            "dataset.caption for all pictures, or set dataset.captions_required = false"
        )
    return items


def read_caption(picture: Path) -> str:
    """The text beside a picture, on one line; empty if there is none. Raises DatasetError if it is not UTF-8."""
    path = picture.with_suffix(".txt")
    try:
        return " ".join(path.read_text(encoding="utf-8-sig").split())
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"the caption {path} cannot be read as UTF-8 text ({error}); save it as UTF-8") from error
