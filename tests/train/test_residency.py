"""What a step does not need leaves a device that is not main memory, and is back when it is needed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from diffusion_lora.config import TrainConfig, parse_train_config, to_toml
from diffusion_lora.events import read_events
from diffusion_lora.families.family import load_base
from diffusion_lora.run import Run
from diffusion_lora.train.residency import at_work, free_to_go, send_away
from diffusion_lora.train.trainer import train


def changed(config: TrainConfig, *settings: str) -> TrainConfig:
    return parse_train_config(to_toml(config), source="test", overrides=settings)


def test_what_is_cached_sets_free_what_made_it(config: TrainConfig) -> None:
    model = load_base(config.model.base, device="cpu")
    assert free_to_go(config, model, text_is_frozen=True) == ["vae", "te"]
    assert free_to_go(config, model, text_is_frozen=False) == ["vae"]
    assert free_to_go(changed(config, "dataset.cache=off"), model, text_is_frozen=True) == []


def test_on_a_cpu_nothing_moves(config: TrainConfig, tmp_path: Path) -> None:
    model = load_base(config.model.base, device="cpu")
    places = [parameter.data_ptr() for parameter in model.vae.parameters()]
    assert send_away(model, ["vae", "te"]) is None
    with at_work(model, ["vae", "te"]):
        assert [parameter.data_ptr() for parameter in model.vae.parameters()] == places


@contextmanager
def allocated() -> Iterator[list[int]]:
    found = [torch.cuda.memory_allocated()]
    yield found
    found.append(torch.cuda.memory_allocated())


@pytest.mark.cuda
def test_on_a_graphics_card_parts_go_and_come_and_the_run_is_told(config: TrainConfig, tmp_path: Path) -> None:
    model = load_base(config.model.base, device="cuda")
    with allocated() as before_and_after:
        told = send_away(model, ["vae", "te"])
    assert told is not None
    assert "vae, te wait in main memory" in told
    assert before_and_after[1] < before_and_after[0]
    with at_work(model, ["vae"]):
        assert next(model.vae.parameters()).is_cuda
    assert not next(model.vae.parameters()).is_cuda

    losses = []
    for preview in ("preview.every=0", "preview.every=1"):
        one = changed(config, "train.device=cuda", "optimizer.text_lr=0", preview, 'preview.prompts=["a cat"]')
        run = Run.create(tmp_path / preview, one)
        train(run, one)
        events = list(read_events(run.folder))
        losses.append([event["loss"] for event in events if event["kind"] == "step"])
        assert any("wait in main memory" in event["text"] for event in events if event["kind"] == "note")
    assert losses[0] == losses[1]
