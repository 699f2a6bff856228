"""A data set as it lies on the disk: its sources walked, and a stop where captions were not found. No torch.

`scan` reads headers and captions of everything a run uses; `scan_folder` is the quick look at one folder that the page
takes, without opening a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from diffusion_lora.config import DatasetTable
from diffusion_lora.data.problems import Problem
from diffusion_lora.data.sources import Item, Looking, Source, contents, describe_captions, expand, walk
from diffusion_lora.errors import DatasetError
from diffusion_lora.images import SUFFIXES

__all__ = ["Item", "Scanned", "demand_captions", "looking_for", "scan", "scan_folder", "scan_table", "sources_of"]


@dataclass(frozen=True)
class Scanned:
    """What was found: the pictures of all sources in order, the sources as they were expanded, and what is wrong."""

    items: tuple[Item, ...]
    sources: tuple[Source, ...]
    problems: tuple[Problem, ...]


def sources_of(table: DatasetTable) -> list[Source]:
    """The sources a [dataset] table names: its own path first, then `dataset.sources`."""
    own = [Source(Path(table.path), layout=table.layout, caption=table.caption)] if table.path else []
    return own + [
        Source(
            Path(entry.path),
            layout=entry.layout,
            repeats=entry.repeats,
            weight=entry.weight,
            regularisation=entry.regularisation,
            caption=entry.caption if entry.caption is not None else table.caption,
        )
        for entry in table.sources
    ]


def looking_for(table: DatasetTable) -> Looking:
    """What a [dataset] table wants looked for beside the pictures."""
    return Looking(
        caption_files=table.caption_files,
        lines=table.caption_lines,
        masks=table.mask == "file",
        folder_as_caption=table.caption_from == "folder",
    )


def scan_table(table: DatasetTable) -> Scanned:
    """`scan` of what a [dataset] table names. Raises DatasetError as it does."""
    return scan(sources_of(table), looking_for(table))


def scan(sources: Sequence[Source], looking: Looking) -> Scanned:
    """Walk all sources and keep what was found.

    Raises DatasetError: a folder that is not there, one without any picture, a metadata list that is not understood.
    """
    problems: list[Problem] = []
    items: list[Item] = []
    expanded: list[Source] = []
    for given in sources:
        before = len(items), len(problems)
        for source in expand(given):
            items += walk(source, looking, problems.append, len(expanded))
            expanded.append(source)
        if len(items) == before[0]:
            _nothing_found(given, problems[before[1] :])
    return Scanned(tuple(items), tuple(expanded), tuple(problems))


def demand_captions(scanned: Scanned, looking: Looking, *, required: bool) -> None:
    """The gate: a set whose captions were not found is not trained on by mistake.

    Raises DatasetError: a caption that is not text; with `required`, a picture without caption, or a set where none was
    matched at all.
    """
    broken = next((problem for problem in scanned.problems if problem.kind == "caption encoding"), None)
    if broken is not None:
        raise DatasetError(broken.text)
    bare = [item for item in scanned.items if not item.caption]
    if not bare or not required:
        return
    source = scanned.sources[bare[0].source]
    if len(bare) == len(scanned.items) and len(bare) > 1:
        raise DatasetError(
            f"no caption was found for any of the {len(bare)} pictures: looked for "
            f"{describe_captions(source, looking)}; in {bare[0].path.parent} lie {contents(bare[0].path.parent)}; "
            "rename the captions, name their ending in dataset.caption_files, give one dataset.caption for all "
            'pictures, take the folder\'s name by dataset.caption_from = "folder", or set '
            "dataset.captions_required = false to train without any"
        )
    others = f" (and {len(bare) - 1} more)" if len(bare) > 1 else ""
    raise DatasetError(
        f"{bare[0].path}{others} has no caption: write it into "
        f"{bare[0].path.with_suffix(looking.caption_files[0]).name}, give one dataset.caption for all pictures, or set "
        "dataset.captions_required = false"
    )


def scan_folder(
    folder: Path, *, caption: str | None = None, captions_required: bool = True, masks: bool = False
) -> list[Item]:
    """The pictures of one folder by name, with their captions, or `caption` for all; no picture is opened.

    With `masks` each has its mask too, where there is one.

    Raises DatasetError: no such folder, no picture in it, a picture without caption when captions are required, a
    caption that is not text.
    """
    looking = Looking(headers=False, masks=masks)
    scanned = scan([Source(folder, caption=caption)], looking)
    demand_captions(scanned, looking, required=captions_required)
    return list(scanned.items)


def _nothing_found(source: Source, problems: Sequence[Problem]) -> None:
    """Raise the sentence of a source without a picture: what was looked for, and what lies there instead."""
    unreadable = [problem for problem in problems if problem.kind == "unreadable"]
    if unreadable:
        raise DatasetError(
            f"none of the {len(unreadable)} pictures in {source.folder} can be read: {unreadable[0].text}"
        )
    if source.layout in ("auto", "flat"):
        below = walk(replace(source, layout="subfolders"), Looking(headers=False), lambda problem: None)
        if (found := sum(1 for _ in below)) > 0:
            raise DatasetError(
                f"there is no picture in {source.folder}, but {found} in its folders: "
                'set dataset.layout = "subfolders" to use them'
            )
    raise DatasetError(
        f"there is no picture in {source.folder}: it needs files ending in {', '.join(sorted(SUFFIXES))}"
    )
