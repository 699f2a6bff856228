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
                    _say(console, f"{event['pictures']:,} pictures, {event['captioner']} ({event['model']}) "
                                  f"on {event['device']}")  # fmt: skip
                case "problem":
                    _say(console, f"left as it is: {event['text']}")
                case "captioning":
                    done, total = event["done"], event["total"]
                    pace = done / max(1e-6, time.monotonic() - started)
                    tail = f"{done:,} of {total:,}  {pace:.1f} pictures/s  {duration((total - done) / pace)} left"
                    shown.update(task, completed=done, total=total, tail=tail)
                    if not console.is_terminal and time.monotonic() - told > _LINE_EVERY_S:
                        told = time.monotonic()
                        _say(console, tail)
                case "end":
                    _say(console, f"{event['written']:,} captions written")

        yield receive


@contextmanager
def watch_shards(console: Console, processes: int) -> Iterator[Callable[[int, str], None]]:
    """A receiver for (number of a process, the line it printed last)."""
    yield lambda number, line: _say(console, f"{number + 1} of {processes}: {line}")


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
