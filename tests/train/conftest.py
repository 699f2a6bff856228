"""A small set of pictures, and the configuration that joins it to the tiny base."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_lora.config import TrainConfig, parse_train_config

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def base(tiny_base: Path) -> Path:
    """The small one that all rooms train on."""
    return tiny_base


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six pictures of noise in six captions."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, word in enumerate(("red", "blue", "green", "grey", "pink", "gold")):
        pixels = np.random.default_rng(i).integers(0, 255, (70, 64 + i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{word}.jpg", quality=95)
        (folder / f"{word}.txt").write_text(f"a {word} thing", encoding="utf-8")
    return folder


@pytest.fixture
def config(base: Path, pictures: Path) -> TrainConfig:
    """Three steps on the CPU with one thread; tests change what they are about by `with_settings`."""
    return parse_train_config(config_text(base, pictures), source="test")


def config_text(base: Path, pictures: Path) -> str:
    return f"""
        [model]
        base = '{base}'
        [dataset]
        path = '{pictures}'
        caption_dropout = 0.2
        [lora]
        rank = 4
        alpha = 4.0
        [train]
        steps = 3
        batch_size = 2
        device = "cpu"
        threads = 1
        [optimizer]
        lr = 1e-2
        text_lr = 1e-3
        warmup_steps = 2
    """
