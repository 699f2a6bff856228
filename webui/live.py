"""The page's one timer: what moves by itself is asked for each second and sent when it changed. Nothing else is sent.

What is read and what it means belongs to the tabs; where it is looked up, to `watch`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from gradio.components import Component

from diffusion_lora.errors import UserError


class Pulse:
    """Asks every reader once a beat and sends those answers that differ from the last one sent.

    A component that a person types into has no place here: what is sent replaces what stands there.
    """

    def __init__(self, seconds: float = 1.0) -> None:
        self._seconds = seconds
        self._feeds: list[tuple[Component, Callable[..., Any], tuple[Component, ...]]] = []

    def feed(self, component: Component, read: Callable[..., Any], inputs: Sequence[Component] = ()) -> None:
        """Show what `read(*values of inputs)` returns: a value or a `gr.update`. It has to answer at once."""
        self._feeds.append((component, read, tuple(inputs)))

    def start(self, page: gr.Blocks) -> None:
        """Begin to beat, inside the page's `with`: at its load, then each `seconds`, and when an input changes."""
        # What this browser was sent last, as digests. A reloaded page has a new session, and with it an empty list.
        sent = gr.State(list[str]())
        inputs = [component for _, _, wanted in self._feeds for component in wanted]
        outputs = [sent, *(component for component, _, _ in self._feeds)]
        settings: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        page.load(self._beat, [sent, *inputs], outputs, **settings)
        gr.Timer(self._seconds).tick(self._beat, [sent, *inputs], outputs, trigger_mode="once", **settings)
        changes = [component.change for component in dict.fromkeys(inputs) if isinstance(component, gr.Textbox)]
        gr.on(changes, self._beat, [sent, *inputs], outputs, trigger_mode="always_last", **settings)

    def _beat(self, sent: list[str], *values: Any) -> list[Any]:
        rest, digests, answers = list(values), [], []
        for number, (_, read, wanted) in enumerate(self._feeds):
            mine, rest = rest[: len(wanted)], rest[len(wanted) :]
            before = sent[number] if number < len(sent) else ""
            try:
                answer = read(*mine)
            except UserError:  # a disk that is full for a moment: what was shown stays, the next beat asks again
                digests.append(before)
                answers.append(gr.skip())
                continue
            digest = hashlib.blake2b(json.dumps(answer, default=str).encode(), digest_size=12).hexdigest()
            digests.append(digest)
            answers.append(gr.skip() if before == digest else answer)
        return [digests, *answers]
