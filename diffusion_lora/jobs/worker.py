"""The worker: it takes the queue's runs one after the other, has each carried out by a process of its own, and watches.

One worker a workspace. It may die at any moment: the runs go on, and the next worker finds them by pid, or by who holds
the run's folder, and settles those that ended meanwhile. No run is started whose folder somebody is at work in. What
becomes of a run is read from its events. No torch.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

from diffusion_lora.errors import RunError, ServiceError
from diffusion_lora.events import read_events
from diffusion_lora.jobs.launch import Child, last_line, start_run
from diffusion_lora.jobs.store import Job, Queue, State
from diffusion_lora.processes import Presence, Taken, announce, only_one, read, uis_alive, withdraw
from diffusion_lora.run import run_kind, run_owner
from diffusion_lora.workspace import Workspace

_ENDINGS: dict[str, State] = {"end": "done", "stop": "stopped", "pause": "paused", "failed": "failed"}
_LOOK_S = 0.5
_CHANGE_OF_SHIFT_S = 3.0  # how long a new worker waits for a leaving one
_BEGINNING_S = 10.0  # how long a started process may need until it has taken its run's folder


def work(workspace: Workspace, *, idle_s: float = 30.0) -> bool:
    """Work through the queue until, for `idle_s`, there is nothing to do and no page open.

    False, at once, if another worker is at work. Raises ServiceError, OutputError.
    """
    deadline = time.monotonic() + _CHANGE_OF_SHIFT_S
    while True:
        try:
            with only_one(workspace.state / "worker.lock"):
                _work(workspace, idle_s)
                return True
        except Taken:
            if read(workspace, "worker") or time.monotonic() > deadline:
                return False
            time.sleep(_LOOK_S)


def _work(workspace: Workspace, idle_s: float) -> None:
    queue = Queue(workspace)
    children: dict[str, Child] = {}
    announce(workspace, "worker", Presence.this())
    needed_s = time.monotonic()
    try:
        while True:
            if _look(queue, children) or uis_alive(workspace):
                needed_s = time.monotonic()
            elif time.monotonic() - needed_s > idle_s:
                # Whoever queues a run now finds no worker and starts one; who did so before is seen here.
                withdraw(workspace, "worker")
                if queue.next_waiting() is None:
                    return
                announce(workspace, "worker", Presence.this())
            time.sleep(_LOOK_S)
    finally:
        withdraw(workspace, "worker")


def _look(queue: Queue, children: dict[str, Child]) -> bool:
    """See after the runs at work, start the next one if there is none; whether there is anything to do."""
    for job in queue.active():
        _follow(queue, job, children)
    if not queue.active():
        _start_next(queue, children)
    return bool(queue.active() or queue.next_waiting())


def _start_next(queue: Queue, children: dict[str, Child]) -> None:
    waiting = queue.next_waiting()
    if waiting is None:
        return
    folder = queue.workspace.run_folder(waiting.run)
    try:
        seen = len(read_events(folder, current=False))
        job = queue.claim(waiting.run, seen)
        if job is None:
            return  # cancelled a moment ago
        owner = run_owner(folder)
        if owner is None:
            children[job.run] = start_run(folder)
            owner = children[job.run].process
        queue.note_process(job.run, owner)
    except (RunError, ServiceError) as error:  # the folder is gone, or the system gives no process
        queue.settle(waiting.run, "failed", str(error))


def _follow(queue: Queue, job: Job, children: dict[str, Child]) -> None:
    """Bring one job's state up to date with its process and its folder."""
    folder = queue.workspace.run_folder(job.run)
    lives = job.process is not None and job.process.is_alive
    owner = run_owner(folder)
    if owner is not None and (job.state == "starting" or not lives):
        # The process we started, or one that was there first, or one that somebody started by hand after it.
        queue.note_process(job.run, owner)
        queue.note_running(job.run)
    if owner is not None or lives:
        return
    child = children.pop(job.run, None)
    ending = _ending(folder, job.seen)
    if ending is not None:
        queue.settle(job.run, *ending)
    elif job.process is not None:
        queue.settle(job.run, "failed", _died(folder, child))
    elif time.time() - (job.started or 0.0) > _BEGINNING_S:
        # The worker that claimed it died before it had started a process, or the process before it had begun.
        queue.give_back(job.run)


def _ending(folder: Path, seen: int) -> tuple[State, str] | None:
    """What the newest attempt's own events say of its end."""
    try:
        events = read_events(folder, current=False)[seen:]
    except RunError as error:
        return "failed", str(error)
    for event in reversed(events):
        kind = event["kind"]
        if kind == "failed":
            return "failed", event["text"]
        if kind in _ENDINGS:
            return _ENDINGS[kind], "" if kind == "end" else _kept(event)
    return None


def _kept(event: dict[str, Any]) -> str:
    """What there is of a run that was stopped."""
    return f"{event['written']:,} captions are written" if "written" in event else f"saved at step {event['step']}"


def _died(folder: Path, child: Child | None) -> str:
    """A sentence for a process that ended without a word in its folder."""
    status = child.last_status() if child is not None else None
    said = last_line(folder / "console.txt")
    if status is not None and status > 0 and said:
        return said.removeprefix("error: ")
    how = "the process died"
    if status is not None and status < 0:
        how = f"the process was killed ({signal.Signals(-status).name})"
    elif status is not None:
        how = f"the process ended with status {status}"
    if run_kind(folder) == "caption":
        return f"{how}; what was written stays, and it goes on from there"
    saved = [event["step"] for event in read_events(folder) if event["kind"] == "checkpoint"]
    return f"{how}; " + (f"go on from step {saved[-1]}" if saved else "nothing was saved yet, it begins anew")
