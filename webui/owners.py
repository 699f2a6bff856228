"""Whose runs and pictures are whose, where several people log in. Nothing is anybody's where nobody does.

A run's folder names its owner in the file `owner`; pictures lie in a folder of their owner's name. What was made
without a login belongs to the machine: such runs are everybody's to see, such pictures nobody's.
"""

from __future__ import annotations

from pathlib import Path

from diffusion_lora.run import write_atomically
from diffusion_lora.workspace import Workspace

_FILE = "owner"


def note_owner(run_folder: Path, user: str) -> None:
    """Write down whose a new run is. Raises OutputError."""
    if user:
        write_atomically(run_folder / _FILE, user.encode())


def may_see_run(run_folder: Path, user: str) -> bool:
    """Whether a run is this user's, or everybody's."""
    if not user:
        return True
    try:
        return (run_folder / _FILE).read_text(encoding="utf-8").strip() in ("", user)
    except OSError:
        return True


def pictures_of(workspace: Workspace, user: str) -> Path:
    """The folder of a user's pictures."""
    return workspace.pictures / user if user else workspace.pictures
