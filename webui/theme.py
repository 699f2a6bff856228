"""The look of the page: colours, type and Gradio's own variables. The rules that use them are in `assets/page.css`."""

from __future__ import annotations

import gradio as gr


def theme() -> gr.themes.Base:
    """Gradio's theme."""
    return gr.themes.Base()
