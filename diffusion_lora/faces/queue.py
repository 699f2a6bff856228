"""The queue as lines of text: a run a line, how far it is, what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffusion_lora.errors import RunError
from diffusion_lora.events import read_events
from diffusion_lora.workspace import Workspace

if TYPE_CHECKING:
    from diffusion_lora.jobs.store import Job


def told_queue(workspace: Workspace, jobs: Sequence[Job]) -> str:
    """The jobs in the order given, in columns; a sentence if there are none."""
    if not jobs:
        return "the queue is empty; put a run into it with: diffusion-lora queue add CONFIG.toml"
    rows = [(job.run, "waiting" if job.state == "starting" else job.state, _progress(workspace, job)) for job in jobs]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(f"{line}  {job.text}".rstrip() for line, job in zip(lines, jobs, strict=True))


def _progress(workspace: Workspace, job: Job) -> str:
    try:
        events = read_events(workspace.runs / job.run)
    except RunError:
        return "its folder is gone"
    if events and events[-1]["kind"] == "waiting":
        return str(events[-1]["text"])
    captioned = next((event for event in reversed(events) if event["kind"] == "captioning"), None)
    if captioned is not None:
        return f"{captioned['done']:,} of {captioned['total']:,} pictures"
    steps = [event["step"] for event in events if event["kind"] == "step"]
    total = [event["steps"] for event in events if event["kind"] == "start"]
    if not steps:
        return ""
    return f"step {steps[-1]} of {total[-1]}" if total else f"step {steps[-1]}"
