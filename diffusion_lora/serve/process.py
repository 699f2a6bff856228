"""The engine as a process: a socket on the loopback address, a token, a note where both are to be found.

The note is there before torch is: whoever asks meanwhile is told that the base is loading. The process leaves when it
is told to (SIGTERM, Ctrl-C), and when nobody has needed it for a while and no page is open on the workspace.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic, sleep

import uvicorn

from diffusion_lora.errors import ServiceError
from diffusion_lora.processes import Presence, Taken, announce, only_one, read, uis_alive, withdraw
from diffusion_lora.serve.app import create_app
from diffusion_lora.serve.guard import Guard
from diffusion_lora.serve.studio import Studio
from diffusion_lora.workspace import Workspace

IDLE_S = 30.0
_LOOK_EVERY_S = 2.0
_LAST_STEP_S = 20.0
_LOCK_POLL_S = 0.25


def serve(workspace: Workspace, *, base: str = "pocket", device: str = "auto", idle_s: float = IDLE_S) -> None:
    """Be the workspace's engine until told to leave, or unneeded for `idle_s` with no page open. One a workspace.

    Raises ServiceError when the workspace has one, OutputError when its state cannot be written.
    """
    deadline = monotonic() + 2 * _LAST_STEP_S
    while True:
        try:
            with only_one(workspace.state / "engine-process.lock"):
                _serve(workspace, base, device, idle_s)
                return
        except Taken as taken:
            # One that has withdrawn its note is leaving: it takes the step at hand to its end.
            if taken.owner and (read(workspace, "engine") or monotonic() > deadline):
                raise ServiceError(
                    f"the workspace {workspace.root} has an engine already, process {taken.owner.pid}: use that one"
                ) from None
        sleep(_LOCK_POLL_S)


def _serve(workspace: Workspace, base: str, device: str, idle_s: float) -> None:
    studio = Studio(workspace, base, device)
    studio.start()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        presence = Presence.this(listener.getsockname()[1], secrets.token_urlsafe(32))
        announce(workspace, "engine", presence)
        try:
            asyncio.run(_listen(workspace, studio, listener, presence, idle_s))
        finally:
            withdraw(workspace, "engine")
            studio.leave()
            studio.join(_LAST_STEP_S)


async def _listen(
    workspace: Workspace, studio: Studio, listener: socket.socket, presence: Presence, idle_s: float
) -> None:
    needed = monotonic()

    def was_needed() -> None:
        nonlocal needed
        needed = monotonic()

    app = Guard(create_app(studio, workspace, was_needed), port=presence.port, token=presence.token)
    server = _Server(studio, app)
    serving = asyncio.create_task(server.serve([listener]))
    while not serving.done():
        await asyncio.wait([serving], timeout=min(_LOOK_EVERY_S, idle_s))
        if studio.is_busy or uis_alive(workspace):
            was_needed()
        if monotonic() - needed > idle_s:
            server.should_exit = True
    await serving


class _Server(uvicorn.Server):
    """uvicorn, quiet, and ending the drawings before it waits for its connections."""

    def __init__(self, studio: Studio, app: Guard) -> None:
        super().__init__(
            uvicorn.Config(
                app, log_level="warning", access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=5
            )
        )
        self._studio = studio

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's own, which raises the signal again when its loop has ended and so ends the process there."""
        earlier = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._studio.leave()
        await super().shutdown(sockets)
