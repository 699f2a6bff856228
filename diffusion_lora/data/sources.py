"""Where pictures come from: folders in the layouts people have, walked once; headers are read, pixels are not.

    flat         cat.png, cat.txt
    subfolders   the same, in folders below too
    kohya        5_zib cat/...: folders named REPEATS_name class
    metadata     metadata.jsonl or metadata.csv beside the pictures (Hugging Face imagefolder)

Masks lie beside their picture (`cat.mask.png`, `cat-masklabel.png`) or in `masks/cat.png`. No torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from diffusion_lora.data.problems import Problem, Report
from diffusion_lora.data.sidecars import METADATA, Lines, read_caption_file, read_metadata
from diffusion_lora.errors import DatasetError
from diffusion_lora.images import SUFFIXES, image_size

Layout = Literal["auto", "flat", "subfolders", "kohya", "metadata"]

_KOHYA = re.compile(r"(\d+)_(.+)")
_MASK_STEMS = (".mask", "-masklabel")
MASK_FOLDER = "masks"


@dataclass(frozen=True)
class Source:
    """One folder of pictures and how it is used.

    `repeats` is how often each picture comes in a round, `weight` what its loss counts, `caption` the one for all of
    them. Pictures for `regularisation` keep the base what it is: they get no trigger word and are drawn as often as the
    others together.
    """

    folder: Path
    layout: Layout = "auto"
    repeats: float = 1.0
    weight: float = 1.0
    regularisation: bool = False
    caption: str | None = None


@dataclass(frozen=True)
class Looking:
    """What is looked for beside pictures, and how it is read."""

    caption_files: tuple[str, ...] = (".txt", ".caption")
    lines: Lines = "joined"
    folder_as_caption: bool = False
    masks: bool = False
    headers: bool = True


@dataclass(frozen=True, slots=True)
class Item:
    """One picture and its captions; the first is `caption` (empty: none), `others` are further ones to choose from.

    `name` is the path below its source's folder, with forward slashes; `size` is (width, height) in pixels, upright,
    (0, 0) where the header was not read; `source` is the place of its source in the list of them.
    """

    path: Path
    caption: str = ""
    others: tuple[str, ...] = ()
    name: str = ""
    size: tuple[int, int] = (0, 0)
    source: int = 0
    mask: Path | None = None

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.path.name)

    @property
    def captions(self) -> tuple[str, ...]:
        """All of them; one empty text where there is none."""
        return (self.caption, *self.others)


def expand(source: Source) -> list[Source]:
    """The source with its layout known; of kohya's folders each is a source of its own, with its repeats.

    Raises DatasetError: no such folder, or not of the layout that was asked for.
    """
    _demand_folder(source.folder)
    layout = source.layout
    kohya = _kohya_folders(source.folder) if layout in ("auto", "kohya") else []
    if layout == "auto":
        own = _KOHYA.fullmatch(source.folder.name)
        if _metadata_file(source.folder) is not None:
            layout = "metadata"
        elif kohya and not _has_pictures(source.folder):
            layout = "kohya"
        else:
            repeats = source.repeats * int(own[1]) if own else source.repeats
            return [replace(source, layout="flat", repeats=repeats)]
    if layout == "metadata" and _metadata_file(source.folder) is None:
        raise DatasetError(f"{source.folder} has neither {METADATA[0]} nor {METADATA[1]}, as dataset.layout asks for")
    if layout != "kohya":
        return [replace(source, layout=layout)]
    if not kohya:
        raise DatasetError(
            f"{source.folder} has no folders of the form REPEATS_name class (say '5_zib cat'), "
            "as dataset.layout asks for"
        )
    return [
        replace(source, folder=folder, layout="subfolders", repeats=source.repeats * repeats)
        for folder, repeats in kohya
    ]


def walk(source: Source, looking: Looking, report: Report, number: int = 0) -> Iterator[Item]:
    """The pictures of an expanded source, by name, one after the other: nothing is kept, whatever their number.

    What cannot be read, or is missing, is reported; a picture whose header cannot be read is left out. Raises
    DatasetError for a metadata list that is not understood.
    """
    listed = _listed(source)
    for folder in _folders(source, listed):
        names = _names(folder)
        prefix = "" if folder == source.folder else folder.relative_to(source.folder).as_posix() + "/"
        masks = _masks(names)
        not_pictures = set(masks.values())
        if masks and not looking.masks:
            first = next(iter(masks.values()))
            many = "1 picture has a mask" if len(masks) == 1 else f"{len(masks)} pictures have a mask"
            text = f"{many} ({first}), which training looks at when dataset.mask is file"
            report(Problem("mask", prefix + first, text))
        for name in names:
            stem, suffix = _split(name)
            if suffix.lower() not in SUFFIXES or name in not_pictures:
                continue
            path, told = folder / name, prefix + name
            captions = _captions(told, stem, folder, names, source, looking, listed, report)
            mask = _mask(path, told, masks, looking, report)
            size = _size(path, told, report) if looking.headers else (0, 0)
            if size is not None:
                first, *others = captions or ("",)
                yield Item(path, first, tuple(others), told, size, number, mask)
    for name in listed:
        if not (source.folder / name).is_file():
            report(Problem("not there", name, f"{name} stands in the metadata list, but there is no such file"))


def describe_captions(source: Source, looking: Looking) -> str:
    """Where captions of a source are looked for, in words."""
    files = " or ".join(f"NAME{suffix}" for suffix in looking.caption_files)
    return f"{files} beside each picture" + (", and the metadata list" if source.layout == "metadata" else "")


def contents(folder: Path) -> str:
    """What lies in a folder, in words: `24 .png, 24 .text, 3 folders`."""
    counts: dict[str, int] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            kind = "folders" if entry.is_dir() else Path(entry.name).suffix.lower() or "without ending"
            counts[kind] = counts.get(kind, 0) + 1
    told = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{count} {kind}" for kind, count in told) or "nothing"


def _demand_folder(folder: Path) -> None:
    if not folder.exists():
        places = (
            "" if folder.is_absolute() else " beside the config, in the working directory or among the shipped sets"
        )
        raise DatasetError(f"dataset.path = {str(folder)!r}: there is no such folder{places}")
    if not folder.is_dir():
        raise DatasetError(f"dataset.path = {str(folder)!r} is a file; name the folder that holds the pictures")


def _names(folder: Path) -> dict[str, None]:
    """The names of the files in a folder, in order; a dict, for they are looked up as well."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and not entry.is_dir())
    except OSError as error:
        raise DatasetError(f"the folder {folder} cannot be read: {error.strerror or error}") from error
    return dict.fromkeys(names)


