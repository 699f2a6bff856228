"""Every setting of [loss] changes what it names and nothing else; what is off shifts nobody else's numbers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffusion_lora.config import TrainConfig, parse_train_config, to_toml
from diffusion_lora.diffusion.objective import picture_losses
from diffusion_lora.diffusion.schedule import NoiseSchedule
from diffusion_lora.errors import ConfigError
from diffusion_lora.events import read_events
from diffusion_lora.lora.adapter import read_adapter
from diffusion_lora.run import Run
from diffusion_lora.train.draws import Draw, draw_step
from diffusion_lora.train.prepare import Prepared, prepare
from diffusion_lora.train.trainer import train

BASE = "loss.min_snr_gamma=0"
OPTIONS = {
    "kind=huber": {"losses"},
    "min_snr_gamma=1": {"losses"},
    "debiased=true": {"losses"},
    "noise_offset=0.1": {"noise", "input", "losses"},
    "pyramid_noise=0.3": {"noise", "input", "losses"},
    "input_perturbation=0.1": {"input"},
    "timesteps=logit-normal": {"timesteps"},
    "timesteps=early": {"timesteps"},
    "timesteps=late": {"timesteps"},
    "min_timestep=500": {"timesteps"},
    "max_timestep=500": {"timesteps"},
}
FURTHER = {
    "huber_c=0.5": ("kind=huber", {"losses"}),
    "huber_schedule=constant": ("kind=huber", {"losses"}),
    "huber_schedule=exponential": ("kind=huber", {"losses"}),
    "pyramid_levels=1": ("pyramid_noise=0.5", {"noise", "input", "losses"}),
    "timestep_bias=3": ("timesteps=late", {"timesteps"}),
    "logit_mean=1": ("timesteps=logit-normal", {"timesteps"}),
    "logit_std=2": ("timesteps=logit-normal", {"timesteps"}),
}


def changed(config: TrainConfig, *settings: str) -> TrainConfig:
    return parse_train_config(to_toml(config), source="test", overrides=settings)


@pytest.fixture
def ready(config: TrainConfig) -> Prepared:
    return prepare(config, on_problem=lambda picture, why: None)


def numbers(config: TrainConfig, ready: Prepared) -> dict[str, Tensor]:
    """What a step draws, and the losses of an answer that is nought everywhere at timesteps that stay the same."""
    schedule = NoiseSchedule.from_config(ready.model.scheduler_config)
    draw: Draw = draw_step(7, ready.dataset, ready.latents, config, schedule.timesteps)[0]
    nothing, same = torch.zeros_like(draw.x0_BCHW), torch.tensor([100, 800])
    losses = picture_losses(config.loss, schedule, nothing, draw.x0_BCHW, draw.noise_BCHW, same)
    return {
        "pictures": draw.x0_BCHW,
        "noise": draw.noise_BCHW,
        "input": draw.input_noise_BCHW,
        "timesteps": draw.timesteps_B,
        "losses": losses,
    }


def test_a_setting_changes_what_it_names_and_nothing_else(config: TrainConfig, ready: Prepared) -> None:
    plain = changed(config, BASE)
    cases = [(setting, plain, wanted) for setting, wanted in OPTIONS.items()]
    cases += [
        (setting, changed(plain, f"loss.{with_it}"), wanted) for setting, (with_it, wanted) in FURTHER.items()
    ]
    for setting, before, wanted in cases:
        first = numbers(before, ready)
        second, again = (numbers(changed(before, f"loss.{setting}"), ready) for _ in range(2))
        assert {name for name in first if not torch.equal(first[name], second[name])} == wanted, setting
        assert all(torch.equal(second[name], again[name]) for name in second), setting


def test_the_trainer_measures_what_the_settings_say(config: TrainConfig, tmp_path: Path) -> None:
    """The first loss of a run, before anything is learned, is that of its own draws and objective."""
    first = {}
    for setting in (BASE, "loss.kind=huber", "loss.input_perturbation=0.3", "loss.min_timestep=900"):
        one = changed(config, BASE, setting, "train.steps=1")
        run = Run.create(tmp_path / setting, one)
        train(run, one)
        first[setting] = next(event["loss"] for event in read_events(run.folder) if event["kind"] == "step")
    assert len(set(first.values())) == 4


def test_block_rates_are_multiples_and_zero_leaves_a_block_out(config: TrainConfig, tmp_path: Path) -> None:
    rates = "optimizer.block_lrs={mid = 0.0, up = 0.5, OUT03 = 3.0}"
    one = changed(config, rates, "train.steps=1", "optimizer.warmup_steps=0", "optimizer.name=adamw")
    one = changed(one, "optimizer.weight_decay=0", "optimizer.max_grad_norm=0", "train.precision=fp32")
    run = Run.create(tmp_path / "run", one)
    adapter = read_adapter(train(run, one))
    # The first step of Adam moves every number of `up`, which starts at 0, by the rate.
    moved = {key: layer.up.abs().median().item() for key, layer in adapter.layers.items() if key.startswith("unet.")}
    for key, distance in moved.items():
        wanted = 0.0 if ".mid_" in key else 0.03 if "up_blocks_1_attentions_1" in key else 0.01
        wanted = 0.005 if "up_blocks" in key and wanted == 0.01 else wanted
        assert distance == pytest.approx(wanted, rel=2e-2), key
    assert {round(distance, 4) for distance in moved.values()} >= {0.0, 0.005, 0.01, 0.03}
    with pytest.raises(ConfigError, match="IN77\" is no block of this base"):
        prepare(changed(config, "optimizer.block_lrs={IN77 = 2.0}"), on_problem=lambda picture, why: None)


def test_a_text_encoder_learns_until_its_stop_step(config: TrainConfig, tmp_path: Path) -> None:
    """Then it stands still, is read without gradients, and the UNet's part goes on."""
    config = changed(config, "optimizer.schedule=constant", "train.steps=3")

    def layers(*settings: str) -> dict[str, Tensor]:
        one = changed(config, *settings)
        run = Run.create(tmp_path / "-".join(settings), one)
        return {key: layer.up for key, layer in read_adapter(train(run, one)).layers.items()}

    short, stopped = layers("train.steps=2"), layers("optimizer.text_stop_step=2")
    whole = layers("optimizer.text_stop_step=0")
    text = [key for key in whole if key.startswith("te.")]
    assert text
    assert all(torch.equal(short[key], stopped[key]) for key in text)
    assert not any(torch.equal(stopped[key], whole[key]) for key in text)
    assert not any(torch.equal(short[key], stopped[key]) for key in whole if key not in text)


def test_zero_terminal_snr_and_empty_ranges_are_refused_before_the_first_step(config: TrainConfig) -> None:
    for setting, sentence in (
        ("loss.zero_terminal_snr=true", "needs a base that predicts v"),
        ("loss.min_timestep=1000", "leave no timestep"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            prepare(changed(config, setting), on_problem=lambda picture, why: None)
    with pytest.raises(ConfigError, match="both weigh the timesteps"):
        changed(config, "loss.debiased=true", "loss.min_snr_gamma=5")
