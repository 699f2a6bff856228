"""The report page: every figure is the run's, nothing is fetched from elsewhere, no text of the user's is markup."""

import re
from pathlib import Path

import pytest

from diffusion_lora.config import TrainConfig, parse_train_config, to_toml
from diffusion_lora.errors import RunError
from diffusion_lora.events import read_events
from diffusion_lora.faces.run_report import run_report
from diffusion_lora.run import Run
from diffusion_lora.train.trainer import train


def test_the_page_tells_the_run_and_needs_nothing_beside_it(config: TrainConfig, tmp_path: Path) -> None:
    settings = ["train.steps=6", "preview.every=3", 'preview.prompts=["a red thing"]', "preview.steps=2",
                "validation.pictures=2", "validation.every=2", 'output.name="<b>mine"']  # fmt: skip
    told = parse_train_config(to_toml(config), source="test", overrides=settings)
    run = Run.create(tmp_path / "run", told)
    with pytest.raises(RunError, match="has not taken a step yet"):
        run_report(run)
    train(run, told)
    page = run_report(run)
    measured = [event["loss"] for event in read_events(run.folder) if event["kind"] == "validation"]
    assert f"{min(measured):.4f}" in page
    assert page.count("data:image/png;base64,") == 2
    assert page.count(" thing (1)") == 4, "captions of the four pictures that are trained on"
    assert "adapter.safetensors, read again, draws what the training showed" in page
    assert "lora.rank" in page
    assert "<li>no warning</li>" in page
    assert "<b>mine" not in page
    assert not re.search(r"""(src|href)=(?!["']?data:)""", page), "the page asks for another file"
