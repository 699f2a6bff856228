"""One order on its way through the engine: what was asked, the news of it, and whether it was given up.

The studio's thread tells news and the server's event loop passes them on; this is where the two meet.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from diffusion_lora.generate.request import Request
from diffusion_lora.generate.wire import DrawingEvent

Finish = Callable[[Mapping[int, Path]], DrawingEvent]
"""Makes of a drawing's pictures, by place, what is told before its end."""


class Drawing:
    """An order, made inside the event loop that will pass its news on."""

    def __init__(
        self, requests: Sequence[Request], *, previews: bool, owner: str = "", finish: Finish | None = None
    ) -> None:
        self.id = secrets.token_hex(8)
        self.requests = tuple(requests)
        self.previews = previews
        self.owner = owner  # whose folder of pictures/ the results go to; "" for pictures/ itself
        self.finish = finish
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[DrawingEvent | None] = asyncio.Queue()
        self._given_up = threading.Event()
        self._last: DrawingEvent | None = None

    @property
    def is_given_up(self) -> bool:
        return self._given_up.is_set()

    def give_up(self) -> None:
        """Ask for the end; the studio tells `Cancelled` when it is there. From any thread."""
        self._given_up.set()

    def tell(self, event: DrawingEvent) -> None:
        """Pass on what is news; the same twice is told once. From any thread."""
        if event == self._last:
            return
        self._last = event
        self._put(event)

    def hang_up(self) -> None:
        """Nobody listens any more: `next` gives None. From any thread."""
        self._put(None)

    async def next(self) -> DrawingEvent | None:
        """The next event in order; None after `hang_up`."""
        return await self._news.get()

    def _put(self, event: DrawingEvent | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends and nobody listens
            self._loop.call_soon_threadsafe(self._news.put_nowait, event)
