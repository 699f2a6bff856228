"""The queue of a workspace: which runs wait, run or are done, in `state/queue.db`. The only SQL there is.

Pages and commands ask (`add`, `cancel`, `pause`, `resume`, `remove`); the one worker answers (`claim` and so on). Every
call is one short transaction on a connection of its own, so that a process killed at any moment leaves the queue whole,
and threads may share a `Queue`. How far a run is stands in its folder, not here. No torch.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from diffusion_lora.errors import RunError, ServiceError
from diffusion_lora.inbox import ask
from diffusion_lora.processes import Process
from diffusion_lora.run import RunKind, run_kind, run_owner
from diffusion_lora.workspace import Workspace

State = Literal["waiting", "starting", "running", "paused", "done", "failed", "stopped"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id          INTEGER PRIMARY KEY,
    run         TEXT NOT NULL UNIQUE,   -- the folder's name under runs/
    kind        TEXT NOT NULL,
    state       TEXT NOT NULL,
    created     REAL NOT NULL,          -- times in Unix seconds
    queued      REAL NOT NULL,          -- since when it waits: the order of the queue
    started     REAL,                   -- of the newest attempt
    ended       REAL,
    pid         INTEGER,
    pid_started REAL,
    text        TEXT NOT NULL,          -- what became of it, in a sentence
    seen        INTEGER NOT NULL,       -- events the folder held when the newest attempt began
    asked       TEXT                    -- 'stop' or 'pause', asked before the process could hear
)
"""
_BUSY_S = 10.0


@dataclass(frozen=True)
class Job:
    """One run in the queue."""

    id: int
    run: str
    kind: RunKind
    state: State
    created: float
    queued: float
    started: float | None
    ended: float | None
    pid: int | None
    pid_started: float | None
    text: str
    seen: int
    asked: str | None

    @property
    def process(self) -> Process | None:
        """The process that carries it out, dead or alive."""
        if self.pid is None or self.pid_started is None:
            return None
        return Process(self.pid, self.pid_started)


_COLUMNS = ", ".join(field.name for field in fields(Job))


