"""The one place that starts processes: the engine, the worker, a process for every run.

They are detached: closing the page, a Ctrl-C in its terminal or its death leaves them at work. What they print goes to
`state/{engine,worker}.log`, or to `RUN/console.txt`. Asked twice at once, there is one engine and one worker. What the
processes do is not known here. No torch.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil  # type: ignore[import-untyped]
from filelock import FileLock, Timeout

import diffusion_lora
from diffusion_lora.errors import ServiceError
from diffusion_lora.processes import Kind, Presence, Process, read
from diffusion_lora.workspace import Workspace

_LOG_BYTES = 1_000_000  # a longer one is begun anew
_LOOK_S = 0.1
_LOOK_AT_SHARDS_S = 0.3


class Child:
    """A process started here."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        try:
            self.process = Process(popen.pid, psutil.Process(popen.pid).create_time())
        except psutil.NoSuchProcess:  # Windows forgets a process that has ended already
            self.process = Process(popen.pid, time.time())
        # A dead child that nobody waited for would stay a zombie for as long as this process lives.
        self._waiting = threading.Thread(target=popen.wait, name=f"wait for {popen.pid}", daemon=True)
        self._waiting.start()

    @property
    def status(self) -> int | None:
        """None while it lives; then its exit status, or minus the signal that ended it."""
        return self._popen.returncode

    def last_status(self) -> int | None:
        """The status of a process that is seen to be dead: it may take a moment until the system tells it."""
        self._waiting.join(timeout=5.0)
        return self.status


def ensure_engine(
    workspace: Workspace, base: str = "pocket", device: str = "auto", *, patience_s: float = 60
) -> Presence:
    """The living engine of a workspace; one is started with this base and device if there is none.

    It returns as soon as the engine answers, before its base is loaded. Raises ServiceError.
    """
    return _ensure(workspace, "engine", ["serve", "--base", base, "--device", device], patience_s)


def ensure_worker(workspace: Workspace, *, patience_s: float = 60) -> Presence:
    """The living worker of a workspace's queue; one is started if there is none. Raises ServiceError."""
    return _ensure(workspace, "worker", ["worker"], patience_s)


def start_run(folder: Path) -> Child:
    """Carry out the run in a folder, in a process of its own. Raises ServiceError."""
    return _start(["run", str(folder)], folder / "console.txt", folder)


def run_together(folders: Sequence[Path], look: Callable[[], object]) -> None:
    """Carry out the runs in these folders, a process each, and wait for them; `look` is called meanwhile.

    When it raises, or on a Ctrl-C, they are interrupted, as by a Ctrl-C of their own, and waited for. What became of a
    run stands in its events. Raises ServiceError.
    """
    children: list[Child] = []
    try:
        for folder in folders:  # one by one: when one cannot be started, those before it are stopped
            children += [start_run(folder)]
        while any(child.status is None for child in children):
            time.sleep(_LOOK_AT_SHARDS_S)
            look()
    except BaseException:
        for child in children:
            if child.status is None:
                os.kill(child.process.pid, signal.SIGINT)
        for child in children:
            child.last_status()
        raise


def start_captioning(arguments: Sequence[str], log: Path) -> Child:
    """Caption a folder in a process of its own, which goes on when nobody watches; `arguments` are the command's.
    Raises ServiceError."""
    try:
        log.parent.mkdir(exist_ok=True)
        log.unlink(missing_ok=True)
    except OSError as error:
        raise ServiceError(f"the folder {log.parent} cannot be written: {error.strerror or error}") from error
    return _start(["caption", *arguments], log, log.parent)


def end_process(process: Process) -> None:
    """Ask a process to end, one that may be killed at any moment without losing what it did; a dead one is left."""
    if process.is_alive:
        os.kill(process.pid, signal.SIGTERM)


def answer_of(arguments: Sequence[str], folder: Path, *, patience_s: float = 900.0) -> str:
    """What one of the program's commands prints, carried out in `folder` by a process of its own with one thread.

    For what takes seconds and is waited for; it ends with whoever asked. Raises ServiceError with the command's own
    sentence when it ends badly, or takes longer than this.
    """
    environment = {**_environment(), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", "NO_COLOR": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "diffusion_lora", *arguments],
            stdin=subprocess.DEVNULL, capture_output=True, cwd=folder, env=environment, timeout=patience_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ServiceError(f"`{arguments[0]}` took longer than {patience_s:.0f} s and was given up") from None
    except OSError as error:
        raise ServiceError(f"the process for `{arguments[0]}` cannot be started: {error}") from error
    if done.returncode:
        said = [line.strip() for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        last = said[-1] if said else f"it ended with status {done.returncode}"
        raise ServiceError(last.removeprefix("error: "))
    return done.stdout.decode("utf-8", "replace")


def last_line(log: Path) -> str:
    """The last line that a process printed; empty if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _ensure(workspace: Workspace, kind: Kind, command: Sequence[str], patience_s: float) -> Presence:
    deadline = time.monotonic() + patience_s
    log = workspace.state / f"{kind}.log"
    try:
        with FileLock(workspace.state / f"{kind}.start.lock", timeout=patience_s, thread_local=False):
            found = read(workspace, kind)
            child = None if found else _start([*command, "--workspace", str(workspace.root)], log, workspace.root)
            while not found and time.monotonic() < deadline:
                # Status 0 without an announcement: another one was there first and is about to announce itself.
                if child is not None and child.status:
                    raise ServiceError(f"the {kind} did not start: {last_line(log) or child.status}; more in {log}")
                time.sleep(_LOOK_S)
                found = read(workspace, kind)
    except Timeout:
        found = None
    if found is None:
        raise ServiceError(f"the {kind} did not answer within {patience_s:.0f} s; {log} may say why")
    return found


def _start(arguments: Sequence[str], log: Path, folder: Path) -> Child:
    # -P: what lies in the working directory is data, not modules.
    command = [sys.executable, "-P", "-m", "diffusion_lora", *arguments]
    try:
        anew = log.exists() and log.stat().st_size > _LOG_BYTES
        with log.open("wb" if anew else "ab") as output:
            if sys.platform == "win32":
                flags = subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP
                popen = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=folder,
                    env=_environment(), creationflags=flags,
                )  # fmt: skip
            else:
                popen = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=folder,
                    env=_environment(), start_new_session=True,
                )  # fmt: skip
    except OSError as error:
        raise ServiceError(f"the process for `{' '.join(arguments)}` cannot be started: {error}") from error
    return Child(popen)


def _environment() -> dict[str, str]:
    """Ours; a checkout that is not installed is found from other folders as well."""
    root = Path(diffusion_lora.__file__).resolve().parents[1]
    if {"site-packages", "dist-packages"} & set(root.parts):
        return dict(os.environ)
    path = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), path] if path else [str(root)])}
