"""Short messages over the page. Gradio shows their text as HTML, and shows it only from events that are queued."""

from __future__ import annotations

from html import escape

import gradio as gr

_SHORT_S, _LONG_S = 4, 10


def tell(text: str) -> None:
    """Something was done."""
    gr.Info(escape(text), duration=_SHORT_S if len(text) < 60 else _LONG_S)


def warn(text: str) -> None:
    """Something was not done, and why."""
    gr.Warning(escape(text), duration=_LONG_S)
