"""A workspace is a folder that holds all of a person's things; every process works on it, none owns it.

    bases/ loras/ datasets/ runs/    base models, adapters, captioned pictures, runs (see `run`)
    pictures/                        what was drawn
    trash/                           what was removed: nothing is deleted
    state/                           the queue, who is at work, who has the device; means nothing elsewhere

This module knows the places and their names, not what lies in them. No torch here.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from diffusion_lora.errors import OutputError
from diffusion_lora.run import cannot_write, write_atomically

VARIABLE = "DIFFUSION_LORA_WORKSPACE"
_AREAS = ("bases", "loras", "datasets", "runs", "pictures", "trash")
_LONGEST_NAME = 80
_NOT_IN_NAMES = re.compile(r'[<>:"/\\|?*\x00-\x1f]')
_DEVICES_OF_WINDOWS = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Workspace:
    """The places of one workspace; `root` is absolute."""

    root: Path

    @classmethod
    def open(cls, root: Path | None = None) -> Workspace:
        """The workspace in a folder, with all its places made.

        By default $DIFFUSION_LORA_WORKSPACE, else ~/diffusion-lora. Raises OutputError.
        """
        workspace = cls.at(root)
        for area in _AREAS:
            _make_folder(workspace.root / area)
        _make_folder(workspace.state)
        return workspace

    @classmethod
    def at(cls, root: Path | None = None) -> Workspace:
        """The same workspace as `open` gives, with nothing made: it may not be there."""
        chosen = root or Path(os.environ.get(VARIABLE) or Path.home() / "diffusion-lora")
        return cls(chosen.expanduser().resolve())

    @property
    def bases(self) -> Path:
        return self.root / "bases"

    @property
    def loras(self) -> Path:
        return self.root / "loras"

    @property
    def embeddings(self) -> Path:
        """Words with vectors of their own, by name; not made before somebody puts one there."""
        return self.root / "embeddings"

    @property
    def datasets(self) -> Path:
        return self.root / "datasets"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def pictures(self) -> Path:
        return self.root / "pictures"

    @property
    def trash(self) -> Path:
        return self.root / "trash"

    @property
    def state(self) -> Path:
        return self.root / "state"

    def relative(self, path: Path) -> str:
        """A path below the root as the faces tell it, with forward slashes; any other path as it is."""
        absolute = Path(path).absolute()
        return absolute.relative_to(self.root).as_posix() if absolute.is_relative_to(self.root) else str(path)

    def run_folder(self, name: str) -> Path:
        """Where the run of a name is or would be. Raises OutputError for a name that cannot be a file's."""
        return self.runs / check_name(name)

    def free_run_name(self, name: str) -> str:
        """The name itself, or with the first number that no run has yet: NAME-2, ...  Raises OutputError."""
        return _first_free(name, lambda free: not (self.runs / free).exists())

    def publish(self, adapter_file: Path, name: str, *, earlier: tuple[Path, str] | None = None) -> Path:
        """Put a copy of an adapter among the LoRAs, as NAME.safetensors or, where that is taken, NAME-2, ...

        `earlier` is the file, with its SHA-256, that the same run had published before: it is written over, unless
        somebody has changed it since. The very same file is not put there twice. Raises OutputError.
        """
        data = _read(adapter_file)
        if earlier is not None and earlier[0].is_file() and sha256(earlier[0]) == earlier[1]:
            write_atomically(earlier[0], data)
            return earlier[0]
        digest = hashlib.sha256(data).hexdigest()

        def fits(free: str) -> bool:
            path = self.loras / f"{free}.safetensors"
            return not path.exists() or sha256(path) == digest

        path = self.loras / f"{_first_free(name, fits)}.safetensors"
        if not path.exists():
            write_atomically(path, data)
        return path

    def throw_away(self, path: Path) -> Path:
        """Move a file or folder into trash/ under a name of its own, and return the new place. Raises OutputError."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        place = self.trash / _first_free(f"{path.name[:_LONGEST_NAME - 20]} {stamp}", self._is_free_in_trash)
        try:
            shutil.move(path, place)
        except OSError as error:
            raise cannot_write(place, error) from error
        return place

    def _is_free_in_trash(self, name: str) -> bool:
        return not (self.trash / name).exists()


def workspace_of(run_folder: Path) -> Workspace | None:
    """The workspace whose runs/ holds a run folder; None for a run that lies elsewhere."""
    root = Path(run_folder).resolve().parent.parent
    inside = Path(run_folder).resolve().parent.name == "runs" and (root / "state").is_dir()
    return Workspace(root) if inside else None


def check_name(name: str) -> str:
    """The name, if a file can have it on every system. Raises OutputError."""
    if not name.strip():
        raise OutputError("the name is empty: give one, as in my-style")
    if len(name) > _LONGEST_NAME:
        raise OutputError(f"the name {name[:20]!r}... has {len(name)} characters: {_LONGEST_NAME} are the most")
    found = _NOT_IN_NAMES.search(name)
    if found:
        raise OutputError(f"the name {name!r} cannot be a file's: it holds {found[0]!r}; use letters, digits, - and _")
    if name.startswith(".") or name[-1] in ". " or name[0] == " " or _DEVICES_OF_WINDOWS.fullmatch(name):
        raise OutputError(f"the name {name!r} cannot be a file's on every system: choose another, as in my-style")
    return name


def sha256(path: Path) -> str:
    """The hash of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_free(name: str, is_free: Callable[[str], bool]) -> str:
    check_name(name)
    for number in count(2):
        free = name if number == 2 and is_free(name) else f"{name[:_LONGEST_NAME - 5]}-{number}"
        if free == name or is_free(free):
            return free
    raise AssertionError("counting ends never")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or error}") from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if folder.name == "state" and os.name == "posix":
            folder.chmod(0o700)  # tokens lie in there
    except OSError as error:
        raise OutputError(
            f"the workspace cannot be made: {folder}: {error.strerror or error}; choose another folder with --workspace"
        ) from error
