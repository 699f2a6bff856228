"""The first page as HTML: three ways to begin, and how the machine is. Every text is escaped; no Gradio."""

from __future__ import annotations

from html import escape

from diffusion_lora.workspace import Workspace
from webui.texts import START
from webui.watch import Look
from webui.words import gigabytes

_CARDS = ("dataset", "train", "generate")


def is_fresh(workspace: Workspace) -> bool:
    """Whether nothing was made in a workspace yet: then the page opens here."""
    areas = (workspace.datasets, workspace.runs, workspace.loras, workspace.pictures)
    return not any(entry for area in areas for entry in area.iterdir() if not entry.name.startswith("."))


def page(look: Look) -> str:
    """The cards, and a line that says device, memory, base and queue."""
    cards = "".join(
        f'<section class="way"><h2>{escape(START[card])}</h2><p>{escape(START[f"{card}_text"])}</p>'
        f'<button type="button" data-tab="{card}"{" class=primary" if card == "train" else ""}>'
        f'{escape(START[f"do_{card}"])}</button></section>'
        for card in _CARDS
    )
    told = f'<p class="told">{escape(START["pocket"])}</p>' if look.engine.base == "pocket" else ""
    return f'<h1>{escape(START["title"])}</h1><div class="ways">{cards}</div><p class="line">{_line(look)}</p>{told}'


def _line(look: Look) -> str:
    engine = look.engine
    waiting = sum(job.state in ("waiting", "starting", "running") for job in look.jobs)
    device = engine.device_name or engine.device.upper()
    memory = f"{gigabytes(engine.free_bytes)} of {gigabytes(engine.total_bytes)} GB free" if engine.total_bytes else ""
    base = f"base: {engine.base.rstrip('/').rpartition('/')[2]}" if engine.base else engine.text.rstrip(".")
    queue = START["waiting"].format(count=waiting) if waiting else START["idle"]
    return " · ".join(escape(part) for part in (device, memory, base, queue) if part)
