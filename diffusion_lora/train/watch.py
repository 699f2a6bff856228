"""Looks at a training's health as it goes, and tells each warning once: the `warning` events of a run.

What is healthy is `health`'s to say; here is where its numbers come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from diffusion_lora.events import read_events
from diffusion_lora.run import Run
from diffusion_lora.train.ahead import Outcome
from diffusion_lora.train.health import Health, Warned
from diffusion_lora.train.learner import Learner
from diffusion_lora.train.movement import movement
from diffusion_lora.train.outcome import Tell, segment_norms
from diffusion_lora.train.prepare import Prepared


class Watch:
    """The health of all learners of a run. A run that goes on does not repeat what it was warned of before."""

    def __init__(self, run: Run, ready: Prepared, learners: Sequence[Learner], tell: Tell) -> None:
        self._run, self._ready, self._learners, self._tell = run, ready, learners, tell
        told = [event for event in read_events(run.folder) if event["kind"] == "warning"]
        self._health = [
            Health(one.config, {event["about"] for event in told if event.get("adapter", "") == one.name})
            for one in learners
        ]

    def steps(self, outcomes: Sequence[Outcome]) -> None:
        """Look at what came of some steps."""
        for outcome in outcomes:
            step = outcome.facts["step"] + 1
            norms = segment_norms(outcome)
            for index, health in self._well():
                self._say(step, index, health.of_step(step, outcome.values[index], norms[index]))

    def adapters(self, step: int) -> None:
        """Look at the adapters as they are after `step` steps, when it is time to: waits for the device."""
        for index, health in self._well():
            if health.due(step):
                layers = self._learners[index].adapter.layers
                self._say(step, index, health.of_movement(step, movement(layers, self._ready.bank.weight)))

    def validation(self, step: int, courses: Mapping[str, Sequence[tuple[int, float]]]) -> None:
        """Look at the losses on held-out pictures so far, by the learners' names."""
        for index, health in self._well():
            self._say(step, index, health.of_validation(courses[self._learners[index].name]))

    def previews(self, step: int, names: Sequence[str]) -> None:
        """Look at the previews just drawn, named relative to the folder, those of all adapters in order."""
        for index, health in self._well():
            name = self._learners[index].name
            own = [one for one in names if f"-{name}-" in one] if name else names
            self._say(step, index, health.of_previews(step, [self._run.folder / name for name in own]))

    def _well(self) -> list[tuple[int, Health]]:
        return [(i, health) for i, health in enumerate(self._health) if self._learners[i].diverged_at is None]

    def _say(self, step: int, index: int, found: Sequence[Warned]) -> None:
        name = self._learners[index].name
        for warning in found:
            which = {"adapter": name} if name else {}
            text = f"{name}: {warning.text}" if name else warning.text
            self._tell("warning", step=step, about=warning.about, text=text, **which)
