"""Which pictures or captions fight the rest: what each one's caption is worth, measured at fixed noise as a run goes.

A right caption helps to tell the noise in its picture; a wrong one, or a picture that is unlike the others of its kind,
helps less. So of each picture the score is log(loss with its caption / loss without any), a mean over some looks after
the training has begun: before it, the score says how foreign the pictures are to the base. Comparing a picture with
itself takes out how hard it is; a robust z (median, median absolute deviation) tells who stands out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from diffusion_lora.config import TrainConfig
from diffusion_lora.events import read_events
from diffusion_lora.run import Run
from diffusion_lora.train.learner import Learner
from diffusion_lora.train.outcome import Tell
from diffusion_lora.train.prepare import Prepared
from diffusion_lora.train.probe import make_probe, measure

_AUTOMATIC_LOOKS = 3
_AUTOMATIC_SHARE = 0.05  # of the run's time that looks may take unless they are asked for
_BACKWARD = 3  # what a row costs in a training step, in forward passes
_TIMESTEPS = 4
_LEAST_PICTURES = 8  # fewer have no rest to be compared with
_STANDS_OUT = 3.5  # Iglewicz & Hoaglin 1993: a modified z-score above it is an outlier
_TOLD = 3
_SPREAD = 1.4826  # median absolute deviations in a standard deviation of a normal distribution


@dataclass(frozen=True)
class Standing:
    """A picture among the others: `score` as above, `z` how far above the median it is."""

    name: str
    caption: str
    score: float
    z: float


class Fighting:
    """The looks at all pictures of a run. Those of an earlier process of the run count."""

    def __init__(self, run: Run, config: TrainConfig, ready: Prepared, learners: Sequence[Learner], tell: Tell) -> None:
        self._config, self._ready, self._learners, self._tell = config, ready, learners, tell
        self._steps = look_steps(config, len(ready.dataset.items))
        # A picture without caption has nothing to compare.
        self._chosen = [index for index, item in enumerate(ready.dataset.items) if item.caption]
        self.looks: dict[int, list[float]] = {
            event["step"]: event["scores"] for event in read_events(run.folder) if event["kind"] == "pictures"
        }

    def due(self, step: int) -> bool:
        """Whether it is time to look, after `step` steps."""
        return step in self._steps and step not in self.looks and len(self._chosen) >= _LEAST_PICTURES

    def look(self, step: int) -> None:
        """Measure every picture and tell; after the last look, who stands out."""
        ready, dataset = self._ready, self._ready.dataset
        losses = [
            measure(
                ready, self._learners, make_probe(ready, self._config, dataset, timesteps=_TIMESTEPS, captions=captions)
            )
            for captions in (True, False)
        ]
        well = [row for row, one in enumerate(self._learners) if one.diverged_at is None]
        scores = (losses[0] / losses[1]).log()[well].mean(0)
        if not bool(scores.isfinite().all()):
            return
        self.looks[step] = [round(score, 6) for score in scores.tolist()]
        ranked = self.ranked()
        self._tell(
            "pictures",
            step=step,
            scores=self.looks[step],
            names=[item.name for item in dataset.items],
            first=[{"picture": one.name, "score": round(one.score, 4), "z": round(one.z, 2)} for one in ranked[:_TOLD]],
        )
        if step == max(self._steps) and (found := [one for one in ranked if one.z > _STANDS_OUT]):
            self._tell("note", text=sentence(found))

    def ranked(self) -> list[Standing]:
        """All captioned pictures, who fights most first, by the mean of the looks so far."""
        items = self._ready.dataset.items
        means = [sum(look[index] for look in self.looks.values()) / len(self.looks) for index in self._chosen]
        return ranked([(items[i].name, items[i].caption) for i in self._chosen], means)


def look_steps(config: TrainConfig, pictures: int) -> list[int]:
    """After which steps all pictures are looked at: the middles of equal parts of the run.

    Unless a number is asked for it is three looks, or as many as cost no more than a twentieth of the run.
    """
    looks, steps = config.validation.picture_looks, config.train.steps
    if looks < 0:
        rows = 2 * _TIMESTEPS * pictures
        budget = _AUTOMATIC_SHARE * _BACKWARD * steps * config.train.batch_size * config.train.accumulation
        looks = min(_AUTOMATIC_LOOKS, int(budget / rows))
    return sorted({max(1, round((number + 0.5) / looks * steps)) for number in range(looks)})


def ranked(pictures: Sequence[tuple[str, str]], scores: Sequence[float]) -> list[Standing]:
    """(name, caption) of each picture with its score, the highest first."""
    middle = median(scores)
    spread = _SPREAD * median(abs(score - middle) for score in scores) or 1e-9
    found = [
        Standing(name, caption, score, (score - middle) / spread)
        for (name, caption), score in zip(pictures, scores, strict=True)
    ]
    return sorted(found, key=lambda one: -one.score)


def sentence(found: Sequence[Standing]) -> str:
    """What to say of those who stand out."""
    listed = "; ".join(f'{one.name}: "{one.caption}"' for one in found[:_TOLD])
    more = f" and {len(found) - _TOLD} more" if len(found) > _TOLD else ""
    these = "this picture or its caption fights" if len(found) == 1 else "these pictures or their captions fight"
    return f"{these} the rest ({listed}{more}): look whether each caption says what is on its picture"
