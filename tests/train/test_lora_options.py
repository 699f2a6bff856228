"""The settings of `[lora]` in a real run: what is trained is what was asked for, and going on stays exact."""

from pathlib import Path

import pytest
import torch

from diffusion_lora.config import TrainConfig, parse_train_config, to_toml
from diffusion_lora.errors import ConfigError, RunError
from diffusion_lora.events import read_events
from diffusion_lora.run import Run
from diffusion_lora.train.checkpoint import checkpoints
from diffusion_lora.train.optimizers import build_optimizer
from diffusion_lora.train.prepare import prepare
from diffusion_lora.train.trainer import train

DROPOUT = ("lora.dropout=0.1", "lora.rank_dropout=0.2", "lora.module_dropout=0.1", "train.accumulation=2")
OPTIONS = {
    "dropout": DROPOUT,
    "DoRA": ("lora.dora=output", "lora.rslora=true", "lora.targets=attention+mlp", *DROPOUT),
    "PiSSA": ("lora.initial=pissa", "lora.targets=everything", "lora.conv_rank=2", "optimizer.lora_plus=4"),
}


def changed(config: TrainConfig, *settings: str) -> TrainConfig:
    return parse_train_config(to_toml(config), source="test", overrides=settings)


def story(run: Run) -> list[tuple[int, float, float]]:
    events = read_events(run.folder)
    return [(event["step"], event["loss"], event["grad_norm"]) for event in events if event["kind"] == "step"]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_run_that_goes_on_ends_as_if_it_had_never_stopped(config: TrainConfig, tmp_path: Path, options: str) -> None:
    """Dropout's masks are the only new thing drawn: a function of (seed, step), not of what was drawn before."""
    config = changed(config, *OPTIONS[options], "train.steps=4", "optimizer.schedule=constant", "output.dtype=fp32")
    whole = Run.create(tmp_path / "whole", config)
    train(whole, config)
    first = changed(config, "train.steps=2")
    run = Run.create(tmp_path / "run", first)
    train(run, first)
    train(Run.resume(run.folder, config), config, resume=True)
    assert story(run) == story(whole)
    ours, theirs = (torch.load(checkpoints(done)[-1][1], weights_only=True)["segments"] for done in (run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_checkpoint_of_another_recipe_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", config)
    train(run, config)
    assert checkpoints(run)
    for setting in ("lora.dora=output", "lora.initial=pissa", "optimizer.lora_plus=2", 'lora.rank_patterns={attn2=2}'):
        with pytest.raises(RunError, match="made with other lora settings"):
            train(run, changed(config, setting), resume=True)


def test_what_is_trained_is_what_the_settings_say(config: TrainConfig) -> None:
    config = changed(
        config,
        "lora.targets=wide",
        'lora.blocks=["mid", "IN01"]',
        "lora.conv_rank=2",
        "lora.conv_alpha=1",
        "lora.rank_patterns={'attn2' = 3}",
        "lora.alpha_patterns={'mid_block' = 8.0}",
    )
    layers = prepare(config, on_problem=lambda picture, why: None).adapter.layers
    for key, layer in layers.items():
        assert key.startswith(("te.", "unet.mid_block", "unet.down_blocks_0_attentions", "unet.down_blocks_0_resnets"))
        is_conv = layer.down.shape[2:] == (3, 3)
        assert len(layer.down) == (3 if "attn2" in key else 2 if is_conv else 4), key
        assert layer.alpha == (8.0 if "mid_block" in key else 1.0 if is_conv else 4.0), key
    assert any("mid_block" in key for key in layers)


def test_lora_plus_multiplies_the_rate_of_the_up_matrices(config: TrainConfig) -> None:
    config = changed(config, "optimizer.lora_plus=16")
    ready = prepare(config, on_problem=lambda picture, why: None)
    optimizer, _ = build_optimizer(config.optimizer, ready.adapter.segments)
    rates = {group["component"]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx({"unet": 1e-2, "te": 1e-3, "unet.up": 0.16, "te.up": 0.016})
    layers = ready.adapter.layers.values()
    ups = {layer.up.untyped_storage().data_ptr() for layer in layers}
    assert ups == {ready.adapter.segments[name].untyped_storage().data_ptr() for name in ("unet.up", "te.up")}


def test_what_excludes_each_other_is_told_before_the_base_is_loaded(config: TrainConfig) -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        changed(config, "lora.dora=input", "lora.initial=pissa")
