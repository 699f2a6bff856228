"""The shipped presets train the numbers they always did: their settings, seen through a tiny base, bit for bit."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lora.config import load_train_config, shipped
from diffusion_lora.lora.adapter import Adapter, read_adapter
from diffusion_lora.run import Run
from diffusion_lora.train.trainer import train

MACHINE = ("2.13.0", "AVX512")  # the arithmetic of which the hashes are: another torch or CPU rounds otherwise
GOLDEN = {
    "pocket-style": "d4a157cb880a3a6b3ba7a748d18e5b03365b42b0f4648c5a8527b7f1e77e385c",
    "pocket-subject": "cf8c146a0976ed613faabb2ec92c1203a4ae50df5e06f5abda9bd3e67ab666b2",
    "sd15-style": "32b063e2e313bb3e52653f30241cda38a591e2dd1400818cda59997a9aea2e73",
    "sd15-subject": "32b063e2e313bb3e52653f30241cda38a591e2dd1400818cda59997a9aea2e73",
}


def digest(adapter: Adapter) -> str:
    """SHA-256 over keys, alphas and the bits of both matrices, in the order of the keys."""
    summary = hashlib.sha256()
    for key in sorted(adapter.layers):
        layer = adapter.layers[key]
        summary.update(f"{key} {layer.alpha} {tuple(layer.down.shape)} {tuple(layer.up.shape)}".encode())
        for matrix in (layer.down, layer.up):
            summary.update(matrix.float().contiguous().numpy().tobytes())
    return summary.hexdigest()


@pytest.mark.skipif(
    (torch.__version__.partition("+")[0], torch.backends.cpu.get_cpu_capability()) != MACHINE,
    reason=f"the golden numbers are those of torch {MACHINE[0]} on a CPU with {MACHINE[1]}",
)
@pytest.mark.parametrize("preset", GOLDEN)
def test_a_shipped_preset_trains_the_same_bits_as_ever(preset: str, base: Path, tmp_path: Path) -> None:
    """A new option that is off must leave no trace: neither in the start, nor in a gradient, nor in a step."""
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
        "train.steps": 4,
        "train.device": "cpu",
        "train.threads": 1,
        "output.dtype": "fp32",
        "preview.every": 0,
    }
    config = load_train_config(shipped("configs", preset), [f"{key}={value}" for key, value in own.items()])
    run = Run.create(tmp_path / "run", config)
    assert digest(read_adapter(train(run, config))) == GOLDEN[preset]
