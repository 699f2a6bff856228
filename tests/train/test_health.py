"""Health: what goes wrong is said once, with what to change; what goes well gives no warning."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusion_lora.config import TrainConfig, parse_train_config, to_toml
from diffusion_lora.data.store import TensorStore, cache_folder
from diffusion_lora.errors import OutputError, RunError
from diffusion_lora.events import read_events
from diffusion_lora.run import Run
from diffusion_lora.train.health import Health, one_colour
from diffusion_lora.train.movement import Movement
from diffusion_lora.train.trainer import train


@pytest.fixture
def brief(config: TrainConfig) -> TrainConfig:
    """Long enough for everything to be judged; the smallest adapter and batch that there are."""
    return changed(config, "train.steps=50", "train.batch_size=1", "lora.targets=qv", "lora.rank=2")


def changed(config: TrainConfig, *settings: str) -> TrainConfig:
    return parse_train_config(to_toml(config), source="test", overrides=settings)


def warnings(folder: Path) -> dict[str, str]:
    found = [event for event in read_events(folder, current=False) if event["kind"] == "warning"]
    assert len({event["about"] for event in found}) == len(found), "a warning was given twice"
    return {event["about"]: f"step {event['step']}: {event['text']}" for event in found}


@pytest.mark.parametrize("seed", [0, 1])
def test_a_healthy_run_gives_no_warning(brief: TrainConfig, tmp_path: Path, seed: int) -> None:
    usual = changed(brief, f"train.seed={seed}", "optimizer.lr=1e-4", "optimizer.text_lr=5e-5", "train.batch_size=2")
    run = Run.create(tmp_path / "run", usual)
    train(run, usual)
    assert warnings(run.folder) == {}
    norms = [event["grad_norms"] for event in read_events(run.folder) if event["kind"] == "step"]
    assert all(norm["unet"] > 0 and norm["te"] > 0 for norm in norms)
    first = next(event for event in read_events(run.folder) if event["kind"] == "step")
    whole = sum(norm**2 for norm in first["grad_norms"].values()) ** 0.5
    assert first["grad_norm"] == pytest.approx(whole, rel=1e-5)


def test_a_rate_of_nothing_is_told_within_50_steps_for_each_part(brief: TrainConfig, tmp_path: Path) -> None:
    still = changed(brief, "optimizer.lr=1e-12", "optimizer.text_lr=1e-12")
    run = Run.create(tmp_path / "run", still)
    train(run, still)
    told = warnings(run.folder)
    assert told.keys() == {"up matrices zero: unet", "up matrices zero: te"}
    sentence = told["up matrices zero: unet"]
    assert sentence.startswith("step 40: after 40 steps ")
    assert "up matrices of the UNet's part are still zero" in sentence
    assert "try a higher optimizer.lr (now 1e-12, often 0.0001)" in sentence
    assert "optimizer.text_lr" in told["up matrices zero: te"]


def test_frozen_up_matrices_are_told_with_the_setting_that_froze_them(brief: TrainConfig, tmp_path: Path) -> None:
    """The down matrices learn at full rate, so the adapter's numbers do change: only its effect does not."""
    frozen = changed(brief, "optimizer.lora_plus=1e-30")
    run = Run.create(tmp_path / "run", frozen)
    train(run, frozen)
    told = warnings(run.folder)
    assert set(told) == {"up matrices zero: unet", "up matrices zero: te"}
    assert "set optimizer.lora_plus to 1 or more (now 1e-30)" in told["up matrices zero: unet"]


def test_a_rate_of_a_thousand_is_told_at_once_and_nothing_that_is_not_finite_lands_on_the_disk(
    brief: TrainConfig, tmp_path: Path
) -> None:
    wild = changed(brief, "optimizer.lr=1e3", "optimizer.warmup_steps=0", "checkpoint.every=1", "checkpoint.keep=50")
    run = Run.create(tmp_path / "run", wild)
    with pytest.raises((RunError, OutputError), match=r"stopped in step \d+|the training has diverged|not finite"):
        train(run, wild)
    told = warnings(run.folder)
    assert told["too strong: unet"].startswith("step 1: ") or told["too strong: unet"].startswith("step 2: ")
    assert "try a lower optimizer.lr (now 1000, say 0.0001)" in told["too strong: unet"]
    for path in (run.folder / "checkpoints").glob("*.pt"):
        segments = torch.load(path, weights_only=True)["segments"]
        assert all(segment.isfinite().all() for segment in segments.values()), path
    assert not run.adapter_path.exists()


