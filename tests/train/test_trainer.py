"""Training a real tiny Stable Diffusion: what a run leaves behind, what it learns, how it ends when it cannot go on."""

from pathlib import Path

import pytest
import torch

from diffusion_lora.config import TrainConfig, parse_train_config, to_toml
from diffusion_lora.errors import ConfigError, DatasetError, RunError
from diffusion_lora.events import read_events
from diffusion_lora.images import open_image
from diffusion_lora.lora.adapter import Adapter, read_adapter
from diffusion_lora.run import Run
from diffusion_lora.train.checkpoint import checkpoints
from diffusion_lora.train.trainer import train


def changed(config: TrainConfig, *settings: str) -> TrainConfig:
    return parse_train_config(to_toml(config), source="test", overrides=settings)


def train_in(folder: Path, config: TrainConfig) -> tuple[Run, Adapter]:
    run = Run.create(folder, config)
    return run, read_adapter(train(run, config))


def losses(run: Run) -> list[float]:
    return [event["loss"] for event in read_events(run.folder) if event["kind"] == "step"]


def test_a_run_leaves_an_adapter_that_moved_in_both_components_and_tells_its_story(
    config: TrainConfig, tmp_path: Path
) -> None:
    told: list[str] = []
    # In fp32: a processor without bf16 has a note to tell.
    config = changed(config, "train.precision=fp32")
    run = Run.create(tmp_path / "run", config)
    adapter = read_adapter(train(run, config, progress=lambda event: told.append(event["kind"])))
    assert adapter.components == ("te", "unet")
    assert all(layer.up.abs().max() > 0 for layer in adapter.layers.values())
    assert adapter.rank == 4
    assert adapter.metadata["ss_steps"] == "3"
    assert adapter.metadata["ss_num_train_images"] == "6"
    assert told == ["start", "step", "step", "step", "checkpoint", "parity", "end"]
    assert [event["kind"] for event in read_events(run.folder)] == told
    assert (run.folder / "log.txt").read_text(encoding="utf-8").count("\n") == 4
    start = read_events(run.folder)[0]
    assert start["optimizer"] == "AdamW8bit"
    assert start["parameters"] == adapter.parameters


def test_a_text_rate_of_zero_leaves_the_text_encoders_up_matrices_zero(config: TrainConfig, tmp_path: Path) -> None:
    _, adapter = train_in(tmp_path / "run", changed(config, "optimizer.text_lr=0"))
    for key, layer in adapter.layers.items():
        assert (layer.up.abs().max() > 0) == key.startswith("unet.")


def test_training_lowers_the_loss(config: TrainConfig, tmp_path: Path) -> None:
    """A sign error, a frozen adapter or targets that do not fit the noise would leave the loss where it was."""
    easy = changed(config, "train.steps=40", "train.batch_size=6", "lora.targets=wide", "optimizer.lr=3e-2")
    run, _ = train_in(tmp_path / "run", easy)
    assert sum(losses(run)[-8:]) < 0.9 * sum(losses(run)[:8])


def test_accumulation_is_the_same_step_as_one_large_batch(config: TrainConfig, tmp_path: Path) -> None:
    """In fp32 two passes of two pictures and one of four differ by rounding only."""
    exact = changed(config, "train.precision=fp32", "optimizer.name=adamw")
    whole, _ = train_in(tmp_path / "whole", changed(exact, "train.batch_size=4"))
    parts, _ = train_in(tmp_path / "parts", changed(exact, "train.batch_size=2", "train.accumulation=2"))
    assert losses(whole) == pytest.approx(losses(parts), rel=1e-4)


def test_previews_are_drawn_and_change_nothing_in_what_is_learned(config: TrainConfig, tmp_path: Path) -> None:
    plain, adapter = train_in(tmp_path / "plain", config)
    watched, twin = train_in(
        tmp_path / "watched",
        changed(config, "preview.every=2", 'preview.prompts=["a red thing", "a blue thing"]', "preview.steps=2"),
    )
    paths = [path for event in read_events(watched.folder) if event["kind"] == "preview" for path in event["paths"]]
    assert paths == ["previews/step-000002-0.png", "previews/step-000002-1.png"]
    assert open_image(watched.folder / paths[0]).size == (64, 64)
    assert losses(plain) == losses(watched)
    assert adapter.allclose(twin)


