"""The pictures of the workspace, newest first, and those that stand for a LoRA. Reads only; no Gradio."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusion_lora.adopted import model_named, roots
from diffusion_lora.errors import PromptError
from diffusion_lora.images import SUFFIXES
from diffusion_lora.sidecar import read_notes
from diffusion_lora.workspace import Workspace

SHOWN = 120
SmallCopy = Callable[[Path], str]
"""From a picture to the address of a small copy of it (`files.Thumbnails.url`)."""

_EMPTY: dict[str, Any] = {"pictures": [], "more": 0}


class Film:
    """The film strip's value, looked up anew only when the folder has changed: it is asked for once a second."""

    def __init__(self, workspace: Workspace, small: SmallCopy) -> None:
        self._workspace = workspace
        self._small = small
        self._seen = (-1, _EMPTY)

    def value(self) -> dict[str, Any]:
        """The newest pictures, and how many more there are."""
        try:
            changed = self._workspace.pictures.stat().st_mtime_ns
        except FileNotFoundError:
            return _EMPTY
        if self._seen[0] != changed:
            pictures = newest(self._workspace)
            shown = [{"name": path.name, "src": self._small(path)} for path in pictures[:SHOWN]]
            self._seen = changed, {"pictures": shown, "more": max(0, len(pictures) - SHOWN)}
        return self._seen[1]


def newest(workspace: Workspace) -> list[Path]:
    """The pictures in `pictures/`, the newest first."""
    try:
        with os.scandir(workspace.pictures) as entries:
            found = [
                (entry.stat().st_mtime_ns, entry.name)
                for entry in entries
                if entry.name.lower().endswith(".png") and not entry.name.startswith(".") and entry.is_file()
            ]
    except FileNotFoundError:
        return []
    return [workspace.pictures / name for _, name in sorted(found, reverse=True)]


def picture_named(workspace: Workspace, name: str) -> Path:
    """The picture of this file name; the name comes from the browser. Raises PromptError when there is none."""
    path = workspace.pictures / name
    if not name or Path(name).name != name or name.startswith(".") or not path.is_file():
        raise PromptError(f"the picture {name} is no longer in {workspace.pictures}")
    return path


def thumb(workspace: Workspace, name: str, small: SmallCopy) -> str | None:
    """A picture that stands for a LoRA: one beside its file, else the last preview of the run that made it."""
    beside = [workspace.loras / f"{name}{suffix}" for suffix in sorted(SUFFIXES)]
    previews = workspace.runs / name / "previews"
    drawn = sorted(previews.glob("step-*-0.png"))[-1:] if previews.is_dir() else []
    found = next((path for path in [*beside, *drawn] if path.is_file()), None)
    if found is None and (model := model_named(workspace, "loras", name)) is not None:
        found = read_notes(model.path, [root.folder for root in roots(workspace, "loras")]).preview
    return None if found is None else small(found)