class Queue:
    """The jobs of one workspace. All methods raise ServiceError if the file cannot be used."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._path = workspace.state / "queue.db"
        # Two processes that turn the write-ahead log on at once would get in each other's way.
        with FileLock(workspace.state / "queue.lock", timeout=_BUSY_S), self._connection() as connection:
            if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                connection.execute("PRAGMA journal_mode = wal")
            connection.execute(_SCHEMA)

    # --- asking -------------------------------------------------------------------------------------------------------

    def jobs(self) -> list[Job]:
        """What runs, then what waits in its order, then the rest, newest first."""
        order = """
            CASE state WHEN 'running' THEN 0 WHEN 'starting' THEN 0 WHEN 'waiting' THEN 1 ELSE 2 END,
            CASE state WHEN 'waiting' THEN queued END, COALESCE(ended, queued) DESC, id DESC
        """
        with self._connection() as connection:
            return _jobs(connection, f"ORDER BY {order}")

    def job(self, run: str) -> Job | None:
        """The job of a run; None if it was never queued."""
        with self._connection() as connection:
            return _job(connection, run)

    def add(self, run: str) -> Job:
        """Queue a run that lies in the workspace.

        Raises RunError if there is no such run or the queue has it already.
        """
        if not (self.workspace.run_folder(run) / "config.toml").is_file():
            raise RunError(f"there is no run {run!r} in {self.workspace.runs}: create it first")
        now = time.time()
        with self._transaction() as connection:
            job = _job(connection, run)
            if job is not None:
                raise RunError(f"the run {run} is in the queue already ({job.state}): retry it if it should run again")
            connection.execute(
                "INSERT INTO jobs (run, kind, state, created, queued, text, seen) "
                "VALUES (?, ?, 'waiting', ?, ?, '', 0)",
                (run, run_kind(self.workspace.run_folder(run)), now, now),
            )
            return _found(connection, run)

    def cancel(self, run: str) -> Job:
        """Take a waiting run out of the line; ask a running one to save and stop. Raises RunError if it has ended."""
        return self._end(run, "stop", "stopped")

    def pause(self, run: str) -> Job:
        """Like `cancel`, for a run that is to go on later."""
        return self._end(run, "pause", "paused")

    def resume(self, run: str) -> Job:
        """Let a run that was paused, stopped or failed, or one that got more steps, go on from its newest checkpoint.

        It waits at the end of the line. Raises RunError if it waits or runs already.
        """
        with self._transaction() as connection:
            job = _found(connection, run)
            if job.state in ("waiting", "starting", "running"):
                raise RunError(f"the run {run} is {_told(job.state)} already")
            connection.execute(
                "UPDATE jobs SET state = 'waiting', queued = ?, started = NULL, ended = NULL, pid = NULL, "
                "pid_started = NULL, asked = NULL, text = '' WHERE run = ?",
                (time.time(), run),
            )
            return _found(connection, run)

    retry = resume

    def move(self, run: str, *, sooner: bool) -> Job:
        """Let a waiting run change places with the one before it in the line, or with the one after it; at the end of
        the line nothing changes. Raises RunError if it does not wait."""
        with self._transaction() as connection:
            job = _found(connection, run)
            if job.state != "waiting":
                raise RunError(f"the run {run} does not wait ({_told(job.state)}): only the line can be put in order")
            line = _jobs(connection, "WHERE state = 'waiting' ORDER BY queued, id")
            place = next(index for index, other in enumerate(line) if other.run == run)
            other_place = place - 1 if sooner else place + 1
            if 0 <= other_place < len(line):
                line[place], line[other_place] = line[other_place], line[place]
                for at, each in zip(sorted(one.queued for one in line), line, strict=True):
                    connection.execute("UPDATE jobs SET queued = ? WHERE run = ?", (at, each.run))
            return _found(connection, run)

    def remove(self, run: str) -> Path | None:
        """Take a job off the queue and its run's folder into the trash; its new place, or None if it had no folder.

        Raises RunError while a process is at work on it.
        """
        folder = self.workspace.run_folder(run)
        with self._transaction() as connection:
            job = _found(connection, run)
            owner = run_owner(folder)
            if job.state in ("starting", "running") or owner is not None:
                raise RunError(f"the run {run} is {_told('running')}: cancel it before it is removed")
            connection.execute("DELETE FROM jobs WHERE run = ?", (run,))
        return self.workspace.throw_away(folder) if folder.exists() else None

    # --- answering: for the worker ------------------------------------------------------------------------------------

    def next_waiting(self) -> Job | None:
        """The job whose turn it is."""
        with self._connection() as connection:
            found = _jobs(connection, "WHERE state = 'waiting' ORDER BY queued, id LIMIT 1")
        return found[0] if found else None

    def active(self) -> list[Job]:
        """The jobs that a process is, or may be, at work on."""
        with self._connection() as connection:
            return _jobs(connection, "WHERE state IN ('starting', 'running') ORDER BY started, id")

    def claim(self, run: str, seen: int) -> Job | None:
        """A waiting job becomes `starting`; None if it waits no longer. `seen`: the events its folder holds already."""
        with self._transaction() as connection:
            changed = connection.execute(
                "UPDATE jobs SET state = 'starting', started = ?, seen = ?, asked = NULL "
                "WHERE run = ? AND state = 'waiting'",
                (time.time(), seen, run),
            ).rowcount
            return _found(connection, run) if changed else None

    def note_process(self, run: str, process: Process) -> None:
        """Remember who carries a job out."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE jobs SET pid = ?, pid_started = ? WHERE run = ?", (process.pid, process.started, run)
            )

    def note_running(self, run: str) -> None:
        """The process has taken its folder and hears: from now on requests go to it, and those made before follow."""
        with self._transaction() as connection:
            job = _found(connection, run)
            if job.asked in ("stop", "pause"):
                ask(self.workspace.run_folder(run), "stop" if job.asked == "stop" else "pause")
            connection.execute("UPDATE jobs SET state = 'running', asked = NULL WHERE run = ?", (run,))

    def settle(self, run: str, state: State, text: str) -> None:
        """What became of a job whose process is gone."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE jobs SET state = ?, text = ?, ended = ?, asked = NULL WHERE run = ?",
                (state, text, time.time(), run),
            )

    def give_back(self, run: str) -> None:
        """A claimed job that no process has begun waits again, at its old place."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE jobs SET state = CASE asked WHEN 'stop' THEN 'stopped' WHEN 'pause' THEN 'paused' "
                "ELSE 'waiting' END, started = NULL, pid = NULL, pid_started = NULL, asked = NULL WHERE run = ?",
                (run,),
            )

    # --- the file -----------------------------------------------------------------------------------------------------

    def _end(self, run: str, request: Literal["stop", "pause"], state: State) -> Job:
        with self._transaction() as connection:
            job = _found(connection, run)
            if job.state in ("waiting", "paused"):
                text = "taken out of the line" if job.state == "waiting" else job.text
                connection.execute(
                    "UPDATE jobs SET state = ?, text = ?, ended = ? WHERE run = ?", (state, text, time.time(), run)
                )
            elif job.state == "starting":
                # What lies in the inbox when a process takes its folder is meant for an earlier one.
                connection.execute("UPDATE jobs SET asked = ? WHERE run = ?", (request, run))
            elif job.state == "running":
                ask(self.workspace.run_folder(run), request)
            else:
                raise RunError(f"the run {run} has ended already ({_told(job.state)})")
            return _found(connection, run)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)) as connection:
                connection.row_factory = sqlite3.Row
                yield connection
        except sqlite3.Error as error:
            raise ServiceError(
                f"the queue {self._path} cannot be used ({error}): free some space, or move the file away; "
                "the runs themselves lie in their folders"
            ) from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")


def _jobs(connection: sqlite3.Connection, rest: str, values: tuple[Any, ...] = ()) -> list[Job]:
    return [Job(**dict(row)) for row in connection.execute(f"SELECT {_COLUMNS} FROM jobs {rest}", values)]


def _job(connection: sqlite3.Connection, run: str) -> Job | None:
    found = _jobs(connection, "WHERE run = ?", (run,))
    return found[0] if found else None


def _found(connection: sqlite3.Connection, run: str) -> Job:
    job = _job(connection, run)
    if job is None:
        raise RunError(f"there is no run {run!r} in the queue")
    return job


def _told(state: State) -> str:
    return {"starting": "waiting", "running": "being worked on"}.get(state, state)