def test_flip_another_size_constant_rates_and_fp16_are_served(config: TrainConfig, tmp_path: Path) -> None:
    other = changed(
        config,
        "dataset.flip=true",
        "dataset.size_px=40",
        "optimizer.schedule=constant",
        "train.precision=fp16",
        "loss.min_snr_gamma=0",
        "lora.text_targets=none",
    )
    run, adapter = train_in(tmp_path / "run", other)
    assert adapter.components == ("unet",)
    assert adapter.metadata["ss_resolution"] == "(40, 40)"
    rates = [event["lr"] for event in read_events(run.folder) if event["kind"] == "step"]
    assert rates == pytest.approx([0.01 / 3, 0.02 / 3, 0.01])


def test_the_first_loss_that_is_not_finite_stops_the_run_and_the_last_good_state_stays(
    config: TrainConfig, tmp_path: Path
) -> None:
    wild = changed(
        config, "optimizer.lr=1e30", "optimizer.warmup_steps=0", "optimizer.schedule=constant", "checkpoint.every=1"
    )
    run = Run.create(tmp_path / "run", wild)
    with pytest.raises(RunError) as caught:
        train(run, wild)
    last = read_events(run.folder)[-1]
    step, path = checkpoints(run)[-1]
    sentence = str(caught.value)
    assert last["kind"] == "stop"
    assert last["step"] == step
    assert f"stopped in step {step + 1}: the " in sentence
    assert "pictures in it: " in sentence
    assert sentence.count(".jpg") in (1, 2)
    assert f"the state of step {step} is kept in {path}" in sentence
    assert "try a lower optimizer.lr" in sentence
    state = torch.load(path, weights_only=True)
    assert all(segment.isfinite().all() for segment in state["segments"].values())
    assert not run.adapter_path.exists()


def test_a_truncated_picture_is_named_left_out_and_reported(
    config: TrainConfig, pictures: Path, tmp_path: Path
) -> None:
    broken = pictures / "green.jpg"
    broken.write_bytes(broken.read_bytes()[:900])
    run, adapter = train_in(tmp_path / "run", config)
    problems = [event for event in read_events(run.folder) if event["kind"] == "problem"]
    assert [problem["picture"] for problem in problems] == ["green.jpg"]
    assert "truncated" in problems[0]["text"]
    assert adapter.metadata["ss_num_train_images"] == "5"


def test_what_cannot_be_trained_on_is_told_before_anything_is_loaded(config: TrainConfig, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for settings, sentence in (
        ("dataset.path=/no/such/folder", "there is no such folder"),
        (f"dataset.path={empty}", "there is no picture in"),
    ):
        wrong = changed(config, settings, "model.base=not-looked-at")
        with pytest.raises(DatasetError, match=sentence):
            train(Run.create(tmp_path / sentence, wrong), wrong)


def test_sizes_and_types_that_do_not_fit_the_base_are_told(config: TrainConfig, tmp_path: Path) -> None:
    for settings, sentence in (
        (["dataset.size_px=60"], r"dataset\.size_px = 60 does not fit .* a multiple of 8"),
        (["model.dtype=bf16", "train.precision=fp32"], 'model.dtype = "bf16" needs train.precision = "bf16"'),
    ):
        wrong = changed(config, *settings)
        with pytest.raises(ConfigError, match=sentence):
            train(Run.create(tmp_path / settings[0], wrong), wrong)


def test_notes_tell_of_captions_that_will_not_do_what_one_thinks(config: TrainConfig, tmp_path: Path) -> None:
    folder = Path(config.dataset.path)
    (folder / "red.txt").write_text("a red thing " * 40, encoding="utf-8")
    (folder / "blue.txt").unlink()
    run, _ = train_in(
        tmp_path / "run", changed(config, "dataset.captions_required=false", "output.trigger_word=zib", "train.steps=1")
    )
    notes = " | ".join(event["text"] for event in read_events(run.folder) if event["kind"] == "note")
    assert "1 of 6 captions are longer than the 75 tokens that the base reads" in notes
    assert "1 of 6 pictures have no caption" in notes
    assert "'zib' stands in no caption" in notes
