"""A run's folder as the page shows it: how far, how fast, how well, what it looks like. Reads only; no Gradio.

`events.jsonl` is followed from where it was last read, so that a look each second costs the same after a day as after
a minute. What the queue knows of a run (`Job`) and what its folder says meet here in one `Story`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from diffusion_lora.caption_run import CaptionRun
from diffusion_lora.config import TrainConfig
from diffusion_lora.errors import UserError
from diffusion_lora.events import read_events
from diffusion_lora.jobs.store import Job
from diffusion_lora.run import Run, run_kind, run_owner
from diffusion_lora.workspace import Workspace
from webui.words import duration

State = Literal["waiting", "running", "paused", "done", "failed", "stopped"]


@dataclass(frozen=True)
class Column:
    """The previews of one step: a picture a prompt."""

    step: int
    pictures: tuple[Path, ...]


@dataclass(frozen=True)
class Story:
    """What is known of a run now."""

    name: str
    folder: Path
    config: TrainConfig
    """Of a captioning only its pictures (`dataset.path`) mean anything."""
    state: State
    text: str = ""
    """What became of it, or what it waits for, in a sentence."""
    step: int = 0
    steps: int = 1
    losses: tuple[tuple[int, float], ...] = ()
    seconds_a_step: float | None = None
    seconds_left: float | None = None
    seconds: float | None = None
    """How long it took, once it is done; unknown for a run that went on: only its last process was timed."""
    began: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    validation: tuple[tuple[int, float], ...] = ()
    """(step, loss) on held-out pictures."""
    columns: tuple[Column, ...] = ()
    checkpoint: int | None = None
    adapter: str | None = None
    """Name of the LoRA in `loras/` that came of it."""
    ended: float | None = None
    unit: str = "steps"
    """What `step` and `steps` count."""

    @property
    def is_under_way(self) -> bool:
        return self.state in ("waiting", "running")

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return min(1.0, self.step / max(1, self.steps))

    @property
    def time_left(self) -> str:
        """ "5 min 10 s", or nothing when it cannot be said."""
        return duration(self.seconds_left) if self.state == "running" and self.seconds_left is not None else ""


class _Follower:
    """The events of one folder, read on from where the last look ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[dict[str, Any]] = []
        self.changes = 0
        self._offset = 0
        self._file: tuple[int, int] = (0, 0)

    def read(self) -> list[dict[str, Any]]:
        path = self.folder / "events.jsonl"
        try:
            with path.open("rb") as file:
                stat = path.stat()
                if (stat.st_dev, stat.st_ino) != self._file or stat.st_size < self._offset:
                    self._file, self._offset, self.events = (stat.st_dev, stat.st_ino), 0, []
                    self.changes += 1
                file.seek(self._offset)
                data = file.read()
        except OSError:
            self.changes += bool(self.events)
            self._offset, self.events = 0, []
            return self.events
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        fresh = [event for line in whole.splitlines() if (event := _event(line)) is not None]
        if any(event["kind"] == "resume" for event in fresh):
            # A run that went on has taken back part of what it told; the one who knows how to read that is `events`.
            self.events = read_events(self.folder)
        else:
            self.events.extend(fresh)
        self.changes += bool(fresh)
        return self.events


