"""One device, one owner: whoever computes on it holds its lock, and says who it is.

    state/device-cpu.lock            freed by the system when its holder dies
    state/device-cpu.json            who holds it
    state/device-cpu.wanted-PID.json somebody waits for it

Every run of a workspace takes the lock for as long as it trains; the engine for as long as it has a base loaded, and
lets go as soon as a run is among the `wanted`. Which device a name means is decided elsewhere. No torch here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from diffusion_lora.processes import Process, alive, read_note, write_note
from diffusion_lora.run import cannot_write
from diffusion_lora.workspace import Workspace

HolderKind = Literal["run", "engine"]

POLL_S = 0.25


@dataclass(frozen=True)
class Holder:
    """Who has a device, or waits for it."""

    kind: HolderKind
    name: str  # of the run; of the engine's base
    pid: int
    started: float  # the process
    since: float  # Unix seconds

    @property
    def is_alive(self) -> bool:
        return alive(self.pid, self.started)

    def __str__(self) -> str:
        return f"the run {self.name}" if self.kind == "run" else "the engine"


class StillTaken(Exception):  # noqa: N818 -- caught by whoever set the time limit
    """The device was not free within the time given; `holder` has it."""

    def __init__(self, holder: Holder | None) -> None:
        super().__init__(holder)
        self.holder = holder


@contextmanager
def hold(
    workspace: Workspace,
    device: str,
    kind: HolderKind,
    name: str,
    *,
    on_wait: Callable[[Holder | None], None] | None = None,
    timeout: float | None = None,
) -> Iterator[Holder]:
    """Have a device for the length of the block, waiting for it as long as another has it.

    `on_wait` is called at every look (each `POLL_S`) that finds it taken, with the holder (None in the moment of
    change); what it raises ends the waiting. Runs go first: an engine does not take a free device that a run waits for.
    Raises StillTaken after `timeout` seconds (0: one look), OutputError if the lock cannot be written.
    """
    me = Process.this()
    lock = FileLock(_path(workspace, device, "lock"), timeout=0, thread_local=False)
    deadline = None if timeout is None else time.monotonic() + timeout
    waiting = Holder(kind, name, me.pid, me.started, time.time())
    wish = _path(workspace, device, f"wanted-{os.getpid()}.json")
    try:
        while not (_may_take(workspace, device, kind) and _take(lock)):
            if deadline is not None and time.monotonic() >= deadline:
                raise StillTaken(holder(workspace, device))
            if not wish.exists():
                write_note(wish, asdict(waiting))
            if on_wait is not None:
                on_wait(holder(workspace, device))
            time.sleep(POLL_S)
    finally:
        wish.unlink(missing_ok=True)
    note = _path(workspace, device, "json")
    try:
        mine = Holder(kind, name, me.pid, me.started, time.time())
        write_note(note, asdict(mine))
        try:
            yield mine
        finally:
            note.unlink(missing_ok=True)
    finally:
        lock.release()


def holder(workspace: Workspace, device: str) -> Holder | None:
    """Who has the device now; None if nobody has."""
    return _living(_path(workspace, device, "json"))


def wanted(workspace: Workspace, device: str) -> list[Holder]:
    """Who waits for the device, longest first. The notes of dead ones are cleared away."""
    waiting = []
    for note in workspace.state.glob(f"{_label(device)}.wanted-*.json"):
        one = _living(note)
        if one:
            waiting.append(one)
        else:
            note.unlink(missing_ok=True)
    return sorted(waiting, key=lambda one: one.since)


def _may_take(workspace: Workspace, device: str, kind: HolderKind) -> bool:
    return kind == "run" or not any(one.kind == "run" for one in wanted(workspace, device))


def _take(lock: FileLock) -> bool:
    try:
        lock.acquire()
    except Timeout:
        return False
    except OSError as error:
        raise cannot_write(Path(lock.lock_file), error) from error
    return True


def _living(note: Path) -> Holder | None:
    values: dict[str, Any] | None = read_note(note)
    if values is None or not alive(int(values["pid"]), float(values["started"])):
        return None
    return Holder(**values)


def _path(workspace: Workspace, device: str, ending: str) -> Path:
    return workspace.state / f"{_label(device)}.{ending}"


def _label(device: str) -> str:
    """`cuda` and `cuda:0` are one device; a colon is no part of a file's name on Windows."""
    return "device-" + ("cuda:0" if device == "cuda" else device).replace(":", "-")
