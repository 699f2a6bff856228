"""The page as a person starts it: `diffusion-lora ui` as a process of its own, over one workspace.

Also ends what it started (page, engine, worker, trainings), which on purpose outlive the page. Knows nothing of the
browser and nothing of what is on the page.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil  # type: ignore[import-untyped]

CHECKOUT = Path(__file__).resolve().parents[2]

Found = TypeVar("Found")

PATIENCE_S = 180.0
"""How long to wait for what takes seconds on a machine at rest: these tests measure no time, CI is seldom at rest."""


def wait_for(what: str, look: Callable[[], Found | None], timeout_s: float = PATIENCE_S, every_s: float = 0.2) -> Found:
    """Look until something is there. Raises AssertionError naming what was waited for."""
    end = time.monotonic() + timeout_s
    while not (found := look()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {timeout_s:.0f} s for {what}")
        time.sleep(every_s)
    return found


class DeskProcess:
    """The page's process and, through the workspace, the processes it calls up.

    It keeps its port when it is started again, so that a tab left open finds it.
    """

    def __init__(self, workspace: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.workspace = workspace
        self.port = _free_port()
        self.log = workspace.with_name(f"{workspace.name}-ui-{self.port}.log")
        self._arguments = arguments
        self._environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTHONUNBUFFERED": "1", **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the page was not started"
        return self._process.pid

    def launch(self) -> None:
        """Type the command; the page is not there yet."""
        command = [sys.executable, "-m", "diffusion_lora", "ui", "--workspace", str(self.workspace), "--no-browser"]
        command += ["--port", str(self.port), *self._arguments]
        self.workspace.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=self.workspace.parent, env=self._environment, stdout=log, stderr=subprocess.STDOUT
            )

    def start(self) -> "DeskProcess":
        """Start the page and wait until it answers. Raises AssertionError with what it printed when it does not."""
        self.launch()
        try:
            wait_for("the page to answer", self._answers, every_s=0.05)
        except AssertionError as error:
            raise AssertionError(f"{error}; it said:\n{self.output()}") from None
        return self

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """`kill -9` of the page alone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """Ctrl-C, as a person ends it; its exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(timeout=60)

    def presence(self, name: str) -> dict[str, Any] | None:
        """What `state/{engine,worker}.json` says, while that process is alive."""
        try:
            told: dict[str, Any] = json.loads((self.workspace / "state" / f"{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return told if psutil.pid_exists(told["pid"]) else None

    def wait_for_presence(self, name: str, *, other_than: int | None = None) -> dict[str, Any]:
        """Wait for the engine or the worker; `other_than` is the pid of the one that died."""

        def look() -> dict[str, Any] | None:
            told = self.presence(name)
            return told if told and told["pid"] != other_than else None

        return wait_for(f"the {name}", look)

    def engine_status(self) -> dict[str, Any]:
        """The engine's own `/status`; empty while it does not answer."""
        told = self.presence("engine")
        if told is None:
            return {}
        connection = http.client.HTTPConnection("127.0.0.1", told["port"], timeout=60)
        try:
            connection.request("GET", "/status", headers={"Authorization": f"Bearer {told['token']}"})
            answer = connection.getresponse()
            return json.loads(answer.read()) if answer.status == 200 else {}
        except (OSError, http.client.HTTPException):
            return {}
        finally:
            connection.close()

    def wait_for_engine(self) -> dict[str, Any]:
        """Wait until the base is loaded."""

        def look() -> dict[str, Any] | None:
            status = self.engine_status()
            return status if status.get("state") == "ready" else None

        return wait_for("the base to be ready", look)

    def processes(self, word: str = "") -> list[psutil.Process]:
        """Those of ours at work in this workspace (told by their command line) whose command line also has `word`."""
        ours = ("\0-m\0diffusion_lora\0", str(self.workspace), word)
        return [process for process, line in _command_lines() if all(part in line for part in ours)]

    def close(self) -> None:
        """End everything that belongs to the workspace."""
        if self._process is not None and self._process.poll() is None:
            self.kill()
        # A worker that sees its trainer die may start another meanwhile.
        while ended := self.processes():
            for process in ended:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(ended, timeout=60)

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"the page ended with status {self._process.returncode}")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", "/", headers={"Host": f"127.0.0.1:{self.port}"})
            return connection.getresponse().status in {200, 401}
        except OSError:
            return False
        finally:
            connection.close()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _command_lines() -> Iterator[tuple[psutil.Process, str]]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                yield process, "\0".join(process.cmdline())
