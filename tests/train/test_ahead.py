"""Batches made a step before they are needed, losses looked at a step after: no number changes, no bad step is kept."""

import threading
import time
from pathlib import Path

import pytest
import torch

from diffusion_lora.config import TrainConfig, parse_train_config, to_toml
from diffusion_lora.errors import RunError
from diffusion_lora.events import read_events
from diffusion_lora.lora.adapter import read_adapter
from diffusion_lora.run import Run
from diffusion_lora.train.ahead import Ahead, Outcomes
from diffusion_lora.train.checkpoint import checkpoints
from diffusion_lora.train.trainer import train


def changed(config: TrainConfig, *settings: str) -> TrainConfig:
    return parse_train_config(to_toml(config), source="test", overrides=settings)


def test_the_next_batch_is_made_while_this_one_is_used() -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        assert threading.current_thread() is not threading.main_thread()
        return step * 10

    with Ahead(make, 3, 6) as ahead:
        assert ahead.take(3) == 30
        deadline = time.monotonic() + 10
        while made != [3, 4]:
            assert time.monotonic() < deadline
        assert [ahead.take(4), ahead.take(5)] == [40, 50]
        with pytest.raises(ValueError, match="step 6 is not the next"):
            ahead.take(6)
    assert made == [3, 4, 5]


def test_what_goes_wrong_in_making_a_batch_shows_where_it_is_wanted() -> None:
    with Ahead(lambda step: 1 // step, 0, 2) as ahead, pytest.raises(ZeroDivisionError):
        ahead.take(0)


def test_outcomes_come_late_and_in_order() -> None:
    outcomes = Outcomes(late=1)
    assert outcomes.put({"step": 0}, torch.tensor([1.0])) == []
    (due,) = outcomes.put({"step": 1}, torch.tensor([2.0]))
    assert (due.facts, due.values) == ({"step": 0}, [1.0])
    assert [(left.facts["step"], left.values) for left in outcomes.rest()] == [(1, [2.0])]


def test_a_run_that_looks_late_tells_the_same_story(config: TrainConfig, tmp_path: Path) -> None:
    config = changed(config, "train.steps=4", "checkpoint.every=2", "output.dtype=fp32")
    stories, adapters = [], []
    for late in (0, 1):
        run = Run.create(tmp_path / str(late), config)
        adapters.append(read_adapter(train(run, config, late=late)))
        untimed = ("time", "seconds", "pictures_per_s", "seconds_left")
        stories.append([{k: v for k, v in event.items() if k not in untimed} for event in read_events(run.folder)])
    assert stories[0] == stories[1]
    assert adapters[0].allclose(adapters[1])


def test_a_bad_step_that_is_found_late_reaches_no_file(config: TrainConfig, tmp_path: Path) -> None:
    """The step after it has been computed by then; neither a checkpoint nor the adapter is written of either."""
    wild = changed(config, "optimizer.lr=1e30", "optimizer.warmup_steps=0", "checkpoint.every=1", "train.steps=5")
    sentences = []
    for late in (0, 1):
        run = Run.create(tmp_path / str(late), wild)
        with pytest.raises(RunError) as caught:
            train(run, wild, late=late)
        sentences.append(str(caught.value).replace(str(run.folder), "RUN"))
        state = torch.load(checkpoints(run)[-1][1], weights_only=True)
        assert all(segment.isfinite().all() for segment in state["segments"].values())
        assert not run.adapter_path.exists()
    assert sentences[0] == sentences[1]
