"""The page's way to the engine process: loopback HTTP with the token that the process left in the workspace.

    client = EngineClient(workspace)
    for event in client.generate([request]): ...

The engine may be starting, busy, away or dead at any time, and another one may take its place: the client looks the
process up for every call, and says what it finds in events and statuses instead of raising. Starting the process is
`jobs.launch`'s. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import httpx

from diffusion_lora.generate.infotext import request_fields
from diffusion_lora.generate.request import Request
from diffusion_lora.generate.wire import (
    Cancelled,
    DrawingEvent,
    Drawn,
    End,
    EngineStatus,
    Failed,
    Last,
    Preview,
    Queued,
    Start,
    Step,
    Waiting,
    from_line,
    status_from,
)
from diffusion_lora.lora.card import Card, read_cards
from diffusion_lora.processes import Presence, alive, read
from diffusion_lora.workspace import Workspace

__all__ = [
    "Cancelled",
    "Card",
    "DrawingEvent",
    "Drawn",
    "End",
    "EngineClient",
    "EngineStatus",
    "Failed",
    "Preview",
    "Queued",
    "Start",
    "Step",
    "Waiting",
]

_DOWN = "The engine is not running."
_STARTING = "The engine is starting."
_ANSWER_S = 5.0


class _Gone(Exception):  # noqa: N818 -- never leaves this module
    """There is no engine, or it does not answer; `down` when its process is gone."""

    def __init__(self, text: str, *, down: bool) -> None:
        super().__init__(text)
        self.text = text
        self.down = down


class EngineClient:
    """Speaks to whichever engine serves the workspace. May be used from several threads."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        # trust_env off: a proxy from the environment has no business between two processes of one machine.
        self._http = httpx.Client(trust_env=False, timeout=httpx.Timeout(_ANSWER_S))

    def status(self) -> EngineStatus:
        """What the engine says of itself; `down` when its process is gone. Never raises."""
        try:
            return status_from(self._ask("GET", "/status"))
        except _Gone as gone:
            return EngineStatus("down" if gone.down else "loading", gone.text)

    def generate(self, requests: Sequence[Request], previews: bool = True) -> Iterator[DrawingEvent]:
        """Have the requests drawn; the events end with End, Cancelled or Failed. Never raises.

        Relative paths of LoRAs are looked up in the workspace. Requests of equal size, steps and sampler are one
        batch. Closing the iterator cancels the drawing.
        """
        order = {"requests": [request_fields(request) for request in requests], "previews": previews}
        try:
            presence = self._presence()
            patient = httpx.Timeout(_ANSWER_S, read=None)  # a step may take as long as it needs
            with self._http.stream(
                "POST", _url(presence, "/generate"), json=order, headers=_headers(presence), timeout=patient
            ) as response:
                if response.is_error:
                    response.read()
                    yield Failed(_refusal(response))
                    return
                for line in response.iter_lines():
                    event = from_line(line)
                    yield event
                    if isinstance(event, Last):
                        return
        except _Gone as gone:
            yield Failed(gone.text)
            return
        except httpx.HTTPError:
            pass
        yield Failed("The engine stopped in the middle of the drawing; pictures that were done are in the gallery.")

    def cancel(self, drawing: str) -> bool:
        """Give up the drawing of this id; False when there is none (any more). Never raises."""
        try:
            return bool(self._ask("POST", "/cancel", {"id": drawing})["cancelled"])
        except _Gone:
            return False

    def load(self, base: str) -> str:
        """Ask for another base; "" or the sentence that says why it was not taken. `status` tells how it goes on."""
        try:
            self._ask("POST", "/load", {"base": base})
        except _Gone as gone:
            return gone.text
        return ""

    def unload(self) -> str:
        """Ask the engine to let go of the base and the device; "" or the sentence that says why it did not."""
        try:
            self._ask("POST", "/unload")
        except _Gone as gone:
            return gone.text
        return ""

    def adapters(self) -> list[Card]:
        """The LoRA files of the workspace, from their headers: read here, so that the list needs no engine."""
        return read_cards(self.workspace.loras)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        presence = self._presence()
        try:
            response = self._http.request(method, _url(presence, path), json=body, headers=_headers(presence))
        except httpx.HTTPError:
            gone = not alive(presence.pid, presence.started)
            raise _Gone(_DOWN if gone else _STARTING, down=gone) from None
        if response.is_error:
            raise _Gone(_refusal(response), down=False)
        answer: dict[str, Any] = response.json()
        return answer

    def _presence(self) -> Presence:
        presence = read(self.workspace, "engine")
        if presence is None:
            raise _Gone(_DOWN, down=True)
        return presence


def _url(presence: Presence, path: str) -> str:
    return f"http://127.0.0.1:{presence.port}{path}"


def _headers(presence: Presence) -> dict[str, str]:
    return {"Authorization": f"Bearer {presence.token}"}


def _refusal(response: httpx.Response) -> str:
    try:
        return str(response.json()["text"])
    except (ValueError, KeyError, TypeError):
        return f"The engine refused the order (status {response.status_code})."
