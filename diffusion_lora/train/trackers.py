"""The figures of a run in TensorBoard and W&B, through accelerate's trackers, while it goes.

A tracker is one more watcher: what it gets are the run's own events, and the run's folder stays the truth. One that
fails on the way is left, which is told; the training goes on. Only the process that writes the run has trackers.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any

from diffusion_lora.config import TrainConfig
from diffusion_lora.errors import ConfigError
from diffusion_lora.events import Event, Progress, read_events
from diffusion_lora.run import Run

_NO_FIGURES = ("time", "kind", "step")
_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}


@contextmanager
def tracked(run: Run, config: TrainConfig, progress: Progress, *, leads: bool = True) -> Iterator[Progress]:
    """A `Progress` that hands each event on, and its figures to the trackers of the configuration.

    They are opened at the run's `start`, so that a run that cannot begin leaves nothing in them. ConfigError where a
    package is missing, before anything was done.
    """
    wanted = [name for name, on in (("tensorboard", config.tracking.tensorboard), ("wandb", _wandb_on(config))) if on]
    for name in wanted:
        _check_there(name)
    if not wanted or not leads:
        yield progress
        return
    trackers = _Trackers(run, config, wanted, progress)
    try:
        yield trackers.take
    finally:
        trackers.finish()


def figures(event: Event) -> dict[str, float]:
    """The numbers of an event as `kind/field`, those of its tables as `kind/field/key`; what is no number is left out.

    Numbers that are not finite stand as text in an event; they are figures too.
    """
    found: dict[str, float] = {}
    _collect(found, str(event["kind"]), {key: value for key, value in event.items() if key not in _NO_FIGURES})
    return found


def _collect(found: dict[str, float], name: str, value: Any) -> None:
    match value:
        case bool():
            found[name] = float(value)
        case int() | float():
            found[name] = float(value)
        case "nan" | "inf" | "-inf":
            found[name] = float(value)
        case Mapping():
            for key, inner in value.items():
                _collect(found, f"{name}/{key}", inner)


class _Trackers:
    """The trackers of one process of a run."""

    def __init__(self, run: Run, config: TrainConfig, wanted: Sequence[str], progress: Progress) -> None:
        self._run, self._config, self._wanted, self._progress = run, config, wanted, progress
        self._open: dict[str, Any] = {}
        self._resumed_at: int | None = None

    def take(self, event: Event) -> None:
        """One event, to whoever watches and to the trackers."""
        self._progress(event)
        if event["kind"] == "resume":
            self._resumed_at = int(event["step"])
        elif event["kind"] == "start":
            for name in self._wanted:
                self._guarded(name, partial(self._begin, name, event))
        elif "step" in event and (told := figures(event)):
            for name, tracker in list(self._open.items()):
                self._guarded(name, partial(tracker.log, told, step=int(event["step"])))

    def finish(self) -> None:
        for name, tracker in list(self._open.items()):
            self._guarded(name, tracker.finish)

    def _begin(self, name: str, event: Event) -> None:
        from accelerate import PartialState
        from accelerate.tracking import TensorBoardTracker, WandBTracker

        PartialState()  # accelerate's own logging wants to know where it is
        config, title = self._config, self._config.output.name
        settings = {**_settings(config), **{f"start/{key}": value for key, value in figures(event).items()}}
        if name == "tensorboard":
            # What was recorded after the step of the checkpoint happens again.
            again = {} if self._resumed_at is None else {"purge_step": self._resumed_at + 1}
            # Its files are named by the second: a run that goes on within it would write over what it has recorded.
            tracker: Any = TensorBoardTracker(
                title, logging_dir=self._run.folder / "tensorboard", filename_suffix=f".{time.time_ns()}", **again
            )
        else:
            tracker = WandBTracker(
                config.tracking.project, name=title, dir=str(self._run.folder), mode=config.tracking.wandb,
                id=self._identity(), resume="allow",
            )  # fmt: skip
        tracker.start()
        self._open[name] = tracker
        if self._resumed_at is None:
            tracker.store_init_configuration(settings)

    def _identity(self) -> str:
        """The same whenever this run goes on, another for every run."""
        began = next(event["time"] for event in read_events(self._run.folder, current=False))
        return hashlib.sha256(f"{self._run.folder.name} {began}".encode()).hexdigest()[:16]

    def _guarded(self, name: str, act: Callable[[], object]) -> None:
        """A watcher's failure is not the run's: it is told, and the watcher left."""
        try:
            act()
        except Exception as error:  # what its library, its network or its disk please
            self._open.pop(name, None)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            text = f"{name} gets no more figures of this run ({reason}); the run's own folder has all of them"
            self._progress(self._run.emit("note", text=text))
            self._run.log(f"note  text: {text}")


def _wandb_on(config: TrainConfig) -> bool:
    return config.tracking.wandb != "off"


def _check_there(name: str) -> None:
    packages = _PACKAGES[name]
    if not any(find_spec(package) for package in packages):
        off = "false" if name == "tensorboard" else '"off"'
        raise ConfigError(
            f"tracking.{name} needs the package {' or '.join(packages)}, which is not installed: "
            f"pip install 'diffusion-lora[{name}]', or set tracking.{name} = {off}"
        )


def _settings(config: TrainConfig) -> dict[str, Any]:
    """All settings as `table.key`; what is neither number, text nor truth as text."""
    tables = config.model_dump(exclude={"sweep", "tracking"})
    flat = {f"{table}.{key}": value for table, values in tables.items() for key, value in values.items()}
    for key, values in config.sweep.items():
        flat[f"sweep.{key}"] = values
    return {key: value if _plain(value) else str(value) for key, value in flat.items() if value is not None}


def _plain(value: Any) -> bool:
    return isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))
