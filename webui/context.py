"""What every tab is given: the workspace, the engine, the queue, and what one tab asks of another. No Gradio logic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import gradio as gr

    from diffusion_lora.jobs.store import Queue
    from diffusion_lora.workspace import Workspace
    from webui.engine import EngineClient
    from webui.files import Thumbnails
    from webui.live import Pulse
    from webui.watch import Watch


@dataclass(frozen=True)
class Context:
    """The world outside the page. The page owns none of it: all of it goes on when the page is gone."""

    workspace: Workspace
    engine: EngineClient
    queue: Queue
    base: str = "pocket"
    device: str = "auto"
    shared: bool = False
    """Several people use it, from other machines: each has pictures and queue entries of their own, and folders
    outside of the workspace are not opened."""


@dataclass(frozen=True)
class Links:
    """What the tabs share on one page.

    `open_adapter` is a hidden text field: a tab writes the name of an adapter of `loras/` into it and turns `tabs` to
    "generate"; the Generate tab watches it, puts that adapter on the desk and empties the field again. `pulse` is the
    page's one timer: `pulse.feed(component, read)` shows each second what `read` returns, sent only when it changed.
    `watch` is the one look at engine, worker and queue that all browsers share. `shown_run` is another hidden field:
    the run that the Train tab shows, empty for the one under way or the newest. `train_on`: the folder of the set that
    Train is to take; `like`: the LoRA whose settings it is to take. `thumbnails` gives small copies.
    """

    tabs: gr.Tabs
    open_adapter: gr.Textbox
    shown_run: gr.Textbox
    train_on: gr.Textbox
    like: gr.Textbox
    pulse: Pulse
    watch: Watch
    thumbnails: Thumbnails
