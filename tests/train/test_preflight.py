"""Preflight: real steps at the largest shape are measured, nothing is left behind, what cannot fit is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from diffusion_lora.config import TrainConfig, parse_train_config, to_toml
from diffusion_lora.errors import DeviceError
from diffusion_lora.train.preflight import Preflight, largest_steps, preflight
from diffusion_lora.train.prepare import prepare


def changed(config: TrainConfig, *settings: str) -> TrainConfig:
    return parse_train_config(to_toml(config), source="test", overrides=settings)


@pytest.fixture
def report(config: TrainConfig, tmp_path: Path) -> Preflight:
    settings = ["train.steps=100", "preview.every=25", 'preview.prompts=["a red thing"]', "preview.steps=2",
                "validation.pictures=1", "checkpoint.every=50"]  # fmt: skip
    return preflight(changed(config, *settings), folder=tmp_path / "not" / "made")


def test_a_preflight_counts_what_the_run_will_do(report: Preflight, tmp_path: Path) -> None:
    assert (report.steps, report.previews, report.checkpoints, report.validations) == (100, 4, 2, 21)
    assert min(report.step_s, report.preview_s, report.checkpoint_s, report.validation_s) > 0
    expected = 100 * report.step_s + 4 * report.preview_s + 2 * report.checkpoint_s + 21 * report.validation_s
    assert report.total_s == pytest.approx(expected)
    assert report.size_px == (64, 64)
    assert 1e8 < report.peak < report.room
    assert report.lines()[-1] == "it fits"
    assert not (tmp_path / "not").exists()


def test_what_does_not_fit_is_told_with_what_to_change(report: Preflight) -> None:
    full = replace(report, room=report.peak // 2, disk_free=report.disk // 2)
    assert [problem.partition(":")[2].split()[:2] for problem in full.problems] == [
        ["lower", "train.batch_size,"],
        ["lower", "checkpoint.keep,"],
    ]
    assert full.lines()[-1].startswith("does not fit: it writes ")


def test_a_cap_that_is_too_low_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"train\.memory_cap_gb = 0\.1 is below the .* GB that base"):
        preflight(changed(config, "train.memory_cap_gb=0.1"), folder=tmp_path)


def test_the_steps_measured_are_those_of_the_largest_shape(config: TrainConfig, pictures: Path) -> None:
    for i in range(3):
        Image.effect_noise((100, 40), 90).convert("RGB").save(pictures / f"wide{i}.png")
        (pictures / f"wide{i}.txt").write_text("wide", encoding="utf-8")
    ready = prepare(changed(config, "dataset.bucket_step_px=8"), lambda picture, why: None)
    assert len(ready.dataset.buckets) > 1
    largest = max(bucket.size[0] * bucket.size[1] for bucket in ready.dataset.buckets)
    for step in largest_steps(config, ready, 3):
        width, height = ready.dataset.select(step, 2).size
        assert width * height == largest