class Stories:
    """The runs of a workspace, for all browsers."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._followers: dict[str, _Follower] = {}
        self._configs: dict[str, tuple[int, TrainConfig]] = {}
        self._told: dict[str, tuple[tuple[int, TrainConfig, Job], Story]] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """The folders of trainings, newest first, queued or not."""
        found = [(entry.stat().st_mtime, entry.parent.name) for entry in self._workspace.runs.glob("*/config.toml")]
        newest_first = (name for _, name in sorted(found, reverse=True))
        return [name for name in newest_first if run_kind(self._workspace.runs / name) == "train"]

    def story(self, name: str, job: Job | None) -> Story | None:
        """The run of this name; None if its folder is gone or its configuration cannot be read."""
        with self._lock:
            try:
                folder = self._workspace.run_folder(name)
                config = self._config(name, folder)
            except (UserError, OSError):
                return None
            follower = self._followers.setdefault(name, _Follower(folder))
            events = follower.read()
            if job is None:  # whether it still runs is asked anew each time
                return _told(name, folder, config, events, job)
            facts = (follower.changes, config, job)
            known = self._told.get(name)
            if known is None or known[0] != facts:
                known = self._told[name] = (facts, _told(name, folder, config, events, job))
            return known[1]

    def _config(self, name: str, folder: Path) -> TrainConfig:
        changed = (folder / "config.toml").stat().st_mtime_ns
        known = self._configs.get(name)
        if known is None or known[0] != changed:
            known = self._configs[name] = (changed, _config_of(folder))
        return known[1]


def _config_of(folder: Path) -> TrainConfig:
    if run_kind(folder) == "train":
        return Run.open(folder).config
    pictures = CaptionRun.open(folder).config.caption.folder
    return TrainConfig.model_validate({"dataset": {"path": pictures}})


def _told(name: str, folder: Path, config: TrainConfig, events: Sequence[Mapping[str, Any]], job: Job | None) -> Story:
    of: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        of.setdefault(event["kind"], []).append(event)
    began = of.get("start", [{}])[-1]
    steps = of.get("step", [])
    last = steps[-1] if steps else {}
    pace = last.get("pictures_per_s")
    pictures_a_step = config.train.batch_size * config.train.accumulation
    state = _state(folder, events, job)
    is_captioning = "captioner" in began or (job is not None and job.kind == "caption")
    captioned = [event for event in of.get("captioning", []) if event["time"] >= began.get("time", 0)]
    ended = next((event for event in reversed(events) if event["kind"] in ("end", "stop", "pause", "failed")), None)
    published = of.get("published", [])
    in_one_go = all(event["step"] == 0 for event in of.get("resume", []))
    return Story(
        name=name,
        folder=folder,
        config=config,
        state=state,
        text=_text(state, events, job, ended),
        step=captioned[-1]["done"] if captioned else int(last.get("step", 0)),
        steps=began.get("pictures", 0) if is_captioning else config.train.steps,
        unit="pictures" if is_captioning else "steps",
        losses=tuple((int(event["step"]), float(event["loss"])) for event in steps),
        seconds_a_step=pictures_a_step / pace if pace else None,
        seconds_left=last.get("seconds_left"),
        seconds=ended.get("seconds") if ended and ended["kind"] == "end" and in_one_go else None,
        began=began,
        notes=tuple(str(event["text"]) for event in events if event["kind"] in ("note", "calibration")),
        problems=tuple(f"{event['picture']}: {event['text']}" for event in of.get("problem", [])),
        warnings=tuple(event["text"] for event in of.get("warning", [])),
        validation=tuple(
            (int(event["step"]), float(event["loss"])) for event in of.get("validation", [])
        ),
        columns=tuple(_columns(folder, of.get("preview", []))),
        checkpoint=max((int(event["step"]) for event in of.get("checkpoint", [])), default=None),
        adapter=Path(published[-1]["path"]).stem if published else None,
        ended=job.ended if job and job.ended else (ended["time"] if ended else None),
    )


def _state(folder: Path, events: Sequence[Mapping[str, Any]], job: Job | None) -> State:
    """The queue's word where it has one; for a run that was started by hand, what its folder tells."""
    if job is not None:
        return "waiting" if job.state == "starting" else job.state
    if run_owner(folder) is not None:
        return "running"
    last = next((event["kind"] for event in reversed(events) if event["kind"] in _ENDS), None)
    return _ENDS.get(str(last), "stopped")


_ENDS: dict[str, State] = {"end": "done", "stop": "stopped", "pause": "paused", "failed": "failed"}


def _text(state: State, events: Sequence[Mapping[str, Any]], job: Job | None, ended: Mapping[str, Any] | None) -> str:
    if state in ("failed", "stopped", "paused"):
        told = (job.text if job else "") or (ended or {}).get("text") or (ended or {}).get("reason") or ""
        return str(told)
    last = events[-1] if events else {}
    return str(last.get("text", "")) if state == "running" and last.get("kind") == "waiting" else ""


def _columns(folder: Path, previews: Sequence[Mapping[str, Any]]) -> list[Column]:
    by_step = {int(event["step"]): tuple(folder / path for path in event["paths"]) for event in previews}
    return [Column(step, pictures) for step, pictures in sorted(by_step.items())]


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None  # torn by a crash: the writer that came after it began a new line
    return event if isinstance(event, dict) and "kind" in event else None
