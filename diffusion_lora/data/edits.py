"""Bulk edits of captions, and edits of masks, each of which can be taken back byte for byte. No torch.

    DIR/.captions/0003/edit.json          what was asked
    DIR/.captions/0003/part-0of1.jsonl    one line a file, on disk before the file is touched: its bytes before and
                                          the SHA-256 of those after; several processes write a part each
    DIR/.captions/0003/part-0of1.done     that part has come to its end
    DIR/.captions/undone-0003/            taken back

A process that was killed has written a line and not the file, or both: the file itself tells. The same order given
again goes on with the edit it began. A caption that a person has changed since is not touched: not by going on, not by
undoing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from filelock import FileLock

from diffusion_lora.errors import DatasetError
from diffusion_lora.processes import Taken, only_one
from diffusion_lora.run import cannot_write, write_atomically

HISTORY = ".captions"
_UNDONE = "undone-"


@dataclass(frozen=True)
class Change:
    """A file's bytes before and after; None where there is no file."""

    path: Path
    before: bytes | None
    after: bytes | None


@dataclass(frozen=True)
class Undone:
    """What an undo did: the edit's own words, how many files are as they were, and which were left as a person has
    changed them since."""

    asked: Mapping[str, Any]
    restored: int
    kept: tuple[str, ...]


