"""States of a training run from which it goes on exactly: adapters, optimizers, gradient scalers and step, in one file.

Nothing random is stored: what a step draws is a function of (seed, step). Written whole or not at all; the newest
`keep` stay. What a learner's state is made of is the learner's to say.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from diffusion_lora.errors import RunError
from diffusion_lora.run import Run, cannot_write, write_atomically
from diffusion_lora.train.fitting import Fitting
from diffusion_lora.train.learner import Learner

_NAME = re.compile(r"step-(\d{8})\.pt")


def checkpoints(run: Run) -> list[tuple[int, Path]]:
    """(step, file) of every checkpoint of a run, oldest first."""
    found = [(_NAME.fullmatch(path.name), path) for path in (run.folder / "checkpoints").glob("step-*.pt")]
    return sorted((int(match[1]), path) for match, path in found if match)


def go_back(run: Run, step: int) -> None:
    """Make the checkpoint of `step` the newest; later ones are set aside, in `checkpoints/set-aside-N/`.

    Raises RunError if there is none of that step, naming those there are; OutputError.
    """
    saved = checkpoints(run)
    if step not in dict(saved):
        there = ", ".join(str(number) for number, _ in saved) or "none"
        raise RunError(
            f"{run.folder} has no checkpoint of step {step}, those of these steps are there: {there} "
            "(checkpoint.keep says how many stay)"
        )
    later = [path for number, path in saved if number > step]
    if not later:
        return
    taken = len(list((run.folder / "checkpoints").glob("set-aside-*")))
    aside = run.folder / "checkpoints" / f"set-aside-{taken + 1}"
    try:
        aside.mkdir()
        for path in reversed(later):  # the newest first: whatever happens in between, what is left is a story
            path.rename(aside / path.name)
    except OSError as error:
        raise cannot_write(aside, error) from error


def save_checkpoint(
    run: Run,
    step: int,
    learners: Sequence[Learner],
    fitting: dict[str, Any],
    folded: Sequence[tuple[str, float]] = (),
    *,
    keep: int,
) -> Path:
    """Write the state after `step` steps, then let go of the oldest.

    `fitting` is the state of how passes are computed, `folded` says what is part of the base.

    Raises OutputError, and RunError if the adapter holds numbers that are not finite; the older checkpoints then stay.
    """
    for learner in learners:
        broken = [name for name, segment in learner.adapter.segments.items() if not segment.isfinite().all()]
        if broken and learner.diverged_at is None:
            raise RunError(
                f"stopped at step {step}: the adapter holds numbers that are not finite ({', '.join(broken)}), so "
                "nothing of it is saved and the checkpoints before stay; try a lower optimizer.lr "
                f"(say {learner.config.optimizer.lr / 3:.1g})"
            )
    states = {learner.name: learner.state() for learner in learners}
    # Alone, a learner's state lies at the top: what was saved before there were sweeps is read by the same rule.
    alone = states.get("")
    whole = {"step": step, "folded": list(folded), "fitting": fitting}
    state = {**whole, **(alone if alone is not None else {"side_by_side": states})}
    # Through memory: torch turns a full disk into a RuntimeError of its own, a plain write says what happened.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path = run.folder / "checkpoints" / f"step-{step:08d}.pt"
    write_atomically(path, buffer.getvalue())
    for _, old in checkpoints(run)[:-keep]:
        try:
            old.unlink()
        except OSError as error:
            raise cannot_write(old, error) from error
    return path


def load_checkpoint(
    path: Path, learners: Sequence[Learner], fitting: Fitting, folded: Sequence[tuple[str, float]] = ()
) -> int:
    """Put everything back in place and return the step. Raises RunError if the file does not fit, or is damaged."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        step = int(state["step"])
        states = state["side_by_side"] if "side_by_side" in state else {"": {**state, "layout": state["layout"]}}
    except Exception as error:  # torch raises a dozen different ones for a damaged file
        raise RunError(
            f"the checkpoint {path} is damaged ({type(error).__name__}): delete it to go on from the one before"
        ) from error
    if [tuple(one) for one in state.get("folded", [])] != list(folded):
        raise RunError(f"the files that model.fold names are not those that the checkpoint {path} was made with")
    if states.keys() != {learner.name for learner in learners}:
        raise RunError(f"the checkpoint {path} was made with another [sweep] than the run's config.toml has now")
    for learner in learners:
        learner.restore(states[learner.name], step, path)
    if "fitting" in state:
        fitting.restore(state["fitting"])
    return step
