"""The shipped presets train what they always did: the same layers, the same first losses, on any machine."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_lora.config import load_train_config, shipped
from diffusion_lora.events import read_events
from diffusion_lora.lora.adapter import Adapter, read_adapter
from diffusion_lora.run import Run
from diffusion_lora.train.trainer import train

STEPS = 4
WIDE = "4b85de5ead7aa74ceb7ae590591eb915219670cf5583201a56386f7af5b5128e"
ATTENTION = "210e382510bc82bc7f38dba5b44f89aa62fc31f848d504e70e38454b89c5e050"
GOLDEN = {
    "pocket-style": (WIDE, (0.914288, 1.038525, 0.887571, 0.948499)),
    "pocket-subject": (ATTENTION, (0.914288, 1.038866, 0.888394, 0.950518)),
    "pocket-character": (ATTENTION, (0.914288, 1.038866, 0.888394, 0.950518)),
    "pocket-concept": (WIDE, (0.914288, 1.038496, 0.887443, 0.94829)),
    "sd15-style": (ATTENTION, (0.94947, 1.075324, 1.110728, 1.030503)),
    "sd15-subject": (ATTENTION, (0.94947, 1.075324, 1.110728, 1.030503)),
}
"""SHA-256 over keys, alphas and shapes, and the losses of the first steps in fp32, as the presets first trained."""


def digest(adapter: Adapter) -> str:
    summary = hashlib.sha256()
    for key in sorted(adapter.layers):
        layer = adapter.layers[key]
        summary.update(f"{key} {layer.alpha} {tuple(layer.down.shape)} {tuple(layer.up.shape)}".encode())
    return summary.hexdigest()


@pytest.mark.parametrize("preset", GOLDEN)
def test_a_shipped_preset_trains_the_same_as_ever(preset: str, base: Path, tmp_path: Path) -> None:
    """A new option that is off must leave no trace: neither in the choice of layers, nor in the start, nor in a step.

    A thousandth is what CPUs differ by in fp32; a wrong start, order, noise or rate shows in the first losses.
    """
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, word in enumerate(("red", "blue", "green", "grey", "pink", "gold")):
        pixels = np.random.default_rng(i).integers(0, 255, (70, 64 + i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{word}.png")
        (folder / f"{word}.txt").write_text(f"a {word} thing", encoding="utf-8")
    own = {
        "model.base": base,
        "dataset.path": folder,
        "dataset.caption": "",
        "train.steps": STEPS,
        "train.device": "cpu",
        "train.threads": 1,
        "train.precision": "fp32",
        "output.dtype": "fp32",
        "preview.every": 0,
    }
    config = load_train_config(shipped("configs", preset), [f"{key}={value}" for key, value in own.items()])
    run = Run.create(tmp_path / "run", config)
    layers = digest(read_adapter(train(run, config)))
    losses = [event["loss"] for event in read_events(run.folder) if event["kind"] == "step"]
    assert layers == GOLDEN[preset][0]
    assert losses == pytest.approx(GOLDEN[preset][1], rel=1e-3)
