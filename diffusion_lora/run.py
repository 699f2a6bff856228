"""A run is a folder: the only channel between the process that works and those that watch.

    config.toml     the complete configuration; config.1.toml, ... are older ones, kept when a run is extended
    events.jsonl    facts, one a line (see `events`)
    log.txt         the same story for people
    dataset.json    the pictures and captions it began with (see `data.fingerprint`)
    checkpoints/    states from which the run goes on exactly
    previews/       pictures drawn on the way
    adapter.safetensors, or of a [sweep] adapter-rank4.safetensors, ...
    embeddings/     the word that was learned with it, for programs that load it alone; of a sweep in embeddings/rank4/
    tensorboard/, wandb/    the same figures for these programs, where [tracking] wants them
    inbox/          what others ask of the process at work (see `inbox`)
    run.lock        held by the process at work; run.lock.json says which one
    console.txt     what a process started by the queue printed
    owner           whose it is, where several people log in to the page

This module knows the folder, not what the run computes. No torch here.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diffusion_lora.config import TrainConfig, load_train_config, setting_differences, to_toml, variants
from diffusion_lora.errors import OutputError, RunError
from diffusion_lora.events import read_events
from diffusion_lora.processes import Process, Taken, only_one, owner

RunKind = Literal["train", "caption"]

# What may change when a run goes on: its length, its place and its by-products. Anything else would make the first half
# of the run a different run from the second.
_FREE_TO_CHANGE = (
    "train.steps",
    "train.device",
    "train.threads",
    "train.checkpointing",
    "train.memory_cap_gb",
    "dataset.accept_changes",
    "checkpoint.",
    "preview.",
    "validation.every",
    "validation.patience",
    "validation.result",
    "validation.picture_looks",
    "calibration.",
    "tracking.",
    "output.",
)


@dataclass(frozen=True)
class Run:
    """A run folder with its configuration. One process at a time writes to it."""

    folder: Path
    config: TrainConfig

    @classmethod
    def create(cls, folder: Path, config: TrainConfig) -> Run:
        """Start a new run in an empty or new folder, or in place of one that ended before its first step.

        Raises RunError if the folder holds anything else, or somebody is at work in it; OutputError if it cannot be
        made or written.
        """
        folder = Path(folder).absolute()
        _refuse_if_busy(folder)
        _make_folder(folder)
        if any(folder.iterdir()) and not _never_began(folder):
            raise RunError(f"{folder} is not empty: add --resume to go on with the run in it, or name another folder")
        for name in ("checkpoints", "previews"):
            _make_folder(folder / name)
        write_atomically(folder / "config.toml", to_toml(config).encode())
        return cls(folder, config)

    @classmethod
    def open(cls, folder: Path) -> Run:
        """The run in a folder, with the configuration it was started with. Raises RunError if there is none."""
        folder = Path(folder).absolute()
        if not (folder / "config.toml").is_file():
            raise RunError(f"{folder} is not a run folder: it has no config.toml")
        return cls(folder, load_train_config(folder / "config.toml"))

    @classmethod
    def resume(cls, folder: Path, config: TrainConfig) -> Run:
        """The run in a folder, to go on with this configuration; a new one if it has not taken a step yet.

        The length, the device, checkpoints, previews and the output's name may differ from what the run was started
        with (the older file is kept as config.N.toml); anything else raises RunError.
        """
        folder = Path(folder).absolute()
        _refuse_if_busy(folder)
        if not (folder / "config.toml").is_file() or _never_began(folder):
            return cls.create(folder, config)
        run = cls.open(folder)
        differences = setting_differences(run.config, config)
        for key, (old, new) in differences.items():
            if not key.startswith(_FREE_TO_CHANGE):
                raise RunError(
                    f"{folder} was started with {key} = {old!r}, not {new!r}: "
                    "go on with the settings it has, or start a new run in another folder"
                )
        if differences:
            number = 1 + sum(1 for _ in folder.glob("config.*.toml"))
            write_atomically(folder / f"config.{number}.toml", (folder / "config.toml").read_bytes())
            write_atomically(folder / "config.toml", to_toml(config).encode())
        return cls(folder, config)

    def embedding_path(self, word: str, adapter: str = "") -> Path:
        """The file of a learned word alone, of the adapter of this name in a [sweep]; the file's name is the word, as
        programs that load it have it."""
        return self.folder / "embeddings" / adapter / f"{word}.safetensors"

    @property
    def adapter_path(self) -> Path:
        """The adapter's file; of a [sweep] the first one's."""
        return self.adapter_file(next(iter(variants(self.config))))

    def adapter_file(self, name: str = "") -> Path:
        """The file of the adapter of this name in a [sweep], or of the only one."""
        return self.folder / (f"adapter-{name}.safetensors" if name else "adapter.safetensors")

    @contextmanager
    def lock(self, before_told: Callable[[], object] = lambda: None) -> Iterator[None]:
        """Be the one process at work on the run, for the length of the block.

        `before_told` is called before anybody can see that somebody is at work. Raises RunError naming the process that
        is already, OutputError.
        """
        with locked(self.folder, before_told):
            yield

    def emit(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Append one event and return it. Values must be JSON; a number that is not finite is given as text."""
        return emit(self.folder, kind, **fields)

    def log(self, text: str) -> None:
        """Append one line, with the time, to log.txt."""
        log(self.folder, text)