def _folders(source: Source, listed: Mapping[str, tuple[str, ...]]) -> Iterator[Path]:
    """The folders that hold a source's pictures, in order."""
    yield source.folder
    if source.layout == "metadata":
        below = sorted({name.rpartition("/")[0] for name in listed} - {""})
        yield from (source.folder / name for name in below if (source.folder / name).is_dir())
    elif source.layout == "subfolders":
        for top, folders, _ in os.walk(source.folder):
            folders[:] = sorted(name for name in folders if not name.startswith(".") and name != MASK_FOLDER)
            if Path(top) != source.folder:
                yield Path(top)


def _metadata_file(folder: Path) -> Path | None:
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)


def _listed(source: Source) -> dict[str, tuple[str, ...]]:
    file = _metadata_file(source.folder) if source.layout == "metadata" else None
    return read_metadata(file) if file else {}


def _kohya_folders(folder: Path) -> list[tuple[Path, int]]:
    with os.scandir(folder) as entries:
        matches = [(entry.name, _KOHYA.fullmatch(entry.name)) for entry in entries if entry.is_dir()]
    return [(folder / name, int(match[1])) for name, match in sorted(matches) if match and int(match[1])]


def _has_pictures(folder: Path) -> bool:
    return any(Path(name).suffix.lower() in SUFFIXES for name in _names(folder))


def _captions(
    picture: str,
    stem: str,
    folder: Path,
    names: Mapping[str, None],
    source: Source,
    looking: Looking,
    listed: Mapping[str, tuple[str, ...]],
    report: Report,
) -> tuple[str, ...]:
    if source.caption is not None:
        return (source.caption,)
    found = listed.get(picture, ())
    for suffix in looking.caption_files:
        if found:
            break
        if stem + suffix in names:
            try:
                found = read_caption_file(folder / (stem + suffix), looking.lines)
            except DatasetError as error:
                report(Problem("caption encoding", picture, str(error)))
    if not found and looking.folder_as_caption:
        return (_class_name(folder.name),)
    return found


def _class_name(folder: str) -> str:
    """`5_zib cat` -> `zib cat`; other names are what they are, their underscores spaces."""
    match = _KOHYA.fullmatch(folder)
    return " ".join((match[2] if match else folder).replace("_", " ").split())


def _split(name: str) -> tuple[str, str]:
    """Stem and suffix of a file's name. (`Path` has them too, at ten times the cost, and there may be 100 000.)"""
    stem, dot, ending = name.rpartition(".")
    return (stem, dot + ending) if stem else (name, "")


def _masks(names: Mapping[str, None]) -> dict[str, str]:
    """Of each picture (by stem) the name of the mask beside it."""
    pairs = [_split(name) for name in names if _split(name)[0].endswith(_MASK_STEMS)]
    if not pairs:
        return {}
    stems = {_split(name)[0] for name in names if _split(name)[1].lower() in SUFFIXES}
    found = {}
    for stem, suffix in pairs:
        of = next(stem.removesuffix(ending) for ending in _MASK_STEMS if stem.endswith(ending))
        if suffix.lower() in SUFFIXES and of in stems:
            found[of] = stem + suffix
    return found


def _mask(path: Path, picture: str, masks: Mapping[str, str], looking: Looking, report: Report) -> Path | None:
    if not looking.masks:
        return None
    if beside := masks.get(path.stem):
        return path.with_name(beside)
    for suffix in (".png", path.suffix):
        if (candidate := path.parent / MASK_FOLDER / (path.stem + suffix)).is_file():
            return candidate
    report(Problem("mask", picture, f"{picture} has no mask: all of it counts"))
    return None


def _size(path: Path, picture: str, report: Report) -> tuple[int, int] | None:
    try:
        return image_size(path)
    except DatasetError as error:
        report(Problem("unreadable", picture, str(error), left_out=True))
        return None
