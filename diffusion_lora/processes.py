"""Processes of a workspace find each other: who is at work, under which pid, and whether it still lives.

    announce, read, withdraw    state/{engine,worker}.json: pid, port and token of the one engine and the one worker
    open_ui, uis_alive          state/ui-PID.json: a file for every page that is open on the workspace
    alive                       is that very process still there? (a pid alone is given out again)
    only_one                    a lock that the system frees when its holder dies, and the note who that is

Notes are written whole, mode 0600. What a dead process left behind counts for nothing. Starting processes belongs to
`jobs.launch`. No torch here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil  # type: ignore[import-untyped]
from filelock import FileLock, Timeout

from diffusion_lora import __version__
from diffusion_lora.errors import OutputError

if TYPE_CHECKING:
    from diffusion_lora.workspace import Workspace

Kind = Literal["engine", "worker"]

# When a process began is computed from when the machine did, which follows corrections of the clock.
_SAME_START_S = 2.0


@dataclass(frozen=True)
class Process:
    """One process, told apart from a later one with the same pid."""

    pid: int
    started: float  # Unix seconds, as the system has it

    @classmethod
    def this(cls) -> Process:
        """The process that asks."""
        return cls(os.getpid(), psutil.Process().create_time())

    @property
    def is_alive(self) -> bool:
        return alive(self.pid, self.started)


@dataclass(frozen=True)
class Presence:
    """Where the engine, the worker or a page is to be found."""

    pid: int
    started: float
    port: int = 0  # 0: it does not listen
    token: str = ""
    version: str = __version__

    @classmethod
    def this(cls, port: int = 0, token: str = "") -> Presence:
        """That of the process that asks."""
        me = Process.this()
        return cls(me.pid, me.started, port, token)


class Taken(Exception):  # noqa: N818 -- caught by whoever asked and told in words there
    """Another process has it; `owner` is None in the moment before that one has left its note."""

    def __init__(self, owner: Process | None) -> None:
        super().__init__(owner)
        self.owner = owner


def alive(pid: int, started: float) -> bool:
    """Whether the process of this pid is there and is the one that began at `started`. A zombie is not."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < _SAME_START_S and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True  # there, and another user's: more than that is not to be learnt


# --- who is at work ---------------------------------------------------------------------------------------------------


def announce(workspace: Workspace, kind: Kind, presence: Presence) -> None:
    """Tell the others where this process is. Raises OutputError."""
    write_note(workspace.state / f"{kind}.json", asdict(presence))


def read(workspace: Workspace, kind: Kind) -> Presence | None:
    """The living engine or worker, or None."""
    return _presence(workspace.state / f"{kind}.json")


def withdraw(workspace: Workspace, kind: Kind) -> None:
    """Take this process's own announcement back; that of another stays."""
    presence = read(workspace, kind)
    if presence and presence.pid == os.getpid():
        (workspace.state / f"{kind}.json").unlink(missing_ok=True)


@contextmanager
def open_ui(workspace: Workspace, port: int) -> Iterator[None]:
    """For the length of the block this process counts as an open page. Raises OutputError."""
    note = workspace.state / f"ui-{os.getpid()}.json"
    write_note(note, asdict(Presence.this(port)))
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def uis_alive(workspace: Workspace) -> list[Presence]:
    """The pages open on a workspace. Notes of dead ones are cleared away."""
    pages = []
    for note in sorted(workspace.state.glob("ui-*.json")):
        page = _presence(note)
        if page:
            pages.append(page)
        else:
            note.unlink(missing_ok=True)
    return pages


# --- locks ------------------------------------------------------------------------------------------------------------


@contextmanager
def only_one(lock: Path, before_told: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Hold a lock file for the length of the block; the note beside it, `LOCK.json`, says who does.

    `before_told` is called once the lock is held, before anybody can see by whom. Raises Taken if another process (or
    another place in this one) holds it, OutputError if it cannot be written.
    """
    # Not per thread: a server may let go in another thread than it took.
    handle = FileLock(lock, timeout=0, thread_local=False)
    try:
        handle.acquire()
    except Timeout:
        raise Taken(owner(lock)) from None
    except OSError as error:
        raise _cannot_write(lock, error) from error
    note = _note_of(lock)
    try:
        before_told()
        write_note(note, asdict(Process.this()))
        try:
            yield
        finally:
            note.unlink(missing_ok=True)
    finally:
        handle.release()


def owner(lock: Path) -> Process | None:
    """The living process that holds a lock, by the note beside it; the lock itself is not touched."""
    note = read_note(_note_of(lock))
    if note is None:
        return None
    process = Process(int(note["pid"]), float(note["started"]))
    return process if process.is_alive else None


# --- notes ------------------------------------------------------------------------------------------------------------


def write_note(path: Path, values: Mapping[str, Any]) -> None:
    """A small JSON file, whole or not at all, for this user's eyes only. Not synced: it means nothing after a reboot.

    Raises OutputError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(values, file)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from error


def read_note(path: Path) -> dict[str, Any] | None:
    """A note, or None if there is none (or none that makes sense)."""
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) and {"pid", "started"} <= note.keys() else None


def _note_of(lock: Path) -> Path:
    return lock.with_name(f"{lock.name}.json")


def _presence(path: Path) -> Presence | None:
    note = read_note(path)
    if note is None or not alive(int(note["pid"]), float(note["started"])):
        return None
    return Presence(
        int(note["pid"]), float(note["started"]), int(note.get("port", 0)), str(note.get("token", "")),
        str(note.get("version", "")),
    )  # fmt: skip


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {path}: {error.strerror or error}; free some space or choose another workspace")