@contextmanager
def locked(folder: Path, before_told: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Be the one process at work on the run in a folder, of whatever kind it is; see `Run.lock`."""
    try:
        with only_one(_lock_of(folder), before_told):
            yield
    except Taken as error:
        raise _busy(folder, error.owner) from None


def emit(folder: Path, kind: str, **fields: Any) -> dict[str, Any]:
    """Append one event to the run in a folder and return it; see `Run.emit`."""
    event = {"time": round(time.time(), 3), "kind": kind, **fields}
    _append(folder / "events.jsonl", json.dumps(event, ensure_ascii=False, allow_nan=False))
    return event


def log(folder: Path, text: str) -> None:
    """Append one line, with the time, to log.txt of the run in a folder."""
    _append(folder / "log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}")


def run_kind(folder: Path) -> RunKind:
    """What the run in a folder computes, by the tables of its config.toml."""
    try:
        text = (folder / "config.toml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return "train"  # whoever opens it says what is wrong
    return "caption" if re.search(r"(?m)^\[caption\]", text) else "train"


def run_owner(folder: Path) -> Process | None:
    """The living process at work on the run in a folder, if there is one."""
    return owner(_lock_of(folder))


def write_atomically(path: Path, data: bytes) -> None:
    """Write a whole file or leave the old one: temporary name in the same folder, synced to disk, renamed; mode 0644.

    Raises OutputError (a full disk, no permission); the temporary file is gone and an earlier `path` is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> OutputError:
    """The sentence for a file or folder that could not be written."""
    return OutputError(f"cannot write {path}: {error.strerror or error}; free some space or choose another place")


def _append(path: Path, line: str) -> None:
    try:
        # One write in append mode: a reader never sees half of it, and lines never mix. A torn line left by a crash
        # or a full disk is closed first.
        with path.open("ab+", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            torn = file.read(1) not in (b"", b"\n")
            data = (b"\n" if torn else b"") + line.encode() + b"\n"
            if file.write(data) != len(data):
                raise OSError(f"only a part of the line was written to {path}")
    except OSError as error:
        raise cannot_write(path, error) from error


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut. Windows cannot open folders and needs no such call."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _lock_of(folder: Path) -> Path:
    return folder / "run.lock"


def _refuse_if_busy(folder: Path) -> None:
    process = run_owner(folder)
    if process is not None:
        raise _busy(folder, process)


def _busy(folder: Path, process: Process | None) -> RunError:
    who = f"the process {process.pid}" if process else "another process"
    return RunError(f"{who} is at work on the run in {folder} already: wait for it, or stop it first")


def _never_began(folder: Path) -> bool:
    """Whether a folder holds nothing but a run that ended before its first step, say over a wrong dataset.path."""
    names = {entry.name for entry in folder.iterdir()}
    made = {"config.toml", "checkpoints", "previews"}
    kept = {"events.jsonl", "log.txt", "dataset.json", "inbox", "run.lock", "run.lock.json", "console.txt"}
    kept |= {"tensorboard", "wandb", "owner"}
    return (
        made <= names <= made | kept
        and not any(any((folder / name).iterdir()) for name in ("checkpoints", "previews"))
        and all(event["kind"] != "step" for event in read_events(folder, current=False))
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        in_the_way = next((place for place in (folder, *folder.parents) if place.exists() and not place.is_dir()), None)
        if in_the_way is not None:
            raise OutputError(
                f"cannot make the folder {folder}: {in_the_way} is a file; choose another place"
            ) from None
        raise cannot_write(folder, error) from error
