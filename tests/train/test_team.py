"""Data-parallel training by real processes on CPUs (gloo): the same run as one process with the whole batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_lora.config import TrainConfig, parse_train_config, to_toml
from diffusion_lora.events import read_events
from diffusion_lora.lora.adapter import read_adapter
from diffusion_lora.run import Run
from diffusion_lora.train.carry_out import carry_out
from diffusion_lora.train.team import Team, is_leader, joined_team
from diffusion_lora.workspace import Workspace


def changed(config: TrainConfig, *settings: str) -> TrainConfig:
    return parse_train_config(to_toml(config), source="test", overrides=settings)


def together(folder: Path, checkout: Path, processes: int) -> "subprocess.CompletedProcess[str]":
    """`torchrun -m diffusion_lora run FOLDER`; accelerate launch sets the same variables."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [*command, "-m", "diffusion_lora", "run", str(folder)],
        capture_output=True, text=True, timeout=300, check=False, env=environment,
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_with_half_the_batch_are_one_with_all_of_it(
    config: TrainConfig, tmp_path: Path, checkout: Path
) -> None:
    """Other rows in one of them, a gradient that is not added up, or a mean of means would each show in the losses."""
    config = changed(
        config, "train.precision=fp32", "optimizer.name=adamw", "output.dtype=fp32", "train.steps=4",
        "train.accumulation=2", "dataset.flip=true", "sweep.lora.rank=[2, 4]", "checkpoint.every=2",
        "preview.every=4", 'preview.prompts=["a red thing"]', "preview.steps=1", "output.name=mine",
    )  # fmt: skip
    whole = Run.create(tmp_path / "whole", changed(config, "train.batch_size=2"))
    carry_out(whole, resume=False)
    workspace = Workspace.open(tmp_path / "workspace")
    run = Run.create(workspace.run_folder("two"), changed(config, "train.batch_size=1"))
    done = together(run.folder, checkout, 2)
    assert done.returncode == 0, done.stderr

    ours, theirs = ([e for e in read_events(one.folder) if e["kind"] == "step"] for one in (run, whole))
    assert [event["step"] for event in ours] == [1, 2, 3, 4]  # one process tells of them, once
    for mine, expected in zip(ours, theirs):
        for name in ("rank2", "rank4"):
            assert mine["adapters"][name] == pytest.approx(expected["adapters"][name], rel=1e-5)
    for name in ("rank2", "rank4"):
        twin = read_adapter(whole.adapter_file(name))
        assert read_adapter(run.adapter_file(name)).allclose(twin, rtol=1e-3, atol=1e-4)
    kinds = [event["kind"] for event in read_events(run.folder, current=False) if event["kind"] != "step"]
    ending = [*["parity"] * 2, "preview", "sweep", "end", *["published"] * 2]
    assert kinds == ["start", "checkpoint", "checkpoint", *ending]
    assert read_events(run.folder)[0]["batch_size"] == 4
    assert sorted(path.stem for path in workspace.loras.iterdir()) == ["mine-rank2", "mine-rank4"]


def test_alone_there_is_nobody_to_ask() -> None:
    assert is_leader()
    with joined_team("cpu") as team:
        assert team == Team(0, 1, "cpu")
        assert team.leads
        assert team.told("word") == "word"
        assert team.any([True, False]) == [True, False]
