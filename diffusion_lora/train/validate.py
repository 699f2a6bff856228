"""Validation: the loss on held-out pictures at fixed timesteps and noise, the best adapter so far, an early stop.

    step 0 -> every `validation.every` steps -> the last: measure -> `validation` event -> best.safetensors where lowest

What a training step says of its loss is mostly which timesteps it drew; here only what was learned moves the curve.
When it falls, what is learned holds for other pictures too; when it turns, pictures are being learned by heart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from diffusion_lora.config import TrainConfig
from diffusion_lora.events import read_events
from diffusion_lora.run import Run, write_atomically
from diffusion_lora.train.learner import Learner
from diffusion_lora.train.outcome import Tell
from diffusion_lora.train.prepare import Prepared
from diffusion_lora.train.probe import make_probe, measure
from diffusion_lora.train.results import write_adapter_of

_MEASUREMENTS = 20
_AS_GOOD = 1.01  # a loss that is no more above the lowest is not worth a word


class Validation:
    """The validation of all learners of a run. What an earlier process of the run measured counts as measured."""

    def __init__(self, run: Run, config: TrainConfig, ready: Prepared, learners: Sequence[Learner], tell: Tell) -> None:
        self._run, self._config, self._ready, self._learners, self._tell = run, config, ready, learners, tell
        table, held = config.validation, ready.held_out
        self._probe = make_probe(ready, config, held, timesteps=table.timesteps) if held is not None else None
        self.every = table.every or max(1, math.ceil(config.train.steps / _MEASUREMENTS))
        told = [event for event in read_events(run.folder) if event["kind"] == "validation"]
        self.courses: dict[str, list[tuple[int, float]]] = {
            one.name: [
                (event["step"], event["adapters"][one.name] if one.name else event["loss"])
                for event in told
                if not one.name or one.name in event["adapters"]
            ]
            for one in learners
        }

    def due(self, step: int) -> bool:
        """Whether it is time to measure, after `step` steps: then `look` does."""
        if self._probe is None or any(known == step for course in self.courses.values() for known, _ in course):
            return False
        return step % self.every == 0 or step == self._config.train.steps

    def look(self, step: int) -> None:
        """Measure, tell, and keep each adapter that was never better. Raises OutputError."""
        assert self._probe is not None
        rows = measure(self._ready, self._learners, self._probe).mean(1).tolist()
        well = {one: loss for one, loss in zip(self._learners, rows, strict=True) if one.diverged_at is None}
        best = []
        for one, loss in well.items():
            course = self.courses[one.name]
            if math.isfinite(loss) and all(loss < earlier for _, earlier in course):
                best.append(one)
            course.append((step, loss))
        # Before the first step there is nothing to keep but the base.
        for one in best if step else []:
            write_adapter_of(self._run, self._ready, one, step, best_path(self._run, one.name))
        mean = sum(well.values()) / len(well)
        self._tell(
            "validation",
            step=step,
            loss=mean if math.isfinite(mean) else str(mean),
            best=bool(best) and bool(step),
            pictures=len(self._probe.names),
            **({"adapters": {one.name: loss for one, loss in well.items()}} if len(self._learners) > 1 else {}),
        )

    def may_end(self, step: int) -> bool:
        """Whether a run may be stopped early after `step` steps: the same answer in every process of a team."""
        return self._probe is not None and self._config.validation.patience > 0 and step % self.every == 0

    @property
    def has_turned(self) -> bool:
        """Whether to stop: no adapter has had a new lowest loss for `validation.patience` measurements."""
        patience = self._config.validation.patience
        courses = [self.courses[one.name] for one in self._learners if one.diverged_at is None]
        return bool(patience) and all(len(course) - 1 - lowest(course) >= patience for course in courses)

    def conclude(self, step: int) -> None:
        """After the last step: say which was best, and make its adapter the run's, if that was asked for or the run was
        stopped early. Raises OutputError."""
        stopped = step < self._config.train.steps
        if stopped:
            patience = self._config.validation.patience
            why = f"{patience} measurements on held-out pictures brought no lower loss"
            self._tell("note", text=f"stopped early, after step {step}: {why}")
        for one in self._learners:
            course = self.courses[one.name]
            kept = best_path(self._run, one.name)
            if one.diverged_at is not None or len(course) < 2 or not kept.exists():
                continue
            best, loss = course[lowest(course)]
            last = course[-1][1]
            who = f"{one.name}: " if one.name else ""
            wanted = stopped or self._config.validation.result == "best"
            if best in (0, step) or (not wanted and last <= _AS_GOOD * loss):
                continue
            then = f"{loss:.4f}, at step {course[-1][0]} it was {last:.4f}"
            text = f"{who}on held-out pictures the loss was lowest after step {best} ({then}): "
            if wanted:
                write_atomically(self._run.adapter_file(one.name), kept.read_bytes())
                self._tell("note", text=text + "the adapter is that of this step")
            else:
                self._tell("note", text=f"{text}it is kept as {kept.name}, the adapter is that of the last step")


def lowest(course: Sequence[tuple[int, float]]) -> int:
    """The place of the lowest loss of a course, the earliest of equal ones."""
    return min(range(len(course)), key=lambda place: (not math.isfinite(course[place][1]), course[place][1]))


def best_path(run: Run, name: str = "") -> Path:
    """The file of the best adapter so far; in a sweep each has its own."""
    return run.folder / (f"best-{name}.safetensors" if name else "best.safetensors")
