"""The pictures of the workspace, newest first, and those that stand for a LoRA. Reads only; no Gradio."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from diffusion_lora.errors import PromptError
from diffusion_lora.images import SUFFIXES
from diffusion_lora.workspace import Workspace
from webui.files import picture_url

SHOWN = 120


def film(workspace: Workspace) -> dict[str, Any]:
    """The value of the film strip: the newest pictures, and how many more there are."""
    pictures = newest(workspace)
    return {
        "pictures": [{"name": path.name, "src": picture_url(workspace, path)} for path in pictures[:SHOWN]],
        "more": max(0, len(pictures) - SHOWN),
    }


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


def thumb(workspace: Workspace, name: str) -> str | None:
    """A picture that stands for a LoRA: one beside its file, else the last preview of the run that made it."""
    beside = [workspace.loras / f"{name}{suffix}" for suffix in sorted(SUFFIXES)]
    previews = workspace.runs / name / "previews"
    drawn = sorted(previews.glob("step-*-0.png"))[-1:] if previews.is_dir() else []
    found = next((path for path in [*beside, *drawn] if path.is_file()), None)
    return None if found is None else picture_url(workspace, found)
