"""A workspace, runs on the tiny base in it, and an end for every process that a test has left there."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image

from diffusion_lora.config import parse_train_config
from diffusion_lora.jobs.store import Queue
from diffusion_lora.processes import read
from diffusion_lora.run import Run, run_owner
from diffusion_lora.workspace import Workspace

MakeRun = Callable[..., Run]


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    workspace = Workspace.open(tmp_path / "workspace")
    yield workspace
    # The worker first: it would start the next run.
    left = [read(workspace, "worker"), *(run_owner(folder) for folder in workspace.runs.iterdir())]
    left += [job.process for job in Queue(workspace).active()]
    for process in left:
        if process is not None and psutil.pid_exists(process.pid):
            os.kill(process.pid, signal.SIGKILL)


@pytest.fixture
def queue(workspace: Workspace) -> Queue:
    return Queue(workspace)


@pytest.fixture
def make_run(workspace: Workspace, tiny_base: Path, tmp_path: Path) -> MakeRun:
    """Write a run into the workspace: three short steps unless told otherwise."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (64, 64), colour).save(pictures / f"{index}.png")
        (pictures / f"{index}.txt").write_text(f"a {colour} thing", encoding="utf-8")

    def make(name: str, **settings: object) -> Run:
        values = {
            "model.base": tiny_base, "dataset.path": pictures, "lora.rank": 2, "train.steps": 3, "train.batch_size": 1,
            "train.precision": "fp32", "train.device": "cpu", "train.threads": 1, "optimizer.name": "adamw",
            "preview.steps": 2, "output.name": name,
            **{key.replace("__", "."): value for key, value in settings.items()},
        }  # fmt: skip
        text = f"[dataset]\npath = '{pictures}'\n"
        overrides = [f"{key}={value}" for key, value in values.items()]
        return Run.create(workspace.run_folder(name), parse_train_config(text, source="test", overrides=overrides))

    return make
