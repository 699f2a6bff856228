"""TensorBoard and W&B get every figure of a run, and can neither stop it nor take the place of its folder."""

import struct
from importlib.util import find_spec
from pathlib import Path

import pytest

from diffusion_lora.config import TrainConfig, parse_train_config, to_toml
from diffusion_lora.errors import ConfigError
from diffusion_lora.events import read_events
from diffusion_lora.run import Run
from diffusion_lora.train.trackers import figures
from diffusion_lora.train.trainer import train


def changed(config: TrainConfig, *settings: str) -> TrainConfig:
    return parse_train_config(to_toml(config), source="test", overrides=settings)


def recorded(folder: Path) -> dict[str, dict[int, float]]:
    """The scalars of TensorBoard's event files, by name and step: the last one written, after what was purged."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found: dict[str, dict[int, float]] = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        data, place = file.read_bytes(), 0
        while place < len(data):  # length, its checksum, the event, its checksum
            (length,) = struct.unpack_from("<Q", data, place)
            event = event_pb2.Event.FromString(data[place + 12 : place + 12 + length])
            place += 16 + length
            if event.HasField("session_log"):
                found = {tag: {s: v for s, v in course.items() if s < event.step} for tag, course in found.items()}
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_every_figure_of_a_run_is_in_the_event_files_also_of_one_that_went_on(
    config: TrainConfig, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboardX")
    settings = ["train.steps=4", "validation.pictures=2", "validation.every=2", "checkpoint.every=2",
                "checkpoint.keep=9", "tracking.tensorboard=true"]  # fmt: skip
    run = Run.create(tmp_path / "run", changed(config, *settings))
    train(run, run.config)
    train(run, run.config, from_step=2)
    found = recorded(run.folder / "tensorboard" / run.config.output.name)
    told = [event for event in read_events(run.folder) if "step" in event and figures(event)]
    assert {event["kind"] for event in told} >= {"step", "validation", "parity", "end"}
    for event in told:
        for name, value in figures(event).items():
            if event["kind"] != "resume":
                assert found[name][event["step"]] == pytest.approx(value, rel=1e-6), (name, event["step"])
    assert set(found["step/loss"]) == {1, 2, 3, 4}
    assert list(run.folder.glob("tensorboard/*/*/hparams.yml")), "the settings of the run are not in it"


def test_figures_are_the_numbers_of_an_event_by_name() -> None:
    event = {"time": 1.0, "kind": "step", "step": 7, "loss": 0.5, "grad_norm": "inf", "pictures_per_s": None,
             "grad_norms": {"unet": 2, "te": 0.25}, "adapters": {"rank4": {"loss": 0.1}}, "names": ["a.png"],
             "best": True, "text": "words"}  # fmt: skip
    assert figures(event) == {
        "step/loss": 0.5, "step/grad_norm": float("inf"), "step/grad_norms/unet": 2.0, "step/grad_norms/te": 0.25,
        "step/adapters/rank4/loss": 0.1, "step/best": 1.0,
    }  # fmt: skip


def test_a_tracker_that_fails_is_left_and_the_training_goes_on(config: TrainConfig, tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    run = Run.create(tmp_path / "run", changed(config, "tracking.tensorboard=true"))
    (run.folder / "tensorboard").write_text("in the way", encoding="utf-8")
    assert train(run, run.config).exists()
    notes = [event["text"] for event in read_events(run.folder) if event["kind"] == "note"]
    assert any(text.startswith("tensorboard gets no more figures of this run (") for text in notes)


def test_a_package_that_is_missing_is_told_before_anything_is_done(config: TrainConfig, tmp_path: Path) -> None:
    if find_spec("wandb"):
        pytest.skip("W&B is installed here")
    run = Run.create(tmp_path / "run", changed(config, "tracking.wandb=offline"))
    with pytest.raises(ConfigError, match=r"tracking.wandb needs the package wandb, which is not installed"):
        train(run, run.config)
    assert not (run.folder / "events.jsonl").exists()


def test_wandb_keeps_an_offline_run_in_the_runs_own_folder(config: TrainConfig, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    run = Run.create(tmp_path / "run", changed(config, "tracking.wandb=offline"))
    train(run, run.config)
    assert list((run.folder / "wandb").glob("offline-run-*/*.wandb"))
    notes = [event["text"] for event in read_events(run.folder) if event["kind"] == "note"]
    assert not any("gets no more figures" in text for text in notes), notes
