"""Training a real tiny Stable Diffusion: what a run leaves behind, and what it learns."""

import torch

from diffusion_lora.config import TrainConfig
from diffusion_lora.events import read_events
from diffusion_lora.lora.adapter import read_adapter
from diffusion_lora.run import Run
from diffusion_lora.train.trainer import train


def test_a_run_ends_with_an_adapter_whose_up_matrices_moved_in_both_components(config: TrainConfig, tmp_path) -> None:
    run = Run.create(tmp_path / "run", config)
    adapter = read_adapter(train(run, config))
    assert adapter.components == ("te", "unet")
    assert all(layer.up.abs().max() > 0 for layer in adapter.layers.values())
    assert adapter.rank == 4 and adapter.metadata["ss_steps"] == "3"
    kinds = [event["kind"] for event in read_events(run.folder)]
    assert kinds == ["start", "step", "step", "step", "checkpoint", "end"]
