"""Copies of a set in the forms other programs read, on request smaller, cut or in another format. No torch.

    kohya         OUT/REPEATS_NAME/cat.png, cat.txt
    imagefolder   OUT/cat.png, OUT/metadata.jsonl (Hugging Face)
    zip           cat.png, cat.txt in one file

An export is there whole or not at all: it is made under another name beside it, and renamed.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image, ImageOps

from diffusion_lora.data.problems import Problem
from diffusion_lora.data.sidecars import METADATA
from diffusion_lora.data.sources import Item, Layout, Looking, Source, expand, walk
from diffusion_lora.errors import DatasetError, OutputError
from diffusion_lora.images import open_image
from diffusion_lora.run import cannot_write

To = Literal["kohya", "imagefolder", "zip"]
Format = Literal["as is", "png", "jpeg", "webp"]

_ENDINGS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
_QUALITY = 95


@dataclass(frozen=True)
class Copying:
    """What happens to pictures: larger ones shrink to `longest_px` (0: none), all are cut around the middle and scaled
    to `crop` (width, height), and written as `pictures`. Without any of it the files are copied as they are."""

    longest_px: int = 0
    crop: tuple[int, int] | None = None
    pictures: Format = "as is"

    @property
    def as_is(self) -> bool:
        return not self.longest_px and self.crop is None and self.pictures == "as is"

    def ending(self, path: Path) -> str:
        """The ending of the copy of a picture."""
        if self.pictures != "as is":
            return _ENDINGS[self.pictures]
        own = path.suffix.lower()
        return own if self.as_is or own in (".png", ".jpg", ".jpeg", ".webp") else ".png"

    def of(self, path: Path) -> bytes:
        """The copy of a picture. Raises DatasetError if it cannot be read."""
        if self.as_is:
            return path.read_bytes()
        image = open_image(path)
        if self.crop is not None:
            image = ImageOps.fit(image, self.crop, Image.Resampling.LANCZOS, centering=(0.5, 0.5))
        if self.longest_px and max(image.size) > self.longest_px:
            image = ImageOps.contain(image, (self.longest_px, self.longest_px), Image.Resampling.LANCZOS)
        store = io.BytesIO()
        kind = {".png": "PNG", ".webp": "WEBP"}.get(self.ending(path), "JPEG")
        image.save(store, kind, **({} if kind == "PNG" else {"quality": _QUALITY}))
        return store.getvalue()


def export_set(
    root: Path, out: Path, to: To, layout: Layout, name: str, repeats: int, copying: Copying | None = None
) -> int:
    """Copy the pictures of a folder with their captions; how many there were.

    Raises DatasetError for a picture that cannot be read or two that would have one name, OutputError if `out` is there
    already or cannot be written.
    """
    copying = copying or Copying()
    if out.exists():
        raise OutputError(f"{out} is there already: name a new {'file' if to == 'zip' else 'folder'}")
    if out == root or root in out.parents:
        raise OutputError(f"{out} lies inside the set {root}: name a place outside of it")
    if to == "kohya" and ("/" in name or "\\" in name or not name.strip()):
        raise DatasetError(f"{name!r} is no folder's name: give --name")
    growing = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            writer = _write_zip if to == "zip" else _write_folder
            where = f"{repeats}_{name}/" if to == "kohya" else ""
            count = writer(growing, where, to == "imagefolder", _copies(root, layout, copying))
            growing.rename(out)
        finally:
            shutil.rmtree(growing) if growing.is_dir() else growing.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error
    return count


def _copies(root: Path, layout: Layout, copying: Copying) -> Iterator[tuple[str, bytes, Item]]:
    """(name, bytes, item) of every picture; of two that differ in their ending alone the second keeps its ending."""
    taken: dict[str, str] = {}

    def refuse(problem: Problem) -> None:
        if problem.left_out or problem.kind == "caption encoding":
            raise DatasetError(problem.text)

    for source in expand(Source(root, layout)):
        for item in walk(source, Looking(headers=False), refuse):
            stem = item.name.rpartition(".")[0]
            if taken.setdefault(stem.lower(), item.name) != item.name:
                raise DatasetError(f"{taken[stem.lower()]} and {item.name} would share one caption: rename one of them")
            yield stem + copying.ending(item.path), copying.of(item.path), item
    if not taken:
        raise DatasetError(f"there is no picture in {root}")


def _write_folder(out: Path, where: str, listed: bool, copies: Iterator[tuple[str, bytes, Item]]) -> int:
    lines, count = [], 0
    for name, data, item in copies:
        count += 1
        file = out / where / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        if listed:
            lines.append(json.dumps({"file_name": name, "text": item.caption}, ensure_ascii=False) + "\n")
        elif item.caption:
            file.with_suffix(".txt").write_text("\n".join(item.captions), encoding="utf-8")
    if listed:
        (out / METADATA[0]).write_text("".join(lines), encoding="utf-8")
    return count


def _write_zip(out: Path, where: str, listed: bool, copies: Iterator[tuple[str, bytes, Item]]) -> int:
    count = 0
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:  # pictures are compressed already
        for name, data, item in copies:
            count += 1
            archive.writestr(where + name, data)
            if item.caption:
                archive.writestr(where + name.rpartition(".")[0] + ".txt", "\n".join(item.captions))
    return count
