"""What a step does not need leaves a device that is not main memory, and is back when it is needed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
import torch
from torch import nn

from diffusion_lora.config import TrainConfig, parse_train_config, to_toml
from diffusion_lora.events import read_events
from diffusion_lora.families.family import load_base
from diffusion_lora.run import Run
from diffusion_lora.train.memory import give_back
from diffusion_lora.train.on_disk import in_turn, lay_on_disk, leave_memory
from diffusion_lora.train.residency import at_work, free_to_go, send_away
from diffusion_lora.train.trainer import train


def changed(config: TrainConfig, *settings: str) -> TrainConfig:
    return parse_train_config(to_toml(config), source="test", overrides=settings)


def test_what_is_cached_sets_free_what_made_it(config: TrainConfig) -> None:
    model = load_base(config.model.base, device="cpu")
    assert free_to_go(config, model, text_is_frozen=True) == ["vae", "te"]
    assert free_to_go(config, model, text_is_frozen=False) == ["vae"]
    assert free_to_go(changed(config, "dataset.cache=off"), model, text_is_frozen=True) == []


def test_on_a_cpu_small_parts_stay_where_they_are(config: TrainConfig, tmp_path: Path) -> None:
    model = load_base(config.model.base, device="cpu")
    places = [parameter.data_ptr() for parameter in model.vae.parameters()]
    assert send_away(model, ["vae", "te"], tmp_path) is None
    with at_work(model, ["vae", "te"]):
        assert [parameter.data_ptr() for parameter in model.vae.parameters()] == places


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep an open file's name")
def test_large_parts_of_a_cpu_wait_in_a_file_and_are_the_same_when_touched(tmp_path: Path) -> None:
    """A base of SD 1.5's size would else hold half a gigabyte that no step reads."""
    big = nn.ModuleList([nn.Linear(4608, 4608), nn.Linear(4608, 4608).bfloat16()]).requires_grad_(False)
    small = nn.Conv2d(8, 8, 3).requires_grad_(False)
    before = [parameter.clone() for module in (big, small) for parameter in module.parameters()]
    held = psutil.Process().memory_info().rss
    freed = lay_on_disk([big, small], tmp_path)
    give_back()
    assert freed > 100e6
    assert psutil.Process().memory_info().rss < held - 0.9 * sum(one.nbytes for one in big.parameters())
    assert not list(tmp_path.iterdir())  # it goes with the process
    for _ in range(2):  # touched, let go, and touched again
        after = [parameter for module in (big, small) for parameter in module.parameters()]
        assert all(torch.equal(one, other) for one, other in zip(after, before, strict=True))
        touched = psutil.Process().memory_info().rss
        leave_memory([big, small])
        assert psutil.Process().memory_info().rss < touched - 0.9 * freed


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep an open file's name")
def test_a_stack_in_a_file_passes_through_memory_a_layer_at_a_time(tmp_path: Path) -> None:
    """A preview encodes its prompts at the end of a run, when memory is fullest."""
    layers = nn.ModuleList([nn.Linear(2700, 2700) for _ in range(4)]).requires_grad_(False)
    x = torch.randn(1, 2700, generator=torch.Generator().manual_seed(0))
    right = [layer(x) for layer in layers]
    assert lay_on_disk([layers], tmp_path) > 100e6
    give_back()
    resident, told = psutil.Process().memory_info().rss, []
    with in_turn([layers]):
        for layer, expected in zip(layers, right, strict=True):
            torch.testing.assert_close(layer(x), expected)
            told.append(psutil.Process().memory_info().rss - resident)
    assert max(told) < 1.5 * layers[0].weight.nbytes, "layers stayed"
    assert not any(layer._forward_hooks for layer in layers)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep an open file's name")
def test_a_disk_without_room_changes_nothing(tmp_path: Path) -> None:
    big = nn.Linear(5200, 5200).requires_grad_(False)
    (tmp_path / "file").touch()
    place = big.weight.data_ptr()
    assert lay_on_disk([big], tmp_path / "file") == 0
    assert big.weight.data_ptr() == place


@contextmanager
def allocated() -> Iterator[list[int]]:
    found = [torch.cuda.memory_allocated()]
    yield found
    found.append(torch.cuda.memory_allocated())


@pytest.mark.cuda
def test_on_a_graphics_card_parts_go_and_come_and_the_run_is_told(config: TrainConfig, tmp_path: Path) -> None:
    model = load_base(config.model.base, device="cuda")
    with allocated() as before_and_after:
        told = send_away(model, ["vae", "te"], tmp_path)
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
        assert any("in main memory" in event["text"] for event in events if event["kind"] == "note")
    assert losses[0] == losses[1]
