"""A captioning as a run: a folder with the same channels as a training's (see `run`), but for what it computes.

    config.toml     a [caption] table
    events.jsonl    start, captioning, problem, end, ... (see `events`)
    log.txt         the same story for people
    inbox/          stop, pause
    shards/1-0/     the run of the first of several processes, at the first attempt

The captions are the state: they lie beside the pictures, and what was written stays written. No torch here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_lora.caption_config import CaptionConfig, caption_toml, parse_caption_config
from diffusion_lora.errors import RunError
from diffusion_lora.run import cannot_write, emit, locked, log, write_atomically


@dataclass(frozen=True)
class CaptionRun:
    """A run folder with its configuration. One process at a time writes to it."""

    folder: Path
    config: CaptionConfig

    @classmethod
    def create(cls, folder: Path, config: CaptionConfig) -> CaptionRun:
        """A new run in a new folder. Raises RunError if something is there, OutputError."""
        folder = Path(folder).absolute()
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            raise RunError(f"{folder} exists already: name another folder for the run") from None
        except OSError as error:
            raise cannot_write(folder, error) from error
        write_atomically(folder / "config.toml", caption_toml(config).encode())
        return cls(folder, config)

    @classmethod
    def beside(cls, runs: Path, config: CaptionConfig) -> CaptionRun:
        """A new run in the first folder 1, 2, ... of `runs` that is free. Raises OutputError."""
        number = 1
        while True:
            try:
                return cls.create(runs / str(number), config)
            except RunError:
                number += 1

    @classmethod
    def open(cls, folder: Path) -> CaptionRun:
        """The run in a folder. Raises RunError, ConfigError."""
        file = Path(folder).absolute() / "config.toml"
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(f"{folder} is not a run folder: its config.toml cannot be read ({error})") from None
        return cls(file.parent, parse_caption_config(text, str(file)))

    @contextmanager
    def lock(self, before_told: Callable[[], object] = lambda: None) -> Iterator[None]:
        """Be the one process at work on the run, as `Run.lock`. Raises RunError, OutputError."""
        with locked(self.folder, before_told):
            yield

    def tell(self, kind: str, **fields: Any) -> dict[str, Any]:
        """One event, in the folder and in its log. Raises OutputError."""
        event = emit(self.folder, kind, **fields)
        log(self.folder, "  ".join([kind, *(f"{key}: {json.dumps(value)}" for key, value in fields.items())]))
        return event
