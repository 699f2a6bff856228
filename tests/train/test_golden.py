"""Runs on pocket learn what they always did: losses stored in `tests/golden`, to 1e-3 on any machine.

Each recipe has a handful of options on, so that a changed draw, objective, rate or average of any of them shows. To
store new numbers, on purpose: GOLDEN=write python -m pytest tests/train/test_golden.py
"""

import json
import os
from pathlib import Path

import pytest

from diffusion_lora.config import TrainConfig, load_train_config, shipped
from diffusion_lora.events import read_events
from diffusion_lora.lora.adapter import read_adapter
from diffusion_lora.run import Run
from diffusion_lora.train.trainer import train

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "losses.json"
COMMON = (
    "train.steps=3", "train.batch_size=2", "train.precision=fp32", "train.device=cpu", "train.threads=1",
    "dataset.size_px=64", "dataset.cache=ram", "lora.rank=4", "lora.targets=attention", "optimizer.warmup_steps=1",
    "optimizer.name=adamw", "output.dtype=fp32", "preview.every=0", "checkpoint.every=1",
)  # fmt: skip
RECIPES = {
    "plain": (),
    "accumulated": ("train.accumulation=2", "dataset.flip=true", "lora.dropout=0.1", "optimizer.lora_plus=4"),
    "noise": (
        "loss.kind=huber", "loss.noise_offset=0.1", "loss.pyramid_noise=0.3", "loss.input_perturbation=0.1",
        "loss.timesteps=late", "loss.min_timestep=100", "optimizer.name=lion8bit", "optimizer.schedule=linear",
        "optimizer.ema_decay=0.9",
    ),
    "word": (
        "word.text=zib", "word.initial=cat", "optimizer.text_stop_step=2", "optimizer.block_lrs={mid = 3.0}",
        "optimizer.name=schedule-free", "optimizer.schedule=constant",
    ),
    "debiased": (
        "loss.min_snr_gamma=0", "loss.debiased=true", "loss.timesteps=logit-normal", "optimizer.name=adafactor",
        "optimizer.schedule=cosine-restarts",
    ),
    "found": ("optimizer.name=prodigy", "optimizer.lr=1", "optimizer.text_lr=1", "optimizer.schedule=polynomial"),
}  # fmt: skip


def config_of(recipe: str, *further: str) -> TrainConfig:
    return load_train_config(shipped("configs", "pocket-subject"), (*COMMON, *RECIPES[recipe], *further))


def losses(run: Run) -> list[float]:
    return [event["loss"] for event in read_events(run.folder) if event["kind"] == "step"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_learns_what_it_always_did(recipe: str, tmp_path: Path) -> None:
    config = config_of(recipe)
    run = Run.create(tmp_path / "run", config)
    train(run, config)
    stored = json.loads(GOLDEN.read_text(encoding="utf-8"))
    if os.environ.get("GOLDEN") == "write":
        stored[recipe] = [round(loss, 7) for loss in losses(run)]
        GOLDEN.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
    assert losses(run) == pytest.approx(stored[recipe], rel=1e-3)


def test_a_rerun_on_the_same_machine_is_the_same_to_the_bit(tmp_path: Path) -> None:
    runs = []
    for name in ("one", "two"):
        config = config_of("noise")
        runs.append(Run.create(tmp_path / name, config))
        train(runs[-1], config)
    assert losses(runs[0]) == losses(runs[1])
    assert read_adapter(runs[0].adapter_path).allclose(read_adapter(runs[1].adapter_path))
