"""What a person sees while something long goes on: a bar on a terminal, a line now and then everywhere else.

`watch_training` turns the events of a run (see `events`) into words; `watch_drawing` counts sampling steps. Neither
decides anything: what happens is the same with nobody watching.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from diffusion_lora.events import Event
from diffusion_lora.sweep import comparison

_LINE_EVERY_S = 15.0  # without a terminal: a log that lives, not one that floods


@contextmanager
def watch_training(console: Console) -> Iterator[Callable[[Event], None]]:
    """A receiver for the events of one training run."""
    with progress_bar(console) as bar:
        yield _TrainingWatch(console, bar)


@contextmanager
def watch_drawing(console: Console, label: str) -> Iterator[Callable[[int, int], None]]:
    """A receiver for (steps done, steps in all) while pictures are drawn."""
    with progress_bar(console) as bar:
        task = bar.add_task(label, total=None, tail="")

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, tail=f"step {done}/{total}")

        yield show


def duration(seconds: float) -> str:
    """`75` -> `"1:15"`, `4000` -> `"1:06:40"`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _TrainingWatch:
    def __init__(self, console: Console, bar: Progress) -> None:
        self._console, self._bar = console, bar
        self._task: TaskID | None = None
        self._steps = 0
        self._loss: float | None = None
        self._last_line_s = time.monotonic()

    def __call__(self, event: Event) -> None:
        match event["kind"]:
            case "start":
                self._start(event)
            case "step":
                self._step(event)
            case "note" | "waiting":
                self._say(event["text"])
            case "warning":
                self._say(f"warning: {event['text']}")
            case "problem":
                self._say(f"left out: {event['text']}")
            case "preparing":
                self._say(f"{event['what']}: {event['done']:,} of {event['total']:,}")
            case "resume":
                self._say(f"going on from step {event['step']}")
            case "sweep":
                for line in comparison(event["rows"]):
                    self._say(line)

    def _start(self, event: Event) -> None:
        self._steps = event["steps"]
        if event.get("base"):
            self._say(f"base: {event['base']}")
        self._say(
            f"{event['pictures']} pictures, {event['steps']} steps of {event['batch_size']} on {event['device']} "
            f"({event['precision']}, {event['optimizer']})"
        )
        self._say(f"{event['layers']} layers, {event['parameters']:,} parameters: trainable {event['share']:.1f} %")
        self._task = self._bar.add_task("training", total=self._steps, tail="")

    def _step(self, event: Event) -> None:
        # A single step's loss says little (its timesteps are random): the bar shows a running mean.
        if isinstance(event["loss"], int | float):
            self._loss = event["loss"] if self._loss is None else 0.95 * self._loss + 0.05 * event["loss"]
        tail = f"step {event['step']}/{self._steps}"
        if self._loss is not None:
            tail += f"  loss {self._loss:.4f}"
        if event.get("pictures_per_s"):
            tail += f"  {event['pictures_per_s']:.1f} pictures/s"
        if event.get("seconds_left") is not None:
            tail += f"  {duration(event['seconds_left'])} left"
        if self._task is not None:
            self._bar.update(self._task, completed=event["step"], tail=tail)
        if not self._console.is_terminal and (time.monotonic() - self._last_line_s > _LINE_EVERY_S):
            self._last_line_s = time.monotonic()
            self._say(tail)

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def progress_bar(console: Console) -> Progress:
    """A bar with a label before it and a tail behind; nothing where there is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[tail]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