def test_a_nan_in_a_picture_stops_the_run_in_its_first_step_with_the_picture_named(
    brief: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One number of one picture's latents is spoilt where they are kept, as a faulty disk or autoencoder would."""
    monkeypatch.setenv("DIFFUSION_LORA_CACHE", str(tmp_path / "cache"))
    short = changed(brief, "train.steps=12", "checkpoint.every=1", "checkpoint.keep=50", "train.precision=fp32")
    train(Run.create(tmp_path / "first", short), short)
    store = TensorStore(cache_folder() / "latents")
    path = sorted(store.folder.rglob("*.tensors"))[0]
    key = path.parent.name + path.stem
    tensors = store.get(key)
    assert tensors is not None
    tensors["mean"][0, 0, 0] = float("nan")
    store.put(key, tensors)

    run = Run.create(tmp_path / "second", short)
    with pytest.raises(RunError, match=r"stopped in step (\d+): the loss is nan; pictures in it: \w+\.jpg;") as caught:
        train(run, short)
    steps = [event["step"] for event in read_events(run.folder) if event["kind"] == "step"]
    assert f"stopped in step {len(steps) + 1}:" in str(caught.value)
    for path in (run.folder / "checkpoints").glob("*.pt"):
        assert all(segment.isfinite().all() for segment in torch.load(path, weights_only=True)["segments"].values())
    assert not run.adapter_path.exists()


def test_warnings_are_not_repeated_when_a_run_goes_on(brief: TrainConfig, tmp_path: Path) -> None:
    still = changed(brief, "optimizer.lr=1e-12", "optimizer.text_lr=0")
    run = Run.create(tmp_path / "run", still)
    train(run, still)
    longer = changed(still, "train.steps=101")
    train(Run.resume(run.folder, longer), longer, resume=True)
    assert list(warnings(run.folder)) == ["up matrices zero: unet"]


def test_previews_of_one_colour_are_told(config: TrainConfig, tmp_path: Path) -> None:
    black, noisy = tmp_path / "black.png", tmp_path / "noisy.png"
    Image.new("RGB", (32, 32)).save(black)
    Image.effect_noise((32, 32), 60).convert("RGB").save(noisy)
    assert one_colour(black) == "black"
    assert one_colour(noisy) is None
    half = Health(changed(config, "train.precision=fp16"))
    (told,) = half.of_previews(10, [noisy, black])
    assert told.text == 'the preview black.png is all black: try train.precision = "fp32"'
    assert half.of_previews(20, [black]) == []


def test_what_is_still_or_too_strong_is_judged_by_the_share_of_the_base(config: TrainConfig) -> None:
    longer = changed(config, "train.steps=400")
    for change, still, step, about in (
        (1e-9, 0, 40, "standing still: unet"),
        (1e-9, 0, 39, None),
        (1e-3, 3, 40, None),
        (1e-3, 4, 40, "up matrices zero: unet"),
        (1.5, 0, 1, "too strong: unet"),
        (float("nan"), 0, 1, "too strong: unet"),
    ):
        told = Health(longer).of_movement(step, {"unet": Movement(change, still, 12)})
        assert [warning.about for warning in told] == ([about] if about else []), (change, still, step)


def test_a_loss_that_grows_tenfold_and_one_that_does_not_move_are_told(config: TrainConfig) -> None:
    health = Health(changed(config, "train.steps=100"))
    courses = [health.of_step(step, 0.1 if step < 20 else 2.0, {"unet": 1.0}) for step in range(1, 40)]
    assert [warning.about for told in courses for warning in told] == ["loss grows"]
    flat = [(step, 0.1 + 1e-6 * step) for step in range(0, 60, 10)]
    assert health.of_validation(flat[:4]) == []
    (told,) = health.of_validation(flat)
    assert "the loss on the held-out pictures is where it was" in told.text
    falling = [(step, 0.1 - 1e-4 * step) for step in range(0, 60, 10)]
    assert Health(health.config).of_validation(falling) == []


def test_a_part_that_no_gradient_reaches_is_named(config: TrainConfig) -> None:
    health = Health(changed(config, "train.steps=100"))
    told = [w for step in range(1, 20) for w in health.of_step(step, 0.1, {"unet": 1.0, "te": 0.0})]
    assert [warning.about for warning in told] == ["no gradient: te"]
    assert "the gradient of the text encoder's part is exactly 0" in told[0].text
