"""The page as one web application: header, tabs, and the walls around them."""

from __future__ import annotations

import gradio as gr

from webui.context import Context, Links
from webui.live import Pulse, Watch


def build(context: Context) -> gr.Blocks:
    """The page: a header and a tab for each kind of work."""
    with gr.Blocks(title="diffusion-lora", analytics_enabled=False) as page:
        open_adapter = gr.Textbox(visible="hidden", elem_id="open-adapter")
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap") as tabs:
            links = Links(tabs, open_adapter, Pulse(), Watch(context))
            with gr.Tab("Train", id="train", elem_id="train"):
                pass
            with gr.Tab("Generate", id="generate", elem_id="generate"):
                try:
                    from webui.tabs.generate import generate_tab
                except ModuleNotFoundError:
                    gr.Markdown("Not there yet.")
                else:
                    generate_tab(context, links)
            with gr.Tab("Queue", id="queue", elem_id="queue"):
                pass
        links.pulse.start(page)
    return page
