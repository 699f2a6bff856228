"""What a run tells of its steps, and what it makes of a step whose numbers are not finite."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_lora.config import TrainConfig
from diffusion_lora.errors import RunError
from diffusion_lora.run import Run
from diffusion_lora.train.ahead import Outcome
from diffusion_lora.train.checkpoint import checkpoints
from diffusion_lora.train.draws import Draw
from diffusion_lora.train.learner import Learner
from diffusion_lora.train.prepare import Prepared

Tell = Callable[..., None]


def start_facts(config: TrainConfig, ready: Prepared, learners: Sequence[Learner], processes: int) -> dict[str, Any]:
    """The fields of `start`."""
    reports = [adapter.report for adapter in ready.adapters.values()]
    facts = {
        "steps": config.train.steps,
        "batch_size": config.train.batch_size * config.train.accumulation * processes,
        "pictures": len(ready.dataset.items),
        "base": f"{ready.model.name}, {ready.model.kind}",
        "device": str(ready.model.device),
        "precision": config.train.precision,
        "optimizer": ", ".join(dict.fromkeys(learner.optimizer.name.rpartition(".")[2] for learner in learners)),
        "layers": max(report.layers for report in reports),
        "parameters": sum(report.parameters for report in reports),
        "share": round(sum(report.share_percent for report in reports), 2),
    }
    if len(learners) > 1:
        facts["adapters"] = [learner.name for learner in learners]
    return facts


def step_facts(step: int, learners: Sequence[Learner], draws: Sequence[Draw]) -> dict[str, Any]:
    """What the host knows of a step while the device is still at it."""
    return {
        "step": step,
        "rates": [learner.optimizer.rates() for learner in learners],
        "segments": [tuple(learner.optimizer.parts) for learner in learners],
        "pictures": tuple(dict.fromkeys(name for draw in draws for name in draw.names)),
    }


def step_values(losses: Tensor, norms: Sequence[Tensor]) -> Tensor:
    """What the device knows of a step, one vector: losses [learners], gradient norms, then those of all segments."""
    return torch.cat([losses, torch.stack([norm[0] for norm in norms]), *(norm[1:] for norm in norms)])


def segment_norms(outcome: Outcome) -> list[dict[str, float]]:
    """For each learner the gradient norm of each trained segment, before clipping."""
    segments = outcome.facts["segments"]
    values = iter(outcome.values[2 * len(segments) :])
    return [{name: next(values) for name in names} for names in segments]


class Pace:
    """How fast a run goes in this process, from the second step on: the first one also warms caches up."""

    def __init__(self, first_step: int) -> None:
        self._first_step, self._since_s = first_step, 0.0

    def told(
        self, config: TrainConfig, learners: Sequence[Learner], outcome: Outcome, processes: int
    ) -> dict[str, Any]:
        """The fields of `step`: those of the only adapter, or means over a sweep's with each one's own beside."""
        step = outcome.facts["step"] + 1
        done = step - self._first_step
        self._since_s = self._since_s or time.monotonic()
        seconds_per_step = (time.monotonic() - self._since_s) / (done - 1) if done > 1 else math.inf
        losses, norms = outcome.values[: len(learners)], outcome.values[len(learners) :]
        well = [index for index, learner in enumerate(learners) if learner.diverged_at is None]
        rates = outcome.facts["rates"][0]
        pictures = config.train.batch_size * config.train.accumulation * processes
        told = {
            "step": step,
            "loss": sum(losses[index] for index in well) / len(well),
            "lr": rates.get("unet", 0.0),
            "text_lr": rates.get("te", 0.0),
            **({"word_lr": rates["word"]} if "word" in rates else {}),
            "grad_norm": _number(sum(norms[index] for index in well) / len(well)),
            **({"grad_norms": _numbers(segment_norms(outcome)[0])} if len(learners) == 1 else {}),
            "pictures_per_s": round(pictures / seconds_per_step, 2) if done > 1 else None,
            "seconds_left": round(seconds_per_step * (config.train.steps - step), 1) if done > 1 else None,
        }
        if len(learners) > 1:
            told["adapters"] = {
                learners[index].name: {"loss": losses[index], "grad_norm": _number(norms[index])} for index in well
            }
        return told


def judge(run: Run, learners: Sequence[Learner], outcome: Outcome, tell: Tell) -> None:
    """Stop a learner whose loss or gradient is not finite: alone with RunError, in a sweep the others go on.

    An fp16 gradient may overflow: the scaler then skips the step and lowers its scale.
    """
    step, count = outcome.facts["step"], len(learners)
    losses, norms = outcome.values[:count], outcome.values[count : 2 * count]
    for learner, loss, norm in zip(learners, losses, norms, strict=True):
        finite = math.isfinite(loss) and (math.isfinite(norm) or learner.scaler.is_enabled())
        if finite or learner.diverged_at is not None:
            continue
        learner.diverged_at = step
        sentence = _diverged(run, learner, step, loss, norm, outcome.facts["pictures"])
        if any(other.diverged_at is None for other in learners):
            tell("note", text=f"{learner.name} {sentence}; the other adapters go on")
        else:
            tell("stop", step=step, reason=f"loss {loss}, gradient norm {norm}")
            raise RunError(sentence)


def _diverged(run: Run, learner: Learner, step: int, loss: float, norm: float, names: Sequence[str]) -> str:
    config = learner.config
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
    saved = checkpoints(run)
    kept = f"the state of step {saved[-1][0]} is kept in {saved[-1][1]}" if saved else "no checkpoint had been due yet"
    remedies = [f"a lower optimizer.lr (say {config.optimizer.lr / 3:.1g})"]
    if config.train.precision != "fp32":
        remedies.append('train.precision = "fp32"')
    remedies.append("a look at these pictures")
    return (
        f"stopped in step {step + 1}: {what}; pictures in it: {', '.join(names)}; "
        f"{kept}; try {', '.join(remedies[:-1])}, or {remedies[-1]}"
    )


def _numbers(values: dict[str, float]) -> dict[str, float | str]:
    return {name: _number(value) for name, value in values.items()}


def _number(value: float) -> float | str:
    """JSON knows no infinity."""
    return value if math.isfinite(value) else str(value)
