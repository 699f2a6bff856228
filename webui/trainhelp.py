"""What the Train tab asks the program before a run is begun: what rank suits, whether it fits, what made a file.

Each is a command in a process of its own, for it needs torch or what lies beyond the page's walls. No Gradio.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusion_lora.adopted import model_named
from diffusion_lora.config import TrainConfig, load_train_config, to_toml
from diffusion_lora.errors import AdapterFileError
from diffusion_lora.jobs.launch import answer_of
from diffusion_lora.run import Run, write_atomically
from diffusion_lora.workspace import Workspace


def rank_advice(workspace: Workspace, folder: str, base: str) -> tuple[int, str]:
    """The rank that the first gradients on these pictures ask for, and the sentence. Raises UserErrors."""
    command = ["adapter", "advise", f"--dataset={folder}", f"--base={base}", "--json"]
    told = json.loads(answer_of(command, workspace.root))
    return int(told["rank"]), f"{told['rank']} holds {round(100 * told['share'])}% of what these pictures ask for"


def preflight(workspace: Workspace, config: TrainConfig) -> str:
    """What a few real steps of a run have measured, as a sentence. Raises UserErrors, also where it does not fit."""
    with _written(workspace, config) as path:
        place = workspace.run_folder(config.output.name)
        lines = answer_of(["preflight", str(path), f"--out={place}"], workspace.root).splitlines()
    measured = [line for line in lines if line.startswith(("time:", "memory:", "disk:"))]
    return "It fits. " + ". ".join(f"{line[:1].upper()}{line[1:]}" for line in measured) + "."


def config_like(workspace: Workspace, name: str, folder: str, base: str) -> tuple[TrainConfig, list[str]]:
    """The configuration that a LoRA of the library was trained with, on another set, and what has no equal here.

    Raises UserErrors: a file that does not say how it was trained.
    """
    model = model_named(workspace, "loras", name)
    if model is None:
        raise AdapterFileError(f"the LoRA {name} is no longer in the library: choose another")
    path = workspace.state / f"like-{secrets.token_hex(6)}.toml"
    try:
        command = ["config", "from", str(model.path), f"--out={path}", f"--dataset={folder}", f"--base={base}"]
        told = answer_of(command, workspace.root)
        config = load_train_config(path)
    finally:
        path.unlink(missing_ok=True)
    return config, [line for line in told.splitlines() if ": " in line and not line.startswith(str(path))]


def extend(workspace: Workspace, run: str) -> int:
    """Let a run go on for half as long again; the new number of steps. Raises UserErrors."""
    folder = workspace.run_folder(run)
    config = Run.open(folder).config
    steps = config.train.steps + max(1, config.train.steps // 2)
    train = config.train.model_copy(update={"steps": steps})
    Run.resume(folder, config.model_copy(update={"train": train}))
    return steps


@contextmanager
def _written(workspace: Workspace, config: TrainConfig) -> Iterator[Path]:
    path = workspace.state / f"check-{secrets.token_hex(6)}.toml"
    write_atomically(path, to_toml(config).encode())
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
