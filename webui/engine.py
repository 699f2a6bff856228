"""The page's way to the engine process: loopback HTTP with the token that the process left in the workspace.

    client = EngineClient(workspace)
    for event in client.generate([request]): ...

The engine may be starting, busy, away or dead at any time, and another one may take its place: the client looks the
process up for every call, and says what it finds in events and statuses instead of raising. Starting the process is
`jobs.launch`'s. No torch.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
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
from diffusion_lora.lora.card import Card, workspace_cards
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
_SILENT = "The engine does not answer yet."
_LOST = "The engine stopped in the middle of the drawing; pictures that were done are in the gallery."
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
        # No proxy from the environment: these are two processes of one machine. No connection is kept: the engine
        # could drop it in the moment in which an order goes out.
        self._http = httpx.Client(trust_env=False, timeout=_ANSWER_S, limits=httpx.Limits(max_keepalive_connections=0))
        self._last: tuple[int, EngineStatus] | None = None  # with the pid of the engine that said it

    def status(self) -> EngineStatus:
        """What the engine says of itself, or said last where it is too busy to answer; `down` without a process.

        Never raises.
        """
        try:
            presence = self._presence()
        except _Gone as gone:
            return EngineStatus("down", gone.text)
        try:
            status = status_from(self._ask("GET", "/status", presence=presence))
        except _Gone as gone:
            if gone.down:
                return EngineStatus("down", gone.text)
            return self._last[1] if self._last and self._last[0] == presence.pid else EngineStatus("loading", gone.text)
        self._last = presence.pid, status
        return status

    def generate(
        self, requests: Sequence[Request], previews: bool = True, owner: str = ""
    ) -> Generator[DrawingEvent, None, None]:
        """Have the requests drawn; the events end with End, Cancelled or Failed. Never raises.

        Relative paths of LoRAs are looked up in the workspace. Requests of equal size, steps and sampler are one
        batch; they lie in the `owner`'s folder of pictures/. Closing the iterator cancels the drawing.
        """
        order = {"requests": [request_fields(request) for request in requests], "previews": previews, "owner": owner}
        yield from self._drawn("/generate", order)

    def grid(
        self, request: Request, rows: str, columns: str, *, title: str = "", theme: str = "light", owner: str = ""
    ) -> Generator[DrawingEvent, None, None]:
        """Have a request drawn at every pair of a row and a column (`generate.axes`), with a sheet of all.

        The pictures are told row by row; before the end comes SheetDrawn.
        """
        order = {"request": request_fields(request), "rows": rows, "columns": columns, "title": title, "theme": theme}
        yield from self._drawn("/grid", {**order, "previews": True, "owner": owner})

    def _drawn(self, path: str, order: dict[str, Any]) -> Generator[DrawingEvent, None, None]:
        heard = False
        try:
            presence = self._presence()
            patient = httpx.Timeout(_ANSWER_S, read=None)  # a step may take as long as it needs
            with self._http.stream(
                "POST", _url(presence, path), json=order, headers=_headers(presence), timeout=patient
            ) as response:
                if response.is_error:
                    response.read()
                    yield Failed(_refusal(response))
                    return
                for line in response.iter_lines():
                    event = from_line(line)
                    heard = True
                    yield event
                    if isinstance(event, Last):
                        return
        except _Gone as gone:
            yield Failed(gone.text)
            return
        except httpx.HTTPError:
            pass
        yield Failed(_LOST if heard else _SILENT)

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
        """The LoRAs of the workspace, from their headers: read here, so that the list needs no engine."""
        return workspace_cards(self.workspace)

    def _ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, presence: Presence | None = None
    ) -> dict[str, Any]:
        presence = presence or self._presence()
        try:
            response = self._http.request(method, _url(presence, path), json=body, headers=_headers(presence))
        except httpx.HTTPError:
            gone = not alive(presence.pid, presence.started)
            raise _Gone(_DOWN if gone else _SILENT, down=gone) from None
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
