"""What moves by itself: one look a second at engine, worker and queue, and one timer that sends the page what changed.

`Watch` looks once for all browsers and starts a dead engine or worker again; `Pulse` is the timer of a page. What the
things looked at mean in words and pictures belongs to the tabs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from gradio.components import Component

from webui.context import Context


class Watch:
    """The newest look at the processes behind the page, shared by all browsers."""

    def __init__(self, context: Context) -> None:
        self._context = context


class Pulse:
    """The page's one timer. Each beat asks every reader and sends those answers that differ from the last one sent.

    A component that a person types into has no place here: what is sent replaces what stands there.
    """

    def __init__(self, seconds: float = 1.0) -> None:
        self._seconds = seconds
        self._feeds: list[tuple[Component, Callable[..., Any], tuple[Component, ...]]] = []

    def feed(self, component: Component, read: Callable[..., Any], inputs: Sequence[Component] = ()) -> None:
        """Show what `read(*values of inputs)` returns: a value, or a `gr.update`. It must answer within milliseconds."""
        self._feeds.append((component, read, tuple(inputs)))

    def start(self, page: gr.Blocks) -> None:
        """Begin to beat, inside the page's `with`: at its load, and then each `seconds`."""
        # What this browser was sent last, as digests. A reloaded page has a new session, and with it an empty one.
        sent = gr.State(list[str]())
        inputs = [component for _, _, wanted in self._feeds for component in wanted]
        outputs = [sent, *(component for component, _, _ in self._feeds)]
        settings: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        page.load(self._beat, [sent, *inputs], outputs, **settings)
        gr.Timer(self._seconds).tick(self._beat, [sent, *inputs], outputs, **settings)

    def _beat(self, sent: list[str], *values: Any) -> list[Any]:
        rest, digests, answers = list(values), [], []
        for number, (_, read, wanted) in enumerate(self._feeds):
            mine, rest = rest[: len(wanted)], rest[len(wanted) :]
            answer = read(*mine)
            digest = hashlib.blake2b(json.dumps(answer, default=str).encode(), digest_size=12).hexdigest()
            digests.append(digest)
            answers.append(gr.skip() if sent[number : number + 1] == [digest] else answer)
        return [digests, *answers]
