"""Pictures and captions out of a zip or a folder into a new folder. Nothing else is taken over. No torch.

A zip is not trusted: names that lead out of the folder, links, files larger than they say and archives that unfold to
more than `MOST_BYTES` are refused before anything lies in the new folder.
"""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from diffusion_lora.data.sidecars import METADATA
from diffusion_lora.errors import DatasetError, OutputError
from diffusion_lora.images import SUFFIXES
from diffusion_lora.run import cannot_write

MOST_BYTES = 64 * 2**30
MOST_FILES = 1_000_000
_ONE_FILE_BYTES = 512 * 2**20
_RATIO = 200  # a picture or a text does not shrink to less than this share
_CHUNK = 1 << 20
_TEXTS = (".txt", ".caption")


def import_zip(archive: Path, out: Path) -> int:
    """Unpack a zip into a new folder; how many files. Raises DatasetError, OutputError."""
    try:
        with zipfile.ZipFile(archive) as source:
            members = list(_wanted(archive, source))
            top = _common_top([name for name, _ in members])
            return _into(out, ((name[len(top) :], source, info) for name, info in members))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise DatasetError(f"{archive} cannot be unpacked ({error})") from error


def import_folder(source: Path, out: Path) -> int:
    """Copy pictures and captions of a folder and those below into a new folder; how many files.

    Raises DatasetError, OutputError.
    """
    if out == source or source in out.parents:
        raise DatasetError(f"{out} lies inside {source}: name a folder outside of it")
    found = [(path.relative_to(source).as_posix(), path) for path in sorted(source.rglob("*"))
             if path.is_file() and _is_wanted(path.relative_to(source).as_posix())]  # fmt: skip
    if not any(Path(name).suffix.lower() in SUFFIXES for name, _ in found):
        raise DatasetError(
            f"there is no picture in {source}: files ending in {', '.join(sorted(SUFFIXES))} are taken over; "
            "tables such as .parquet are not read"
        )
    return _into(out, ((name, None, path) for name, path in found))


def _wanted(archive: Path, source: zipfile.ZipFile) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    infos = source.infolist()
    if len(infos) > MOST_FILES:
        raise DatasetError(f"{archive} holds {len(infos):,} files, more than {MOST_FILES:,}")
    total, seen = 0, set[str]()
    for info in infos:
        name = info.filename.replace("\\", "/")
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or ":" in name.split("/")[0] or "\0" in name:
            raise DatasetError(f"{archive} is refused: {info.filename!r} leads out of its folder")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DatasetError(f"{archive} is refused: {info.filename!r} is a link")
        if info.is_dir() or not _is_wanted(path.as_posix()):
            continue
        total += info.file_size
        unlikely = info.file_size > _RATIO * info.compress_size + 4096
        if unlikely or info.file_size > _ONE_FILE_BYTES or total > MOST_BYTES:
            raise DatasetError(f"{archive} is refused: {info.filename!r} unfolds to {info.file_size:,} bytes "
                               f"from {info.compress_size:,}")  # fmt: skip
        if path.as_posix().lower() in seen:
            raise DatasetError(f"{archive} is refused: it holds {info.filename!r} twice")
        seen.add(path.as_posix().lower())
        yield path.as_posix(), info
    if not any(Path(name).suffix in SUFFIXES for name in seen):
        raise DatasetError(f"there is no picture in {archive}")


def _into(out: Path, files: Iterator[tuple[str, zipfile.ZipFile | None, zipfile.ZipInfo | Path]]) -> int:
    """Write files below a new folder: all of them, or none and no folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} is there already: name a new folder")
    growing = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    count = 0
    try:
        try:
            growing.mkdir(parents=True)
            for name, archive, place in files:
                count += 1
                target = growing / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(place, Path):
                    shutil.copyfile(place, target)
                elif archive is not None:
                    _unpack(archive, place, target)
            if out.exists():
                out.rmdir()
            growing.rename(out)
        finally:
            shutil.rmtree(growing, ignore_errors=True)
    except OSError as error:
        raise cannot_write(out, error) from error
    return count


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    left = info.file_size
    with archive.open(info) as source, target.open("wb") as file:
        while data := source.read(_CHUNK):
            left -= len(data)
            if left < 0:
                raise DatasetError(f"{archive.filename} is refused: {info.filename!r} is larger than it says")
            file.write(data)


def _is_wanted(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return not hidden and (path.suffix.lower() in SUFFIXES or path.suffix.lower() in _TEXTS or path.name in METADATA)


def _common_top(names: list[str]) -> str:
    """The folder that all files of a zip are in, with its slash; "" if there is none."""
    tops = {name.partition("/")[0] for name in names if "/" in name}
    return f"{tops.pop()}/" if len(tops) == 1 and all("/" in name for name in names) else ""
