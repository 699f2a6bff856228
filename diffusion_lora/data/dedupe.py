"""Groups of pictures that look the same, and which of each to keep. No torch."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from diffusion_lora.data.examine import duplicates, examine
from diffusion_lora.data.rewriting import SUFFIXES
from diffusion_lora.data.sources import Item, Layout, Looking, Source, expand, walk
from diffusion_lora.errors import DatasetError
from diffusion_lora.run import cannot_write


def groups(root: Path, layout: Layout, indices: Path | None) -> list[list[Item]]:
    """The pictures of a folder that look like others, a list for each group, the best first.

    The best has the most pixels; of equals, the larger file (less was lost in it). What was seen of each picture is
    kept in the folder `indices`. Raises DatasetError.
    """
    items = [item for source in expand(Source(root, layout)) for item in walk(source, Looking(), lambda problem: None)]
    known = examine([item.path for item in items], indices)
    first_of: dict[int, int] = {}
    members: dict[int, list[int]] = {}
    for index, other, _ in duplicates([known[item.path] for item in items]):
        first = first_of[index] = first_of.get(other, other)
        members.setdefault(first, [first]).append(index)
    return [sorted((items[index] for index in group), key=_worth, reverse=True) for group in members.values()]


def move_away(root: Path, found: Sequence[Sequence[Item]], out: Path) -> int:
    """Move all but the best of every group to another folder, with their captions and masks; how many pictures.

    Raises DatasetError if that folder lies inside the set, OutputError.
    """
    if out == root or root in out.parents:
        raise DatasetError(f"{out} lies inside the set {root}: name a folder outside of it")
    moved = 0
    for group in found:
        for item in group[1:]:
            target = out / item.name
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                beside = [item.path.with_suffix(suffix) for suffix in SUFFIXES]
                shared = any(other.path.stem == item.path.stem and other.path != item.path
                             and other.path.parent == item.path.parent for other in group)  # fmt: skip
                for file in (item.path, *(() if shared else beside), *([item.mask] if item.mask else [])):
                    if file.is_file():
                        _move(file, target.with_name(file.name))
            except OSError as error:
                raise cannot_write(target, error) from error
            moved += 1
    return moved


def _move(file: Path, target: Path) -> None:
    if target.exists():
        raise DatasetError(f"{target} is there already: name another folder")
    shutil.move(file, target)


def _worth(item: Item) -> tuple[int, int, str]:
    return item.size[0] * item.size[1], item.path.stat().st_size, item.name
