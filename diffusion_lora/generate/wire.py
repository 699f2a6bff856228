"""What the engine process and its clients say to each other, declared once for both ends. No torch.

A drawing is told as events, one JSON object a line: it may wait and stand in a queue, it starts, takes steps, shows
glimpses, delivers pictures, and ends in exactly one of `End`, `Cancelled` and `Failed`. `EngineStatus` is what the
engine says of itself. How the lines travel is `serve`'s business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal

from diffusion_lora.generate.infotext import request_fields, request_from_fields
from diffusion_lora.generate.request import Request

State = Literal["loading", "ready", "busy", "away", "failed", "down"]


@dataclass(frozen=True)
class EngineStatus:
    """What the engine does; `text` says it in one sentence for people.

    loading: torch or the base is on its way. ready, busy: the base is there; it draws. away: a run (`holder`) has the
    device, or nobody asked for the base since it was unloaded. failed: the base cannot be loaded. down: there is no
    engine process, which only a client can say.

    `loads` is how many adapters were put into the model since the engine started, `drawn` how many pictures it made.
    Bytes are those of the device's memory; 0 is unknown.
    """

    state: State
    text: str
    base: str = ""
    base_hash: str = ""
    device: str = ""
    device_name: str = ""
    free_bytes: int = 0
    total_bytes: int = 0
    holder: str = ""
    loads: int = 0
    drawn: int = 0
    version: str = ""


@dataclass(frozen=True)
class Start:
    """The engine took the order: `id` is what cancels it. Always the first event."""

    kind: ClassVar = "start"
    id: str


@dataclass(frozen=True)
class Waiting:
    """The base is loading, or `holder` has the device; `text` says so. Told again when it changes."""

    kind: ClassVar = "waiting"
    text: str
    holder: str = ""


@dataclass(frozen=True)
class Queued:
    """Other drawings, `ahead` of them, come first."""

    kind: ClassVar = "queued"
    ahead: int


@dataclass(frozen=True)
class Step:
    """Model evaluations done and all of them, over all batches."""

    kind: ClassVar = "step"
    done: int
    total: int


@dataclass(frozen=True)
class Preview:
    """How picture `index` will look, judged from the present step: a small WebP, in base64."""

    kind: ClassVar = "preview"
    index: int
    webp: str


@dataclass(frozen=True)
class Drawn:
    """Picture `index` is saved: `path` is relative to the workspace, `request` has all that the model decided."""

    kind: ClassVar = "picture"
    index: int
    path: str
    request: Request
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SheetDrawn:
    """All pictures of a grid stand on one sheet, `path` relative to the workspace."""

    kind: ClassVar = "sheet"
    path: str


@dataclass(frozen=True)
class End:
    """All pictures are drawn; the time is that of drawing, without waiting."""

    kind: ClassVar = "end"
    seconds: float
    steps_per_s: float


@dataclass(frozen=True)
class Cancelled:
    """The drawing was given up on request; pictures told before stay."""

    kind: ClassVar = "cancelled"


@dataclass(frozen=True)
class Failed:
    """The drawing ended early; `text` is the one sentence to show."""

    kind: ClassVar = "error"
    text: str


DrawingEvent = Start | Waiting | Queued | Step | Preview | Drawn | SheetDrawn | End | Cancelled | Failed
Last = (End, Cancelled, Failed)
"""The kinds after which nothing comes."""

KINDS: Mapping[str, type[Any]] = {
    event.kind: event for event in (Start, Waiting, Queued, Step, Preview, Drawn, SheetDrawn, End, Cancelled, Failed)
}


def to_line(event: DrawingEvent) -> bytes:
    """The event as one line of JSON, with its end."""
    values = {field.name: getattr(event, field.name) for field in fields(event)}
    if isinstance(event, Drawn):
        values["request"] = request_fields(event.request)
    return json.dumps({"kind": event.kind, **values}, ensure_ascii=False).encode() + b"\n"


def from_line(line: str | bytes) -> DrawingEvent:
    """The event that `to_line` wrote. Raises ValueError for anything else."""
    try:
        values = json.loads(line)
        kind = KINDS[values.pop("kind")]
        if kind is Drawn:
            values["request"] = request_from_fields(values["request"])
            values["notes"] = tuple(values["notes"])
        event: DrawingEvent = kind(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"this line is no event of a drawing: {line[:80]!r}") from error
    return event


def status_from(values: Mapping[str, Any]) -> EngineStatus:
    """The status from its JSON object; what a newer engine adds is left out. Raises TypeError when some is missing."""
    known = {field.name for field in fields(EngineStatus)}
    return EngineStatus(**{name: value for name, value in values.items() if name in known})


def status_fields(status: EngineStatus) -> dict[str, Any]:
    """The status as a JSON object."""
    return asdict(status)
