"""Parity: the exported file, read again, draws what the training showed; a spoilt one is noticed."""

from pathlib import Path

import pytest

from diffusion_lora.config import PreviewTable, TrainConfig, parse_train_config, to_toml
from diffusion_lora.events import read_events
from diffusion_lora.images import open_image
from diffusion_lora.lora.adapter import read_adapter, write_adapter
from diffusion_lora.lora.header import read_header
from diffusion_lora.run import Run
from diffusion_lora.train.checkpoint import checkpoints, load_checkpoint
from diffusion_lora.train.fitting import Fitting
from diffusion_lora.train.learner import Learner
from diffusion_lora.train.parity import check_parity
from diffusion_lora.train.prepare import Prepared, prepare
from diffusion_lora.train.trainer import train

_TABLE = PreviewTable(prompts=("a red thing", "a blue thing"), steps=6)


def changed(config: TrainConfig, *settings: str) -> TrainConfig:
    return parse_train_config(to_toml(config), source="test", overrides=settings)


def strong(config: TrainConfig, *settings: str) -> TrainConfig:
    """What an adapter does must be seen: a difference of nothing from nothing would prove nothing."""
    return changed(config, "train.steps=4", "optimizer.lr=0.05", "optimizer.warmup_steps=0", *settings)


def standing(run: Run) -> tuple[Prepared, Learner]:
    """The run as it stood after its last step."""
    ready = prepare(run.config, lambda picture, why: None)
    learner = Learner.of("", run.config, ready.adapter, ready.model.device)
    load_checkpoint(checkpoints(run)[-1][1], [learner], Fitting(run.config.train, ready, print), ready.folded)
    return ready, learner


@pytest.mark.parametrize(
    "settings",
    [
        ["lora.targets=wide"],
        ["lora.alpha=2.0", "lora.rslora=true", "optimizer.ema_decay=0.9"],
        ["lora.dora=output"],
        ["lora.initial=pissa"],
        ["word.text=zib", "word.vectors=1"],
    ],
    ids=lambda settings: settings[0].partition("=")[2],
)
def test_what_the_file_draws_is_what_the_training_showed(
    config: TrainConfig, tmp_path: Path, settings: list[str]
) -> None:
    run = Run.create(tmp_path / "run", strong(config, "output.dtype=fp32", *settings))
    train(run, run.config)
    told = next(event for event in read_events(run.folder) if event["kind"] == "parity")
    assert told["agrees"]
    assert told["difference"] <= 1e-4
    assert all(event.get("about") != "parity" for event in read_events(run.folder))


def test_a_file_that_was_spoilt_after_export_is_noticed(config: TrainConfig, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", strong(config))
    train(run, run.config)
    ready, learner = standing(run)
    whole = run.adapter_path.read_bytes()
    fine = check_parity(ready, run.config, learner, run.adapter_path, _TABLE)
    assert (fine.problem, fine.difference < 0.01) == ("", True)  # fp16 storage

    one_byte = bytearray(whole)
    one_byte[read_header(run.adapter_path).data_start + 1001] ^= 0x08
    run.adapter_path.write_bytes(one_byte)
    assert "their hash is another" in check_parity(ready, run.config, learner, run.adapter_path, _TABLE).problem

    run.adapter_path.write_bytes(whole[:-100])
    cut = check_parity(ready, run.config, learner, run.adapter_path, _TABLE)
    assert cut.problem
    assert cut.latents is None

    run.adapter_path.write_bytes(whole)
    other = read_adapter(run.adapter_path)
    for layer in other.layers.values():
        layer.tensors()["lora_up.weight"].mul_(0.5)  # whole, with a right hash, and another adapter
    write_adapter(other, run.adapter_path)
    changed_file = check_parity(ready, run.config, learner, run.adapter_path, _TABLE)
    assert "what it draws differs by" in changed_file.problem
    assert changed_file.difference > 0.02
    assert ready.bank.names == (learner.adapter.name,), "the file's adapter stayed in the model"


def test_the_last_previews_are_drawn_with_the_file(config: TrainConfig, tmp_path: Path) -> None:
    shown = strong(config, "preview.every=2", 'preview.prompts=["a red thing", "a blue thing"]', "preview.steps=3")
    run = Run.create(tmp_path / "run", shown)
    train(run, shown)
    kinds = [(e["kind"], e["step"]) for e in read_events(run.folder) if e["kind"] in ("preview", "parity")]
    assert kinds == [("preview", 2), ("parity", 4), ("preview", 4)]
    assert open_image(run.folder / "previews/step-000004-1.png").size == (64, 64)
