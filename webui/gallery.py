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
from webui import who
from webui.owners import pictures_of

SHOWN = 120
SmallCopy = Callable[[Path], str]
"""From a picture to the address of a small copy of it (`files.Thumbnails.url`)."""

_EMPTY: dict[str, Any] = {"pictures": [], "more": 0}


class Film:
    """The film strip's value, looked up anew only when the folder has changed: it is asked for once a second."""

    def __init__(self, workspace: Workspace, small: SmallCopy) -> None:
        self._workspace = workspace
        self._small = small
        self._seen: dict[str, tuple[int, dict[str, Any]]] = {}

    def value(self, user: str | None = None) -> dict[str, Any]:
        """A user's newest pictures, and how many more there are; by default of the one who asks."""
        user = who.is_asking() if user is None else user
        folder = pictures_of(self._workspace, user)
        try:
            changed = folder.stat().st_mtime_ns
        except FileNotFoundError:
            return _EMPTY
        known = self._seen.get(user)
        if known is None or known[0] != changed:
            pictures = newest(folder)
            shown = [{"name": path.name, "src": self._small(path)} for path in pictures[:SHOWN]]
            known = self._seen[user] = changed, {"pictures": shown, "more": max(0, len(pictures) - SHOWN)}
        return known[1]


def newest(folder: Path) -> list[Path]:
    """The pictures in a folder, the newest first."""
    try:
        with os.scandir(folder) as entries:
            found = [
                (entry.stat().st_mtime_ns, entry.name)
                for entry in entries
                if entry.name.lower().endswith(".png") and not entry.name.startswith(".") and entry.is_file()
            ]
    except FileNotFoundError:
        return []
    return [folder / name for _, name in sorted(found, reverse=True)]


def picture_named(folder: Path, name: str) -> Path:
    """The picture of this file name; the name comes from the browser. Raises PromptError when there is none."""
    path = folder / name
    if not name or Path(name).name != name or name.startswith(".") or not path.is_file():
        raise PromptError(f"the picture {name} is no longer in {folder}")
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
