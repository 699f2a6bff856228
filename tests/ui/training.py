"""Adapters for the tests of the page: real ones, of a training that is over in a moment."""

import os
import subprocess
import sys
from pathlib import Path

from tests.ui.process import CHECKOUT

# Far too fast, so that two steps show.
_SHORT = (
    "train.steps=2", "train.batch_size=2", "train.precision=fp32", "train.device=cpu", "optimizer.lr=0.02",
    "optimizer.warmup_steps=0", "lora.rank=2", "lora.targets=qv", "lora.text_targets=none",
)  # fmt: skip


def train_briefly(path: Path, seed: int, folder: Path) -> None:
    """Train two steps on the shipped style set and save the adapter as `path`; torch stays in a process of its own."""
    settings = [word for pair in (*_SHORT, f"train.seed={seed}") for word in ("--set", pair)]
    command = [sys.executable, "-m", "diffusion_lora", "train", "pocket-style", *settings, "--out", str(folder / "run")]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    path.write_bytes((folder / "run" / "adapter.safetensors").read_bytes())
