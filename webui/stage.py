"""What the stage shows while an order is drawn, and of a picture that was drawn earlier. No Gradio.

A `Stage` takes the engine's events and says at any time what there is to see, as the value of the stage's component.
How large the pictures are, and which one is chosen, the browser finds by itself.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from diffusion_lora.generate.request import Request
from diffusion_lora.generate.wire import (
    Cancelled,
    DrawingEvent,
    Drawn,
    End,
    Failed,
    Preview,
    Queued,
    SheetDrawn,
    Step,
    Waiting,
)
from webui.desk import Sweep
from webui.tables import Table
from webui.words import count, duration, moment, sentence

Phase = Literal["empty", "waiting", "drawing", "done", "cancelled", "failed"]
PictureUrl = Callable[[str], str]
"""From a path relative to the workspace to the address of the picture."""

_PACE = 3
"""Steps after which the time left can be told."""


@dataclass
class _Cell:
    """A place for one picture: nothing yet, a glimpse of it, or the picture with its file's name."""

    caption: str = ""
    value: float | None = None
    src: str = ""
    name: str = ""
    alt: str = ""


@dataclass
class Stage:
    """One order on the stage. `sweep` says what its captions are and which fader a click sets; a `table` has rows and
    columns, and at the end a sheet."""

    requests: Sequence[Request]
    url: PictureUrl
    sweep: Sweep | None = None
    table: Table | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.order = secrets.token_hex(4)
        self.phase: Phase = "waiting"
        self._text = ""
        self._figures = ""
        self._done = self._total = 0
        self._began = time.monotonic()
        self._size = (1, 1)
        self._sheet = ""
        alike = len({request.prompt for request in self.requests}) == 1
        if self.sweep:
            self._cells = [_Cell(f"{value:g}", value) for value in self.sweep.values()]
        elif self.table:
            rows, columns = self.table.rows.labels, self.table.columns.labels
            self._cells = [_Cell(f"{row}, {column}") for row in rows for column in columns]
        elif len(self.requests) > 1:
            self._cells = [_Cell(f"seed {request.seed}" if alike else request.prompt) for request in self.requests]
        else:
            self._cells = [_Cell() for _ in self.requests]
        for cell, request in zip(self._cells, self.requests, strict=True):
            cell.alt = f"{request.prompt or 'a picture'}, {cell.caption or f'seed {request.seed}'}"
            if request.width and request.height:
                self._size = (request.width, request.height)

    def take(self, event: DrawingEvent) -> None:
        """Whatever the engine tells."""
        match event:
            case Waiting(text=text):
                self.phase, self._text = "waiting", text
            case Queued(ahead=ahead):
                self.phase, self._text = "waiting", f"Waiting: {count(ahead, 'drawing')} before this one."
            case Step(done=done, total=total):
                if self.phase != "drawing":
                    self._began = time.monotonic()
                self.phase, self._text = "drawing", ""
                self._done, self._total = done, total
            case Preview(index=index, webp=webp):
                self._cells[index].src = f"data:image/webp;base64,{webp}"
            case Drawn(index=index, path=path, request=request, notes=notes):
                self._size = (request.width, request.height)
                cell = self._cells[index]
                cell.src, cell.name = self.url(path), PurePosixPath(path).name
                self.notes += [told for note in notes if (told := sentence(note)) not in self.notes]
            case SheetDrawn(path=path):
                self._sheet = self.url(path)
            case End(seconds=seconds, steps_per_s=pace):
                self.phase = "done"
                self._figures = f"{duration(seconds)}, {pace:.1f} steps/s, {_seeds(self.requests)}"
            case Cancelled():
                self.phase = "cancelled"
                self._text = f"Cancelled after step {self._done} of {self._total}." if self._total else "Cancelled."
                self._keep_pictures()
            case Failed(text=text):
                self.fail(text)

    def fail(self, text: str) -> None:
        """The drawing ended early, for this reason; pictures that are there stay."""
        self.phase, self._text = "failed", sentence(text)
        self._keep_pictures()

    def value(self) -> dict[str, Any]:
        """What the stage's component shows."""
        return {
            "phase": self.phase,
            "order": self.order,
            "title": self._title(),
            "told": self._told(),
            "text": self._text,
            "notes": list(self.notes),
            "cells": [
                {"src": cell.src, "name": cell.name, "caption": cell.caption, "value": cell.value, "alt": cell.alt}
                for cell in self._cells
            ],
            "ratio": self._size[0] / self._size[1],
            "progress": self._done / self._total if self._total and self.phase == "drawing" else 0,
            "figures": self._figures,
            "hint": self._hint(),
            "sweep": self.sweep.name if self.sweep else None,
            "columns": len(self.table.columns.labels) if self.table else 0,
            "sheet": self._sheet,
        }

    def _title(self) -> str:
        if self.sweep:
            values = self.sweep.values()
            name = PurePosixPath(self.sweep.name).name
            return f"{name} from {values[0]:g} to {values[-1]:g}, one batch of {len(values)}"
        if self.table:
            return f"{self.table.rows.title} downwards, {self.table.columns.title} across"
        return self.requests[0].prompt if self.requests else ""

    def _told(self) -> str:
        if self.phase != "drawing":
            return ""
        text = f"step {self._done} of {self._total}"
        if self._done >= _PACE and self._done < self._total:
            left = (time.monotonic() - self._began) / max(1, self._done - 1) * (self._total - self._done)
            text += f", {f'{round(left)} s' if left < 60 else duration(left)} left" if left >= 1 else ""
        return text

    def _hint(self) -> str:
        if self.phase not in ("done", "cancelled"):
            return ""
        if self.sweep:
            return "Click a picture to set the fader to its value"
        return "Click a picture to choose it" if len(self._cells) > 1 else ""

    def _keep_pictures(self) -> None:
        """Glimpses go: what is shown after the end is in the gallery."""
        self._cells = [cell for cell in self._cells if cell.name]


def empty(lines: Sequence[str], examples: Sequence[str] = ()) -> dict[str, Any]:
    """The stage before the first picture: the first line is the title; examples are prompts to click."""
    return {"phase": "empty", "cells": [], "lines": list(lines), "examples": list(examples)}


def trouble(text: str) -> dict[str, Any]:
    """One sentence that says what is wrong with what was asked; pictures on the stage stay."""
    return {"phase": "failed", "keep": True, "text": sentence(text)}


def earlier(picture: Path, request: Request, src: str, notes: Sequence[str] = ()) -> dict[str, Any]:
    """A picture that was drawn earlier, with what made it."""
    mix = [f"{use.name} {use.strength:g}" for use in request.loras]
    figures = [f"{count(request.steps, 'step')}", f"seed {request.seed}", moment(picture.stat().st_mtime)]
    return {
        "phase": "done",
        "order": f"{picture.name} {' '.join(notes)}",
        "title": request.prompt,
        "told": "",
        "notes": list(notes),
        "cells": [{"src": src, "name": picture.name, "caption": "", "value": None, "alt": request.prompt}],
        "ratio": request.width / request.height if request.width and request.height else 1,
        "figures": ", ".join([*mix, *figures]),
    }


def _seeds(requests: Sequence[Request]) -> str:
    first, last = requests[0].seed, requests[-1].seed
    return f"seed {first}" if first == last else f"seeds {first} to {last}"
