"""States of a training run from which it goes on exactly: adapter, optimizer, gradient scaler and step, in one file.

Nothing random is stored: what a step draws is a function of (seed, step). Written whole or not at all; the newest
`keep` stay.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import torch

from diffusion_lora.errors import RunError
from diffusion_lora.lora.trainable import TrainableAdapter
from diffusion_lora.run import Run, cannot_write, write_atomically
from diffusion_lora.train.optimizers import Optimizer

_NAME = re.compile(r"step-(\d{8})\.pt")


def checkpoints(run: Run) -> list[tuple[int, Path]]:
    """(step, file) of every checkpoint of a run, oldest first."""
    found = [(_NAME.fullmatch(path.name), path) for path in (run.folder / "checkpoints").glob("step-*.pt")]
    return sorted((int(match[1]), path) for match, path in found if match)


def save_checkpoint(
    run: Run,
    step: int,
    adapter: TrainableAdapter,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    *,
    keep: int,
) -> Path:
    """Write the state after `step` steps, then let go of the oldest.

    Raises OutputError; the older checkpoints then stay.
    """
    state = {
        "step": step,
        "layout": _layout(adapter),
        "ranks": adapter.state(),
        "segments": {name: parameter.detach().cpu() for name, parameter in adapter.segments.items()},
        "optimizer_name": optimizer.name,
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
    }
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
    path: Path,
    adapter: TrainableAdapter,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
) -> int:
    """Put everything back in place and return the step. Raises RunError if the file does not fit, or is damaged."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        layout = state["layout"]
    except Exception as error:  # torch raises a dozen different ones for a damaged file
        raise RunError(
            f"the checkpoint {path} is damaged ({type(error).__name__}): delete it to go on from the one before"
        ) from error
    if layout != _layout(adapter) or state["segments"].keys() != adapter.segments.keys():
        raise RunError(f"the checkpoint {path} was made with other lora settings than the run's config.toml has now")
    if state["optimizer_name"] != optimizer.name:
        theirs, ours = (name.rpartition(".")[2] for name in (state["optimizer_name"], optimizer.name))
        raise RunError(
            f"the checkpoint {path} was made with {theirs}, but here {ours} is "
            "used: go on where bitsandbytes is as it was when the run started"
        )
    with torch.no_grad():
        for name, parameter in adapter.segments.items():
            parameter.copy_(state["segments"][name])
    adapter.load_state(state.get("ranks", {}))
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    adapter.go_on_from(state["step"])
    return int(state["step"])


def _layout(adapter: TrainableAdapter) -> dict[str, list[list[int]]]:
    """Which matrices the flat segments hold: equal lengths alone do not say that they are the same ones."""
    return {
        key: [list(tensor.shape) for tensor in (*layer.trained, *(layer.start or ()))]
        for key, layer in adapter.layers.items()
    }
