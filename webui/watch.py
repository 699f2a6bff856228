"""One look a second at engine, worker and queue, shared by all browsers; a dead engine or worker is started again.

Neither belongs to the page: whoever finds them missing calls them back. No Gradio, so that they can be on their way
while it is still being imported.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from diffusion_lora.errors import UserError
from diffusion_lora.jobs.launch import ensure_engine, ensure_worker
from diffusion_lora.jobs.store import Job
from diffusion_lora.processes import Kind, Presence, read
from diffusion_lora.workspace import Workspace
from webui import who
from webui.context import Context
from webui.engine import EngineStatus
from webui.owners import may_see_run
from webui.runs import Stories, Story
from webui.words import sentence

_LOOK_S = 1.0
_SHORT_LIFE_S = 30.0
_LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True)
class Look:
    """What was seen at the newest look. `trouble` is a sentence about the worker or the queue, or nothing."""

    engine: EngineStatus
    jobs: tuple[Job, ...] = ()
    trouble: str = ""

    def job(self, run: str) -> Job | None:
        """The job of a run, if it is in the queue."""
        return next((job for job in self.jobs if job.run == run), None)


class Watch:
    """The newest look, and the keeping alive. `begin` once a process; the threads end with it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.stories = Stories(context.workspace)
        self._engine = _Keeper(
            context.workspace, "engine", lambda: ensure_engine(context.workspace, context.base, context.device)
        )
        self._worker = _Keeper(context.workspace, "worker", lambda: ensure_worker(context.workspace))
        self._look = Look(EngineStatus("loading", "The engine is starting."))

    def begin(self) -> None:
        """Call engine and worker up and look from now on, in threads of their own."""
        for name, work in (
            ("engine keeper", self._engine.keep),
            ("worker keeper", self._worker.keep),
            ("watch", self._watch),
        ):
            threading.Thread(target=work, name=name, daemon=True).start()

    def look(self) -> Look:
        """What was seen last, as far as it is the business of whoever asks."""
        user = who.is_asking()
        if not user:
            return self._look
        runs = self._context.workspace.runs
        return replace(self._look, jobs=tuple(job for job in self._look.jobs if may_see_run(runs / job.run, user)))

    def refresh(self) -> Look:
        """Look at the queue now: after a click that changed it."""
        try:
            self._look = replace(self._look, jobs=tuple(self._context.queue.jobs()), trouble=self._worker.trouble)
        except UserError as error:
            self._look = replace(self._look, trouble=str(error))
        return self.look()

    def story(self, name: str) -> Story | None:
        """What is known of a run; with no name, of the one that is under way, or else of the last one that was."""
        look, runs, user = self.look(), self._context.workspace.runs, who.is_asking()
        # The queue lists what runs first, then what waits, then the rest from the newest on.
        trainings = [job.run for job in look.jobs if job.kind == "train"]
        names = [name] if name else trainings[:1] or self.stories.names()[:1]
        names = [run for run in names if may_see_run(runs / run, user)]
        return next((story for run in names if (story := self.stories.story(run, look.job(run)))), None)

    def _watch(self) -> None:
        while True:
            self._look = replace(self._look, engine=self._engine_status())
            self.refresh()
            time.sleep(_LOOK_S)

    def _engine_status(self) -> EngineStatus:
        status = self._context.engine.status()
        if status.state != "down":
            return status
        if self._engine.deaths:
            return replace(status, text=self._engine.trouble or "The engine died and is being started again.")
        return EngineStatus("down" if self._engine.trouble else "loading", self._engine.trouble or "The engine starts.")


class _Keeper:
    """Keeps one of the two processes alive, with growing patience when it dies again and again."""

    def __init__(self, workspace: Workspace, kind: Kind, ensure: Callable[[], Presence]) -> None:
        self._workspace = workspace
        self._kind = kind
        self._ensure = ensure
        self.deaths = 0
        self.trouble = ""

    def keep(self) -> None:
        born, short_lives, was_there = 0.0, 0, False
        while True:
            if read(self._workspace, self._kind) is None:
                if was_there:
                    self.deaths += 1
                    short_lives = short_lives + 1 if time.monotonic() - born < _SHORT_LIFE_S else 0
                    if short_lives > 1:
                        log = self._workspace.state / f"{self._kind}.log"
                        self.trouble = f"The {self._kind} died {short_lives} times in a row; {log} may say why."
                        time.sleep(min(_LONGEST_PAUSE_S, 2.0**short_lives))
                try:
                    self._ensure()
                except UserError as error:
                    self.trouble = sentence(str(error))
                    time.sleep(10 * _LOOK_S)
                else:
                    was_there, born = True, time.monotonic()
            elif time.monotonic() - born > _SHORT_LIFE_S or not short_lives:
                self.trouble, was_there = "", True
            time.sleep(_LOOK_S)