@dataclass
class Edit:
    """One bulk edit of the captions in a folder, or one process's part of it."""

    root: Path
    folder: Path
    part: str
    _begun: dict[str, _Known] = field(default_factory=dict)

    @classmethod
    def of(cls, root: Path, asked: Mapping[str, Any], shard: tuple[int, int] = (0, 1)) -> Self:
        """The newest edit with this order that this part has not finished, or a new one.

        Raises DatasetError if there is no such folder, OutputError.
        """
        if not root.is_dir():
            raise DatasetError(f"there is no such folder: {root}")
        part = f"part-{shard[0]}of{shard[1]}"
        _make(root / HISTORY)
        with FileLock(root / HISTORY / ".lock"):  # of several processes the first begins the edit, the others join
            newest = next(iter(reversed(_edits(root))), None)
            if (
                newest is None
                or _asked(newest) != dict(asked)
                or (newest / f"{part}.done").exists()
                or _finished(newest)
            ):
                newest = _new(root, asked)
        return cls(root, newest, part, _known(newest))

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Be the one process at work on this part. Raises DatasetError."""
        with _locked(self.folder / f"{self.part}.lock", self.root):
            yield

    def has_done(self, path: Path) -> bool:
        """Whether this edit has been made to a file, or a person has changed the file since it was begun."""
        known = self._begun.get(_name(self.root, path))
        return known is not None and _read(path) != known.before

    def write(self, changes: Iterable[Change]) -> int:
        """Make changes: all are noted, then the files are written, each whole or not at all; how many there were.

        A file that is no longer as the change knows it is left alone: somebody was faster. Raises OutputError.
        """
        wanted = [change for change in changes if change.before != change.after and _read(change.path) == change.before]
        if not wanted:
            return 0
        lines = []
        for change in wanted:
            name = _name(self.root, change.path)
            after = _hash(change.after)
            known = self._begun.setdefault(name, _Known(change.before, set()))
            known.after.add(after)
            lines.append(json.dumps({"file": name, "before": _coded(change.before), "after": after}))
        _append(self.folder / f"{self.part}.jsonl", lines)
        for change in wanted:
            _put(change.path, change.after)
        return len(wanted)

    def finish(self) -> None:
        """This part has come to its end; an edit that changed nothing leaves nothing behind. Raises OutputError."""
        write_atomically(self.folder / f"{self.part}.done", b"")
        if not any(self.folder.glob("*.jsonl")) and self.part.endswith("of1"):
            _remove(self.folder)


def undo(root: Path, *, force: bool = False, progress: Callable[[int, int], None] = lambda done, total: None) -> Undone:
    """Take the newest edit of a folder's captions back, byte for byte; again: the one before it.

    A caption that was changed by other hands since is left alone, unless `force`. Raises DatasetError if there is no
    edit or somebody is at work on it, OutputError.
    """
    edits = _edits(root)
    if not edits:
        raise DatasetError(f"there is no edit of the captions in {root} to take back")
    newest = edits[-1]
    kept: list[str] = []
    with ExitStack() as locks:
        for part in sorted(newest.glob("*.lock")):
            locks.enter_context(_locked(part, root))
        known = _known(newest)
        for done, (name, was) in enumerate(known.items(), 1):
            path, now = root / name, _read(root / name)
            if now != was.before:
                if _hash(now) in was.after or force:
                    _put(path, was.before)
                else:
                    kept.append(name)
            progress(done, len(known))
        asked = _asked(newest)
    try:
        newest.rename(newest.with_name(_free_name(root, newest.name)))
    except OSError as error:
        raise cannot_write(newest, error) from error
    return Undone(asked, len(known) - len(kept), tuple(kept))


def history(root: Path) -> list[Mapping[str, Any]]:
    """What was asked of the edits that can be taken back, oldest first."""
    return [_asked(edit) for edit in _edits(root)]


@dataclass
class _Known:
    """What an edit has noted of a file: its bytes before, and the hashes of what was to be written."""

    before: bytes | None
    after: set[str]


def _edits(root: Path) -> list[Path]:
    """The folders of the edits that can be taken back, oldest first."""
    try:
        names = sorted(name for name in os.listdir(root / HISTORY) if name.isdecimal())  # noqa: PTH208
    except FileNotFoundError:
        return []
    return [root / HISTORY / name for name in names if (root / HISTORY / name / "edit.json").is_file()]


def _new(root: Path, asked: Mapping[str, Any]) -> Path:
    try:
        taken = [int(name.removeprefix(_UNDONE).split(".")[0]) for name in os.listdir(root / HISTORY)  # noqa: PTH208
                 if name.removeprefix(_UNDONE).split(".")[0].isdecimal()]
        folder = root / HISTORY / f"{max(taken, default=0) + 1:04}"
        folder.mkdir()
    except OSError as error:
        raise cannot_write(root / HISTORY, error) from error
    write_atomically(folder / "edit.json", json.dumps(dict(asked), ensure_ascii=False, indent=1).encode())
    return folder


def _make(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def _finished(edit: Path) -> bool:
    """Whether all parts have come to their end, in whatever number of parts."""
    parts: dict[str, int] = {}
    for done in edit.glob("part-*.done"):
        count = done.stem.partition("of")[2]
        parts[count] = parts.get(count, 0) + 1
    return any(parts[count] >= int(count) for count in parts)


def _asked(edit: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((edit / "edit.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{edit}/edit.json cannot be read ({error}): remove {edit} to forget the edit") from error


def _known(edit: Path) -> dict[str, _Known]:
    """What all parts have noted, by file; the first line of a file tells its bytes before."""
    known: dict[str, _Known] = {}
    for part in sorted(edit.glob("*.jsonl")):
        with part.open("rb") as lines:
            for line in lines:
                try:
                    row = json.loads(line)
                    name, before, after = row["file"], _decoded(row["before"]), row["after"]
                except (ValueError, KeyError, TypeError):
                    continue  # cut by a crash: the file was not touched then
                known.setdefault(name, _Known(before, set())).after.add(after)
    return known


def _append(path: Path, lines: Sequence[str]) -> None:
    try:
        with path.open("ab+") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            torn = file.read(1) not in (b"", b"\n")  # by a crash
            file.write((b"\n" if torn else b"") + "".join(line + "\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(path, error) from error


def _put(path: Path, data: bytes | None) -> None:
    if data is not None:
        write_atomically(path, data)
        return
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror or error})") from error


def _free_name(root: Path, number: str) -> str:
    name, count = f"{_UNDONE}{number}", 1
    while (root / HISTORY / name).exists():
        count += 1
        name = f"{_UNDONE}{number}.{count}"
    return name


@contextmanager
def _locked(lock: Path, root: Path) -> Iterator[None]:
    try:
        with only_one(lock):
            yield
    except Taken as error:
        who = f"the process {error.owner.pid}" if error.owner else "another process"
        raise DatasetError(f"{who} is at work on the captions in {root}: wait for it, or stop it first") from None


def _remove(folder: Path) -> None:
    for name in folder.iterdir():
        name.unlink(missing_ok=True)
    folder.rmdir()


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _hash(data: bytes | None) -> str:
    return "" if data is None else hashlib.sha256(data).hexdigest()


def _coded(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _decoded(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)
