"""Every optimizer goes on bit for bit in the real trainer, twice in a row, with everything random and averaged on."""

from pathlib import Path
from typing import get_args

import pytest
import torch

from diffusion_lora.config import OptimizerTable, TrainConfig, parse_train_config, to_toml
from diffusion_lora.events import read_events
from diffusion_lora.lora.adapter import read_adapter
from diffusion_lora.run import Run
from diffusion_lora.train.checkpoint import checkpoints
from diffusion_lora.train.trainer import train

ON = (
    "dataset.flip=true", "dataset.shuffle=true", "dataset.caption_dropout=0.3", "dataset.cache=ram", "lora.dropout=0.1",
    "loss.noise_offset=0.05", "optimizer.schedule=constant", "optimizer.ema_decay=0.9", "output.dtype=fp32",
)  # fmt: skip


def changed(config: TrainConfig, *settings: str) -> TrainConfig:
    return parse_train_config(to_toml(config), source="test", overrides=settings)


def story(run: Run) -> list[tuple[int, float, float]]:
    steps = [event for event in read_events(run.folder) if event["kind"] == "step"]
    return [(event["step"], event["loss"], event["grad_norm"]) for event in steps]


@pytest.mark.parametrize("name", get_args(OptimizerTable.model_fields["name"].annotation))
def test_a_run_that_was_ended_twice_is_the_run_that_never_was(config: TrainConfig, tmp_path: Path, name: str) -> None:
    rates = ("optimizer.lr=1", "optimizer.text_lr=1") if name == "prodigy" else ()
    config = changed(config, *ON, *rates, f"optimizer.name={name}")
    whole = Run.create(tmp_path / "whole", config)
    train(whole, config)
    run = Run.create(tmp_path / "run", changed(config, "train.steps=1"))
    train(run, run.config)
    for steps in (2, 3):
        longer = changed(config, f"train.steps={steps}")
        train(Run.resume(run.folder, longer), longer, resume=True)
    assert story(run) == story(whole)
    assert len({loss for _, loss, _ in story(run)}) == 3
    ours, theirs = (torch.load(checkpoints(one)[-1][1], weights_only=True)["segments"] for one in (run, whole))
    assert all(torch.equal(ours[segment], theirs[segment]) for segment in theirs)
    assert read_adapter(run.adapter_path).allclose(read_adapter(whole.adapter_path))


def test_a_batch_split_in_two_passes_is_the_same_step(config: TrainConfig, tmp_path: Path) -> None:
    config = changed(config, "train.precision=fp32", "optimizer.name=adamw", "dataset.flip=true", "train.steps=5")
    losses = []
    for settings in (("train.batch_size=4",), ("train.batch_size=2", "train.accumulation=2")):
        one = changed(config, *settings)
        run = Run.create(tmp_path / settings[0], one)
        train(run, one)
        losses.append([loss for _, loss, _ in story(run)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
