"""What a person sees while pictures are described: a bar on a terminal, a line now and then everywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from diffusion_lora.events import Event
from diffusion_lora.faces.progress import duration, progress_bar

_LINE_EVERY_S = 15.0


@contextmanager
def watch_captioning(console: Console) -> Iterator[Callable[[Event], None]]:
    """A receiver for the events of one captioning."""
    with progress_bar(console) as shown:
        started = told = time.monotonic()
        task = shown.add_task("captioning", total=None, tail="")

        def receive(event: Event) -> None:
            nonlocal started, told
            match event["kind"]:
                case "start":
                    started = told = time.monotonic()
                    shared = f", {event['processes']} processes" if "processes" in event else ""
                    _say(console, f"{event['pictures']:,} pictures, {event['captioner']} ({event['model']}) "
                                  f"on {event['device']}{shared}")  # fmt: skip
                case "waiting":
                    _say(console, event["text"])
                case "problem":
                    _say(console, f"left as it is: {event['text']}")
                case "captioning":
                    done, total = event["done"], event["total"]
                    pace = done / max(1e-6, time.monotonic() - started)
                    left = duration((total - done) / max(1e-6, pace))
                    tail = f"{done:,} of {total:,}  {pace:.1f} pictures/s  {left} left"
                    shown.update(task, completed=done, total=total, tail=tail)
                    if not console.is_terminal and time.monotonic() - told > _LINE_EVERY_S:
                        told = time.monotonic()
                        _say(console, tail)
                case "end":
                    _say(console, f"{event['written']:,} captions written")

        yield receive


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
