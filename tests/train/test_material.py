"""What a run learns from is the same however it was kept, survives a kill while it is made, and is known again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from diffusion_lora.cli import app
from diffusion_lora.config import TrainConfig, parse_train_config, to_toml
from diffusion_lora.data.store import VARIABLE
from diffusion_lora.errors import RunError
from diffusion_lora.events import read_events
from diffusion_lora.run import Run
from diffusion_lora.train.draws import draw_step
from diffusion_lora.train.prepare import prepare
from diffusion_lora.train.trainer import train

VARIED = (
    "dataset.shuffle=true",
    "dataset.tag_dropout=0.2",
    "dataset.caption_dropout=0.3",
    "dataset.flip=true",
    "dataset.crop=random",
    "dataset.colour_jitter=0.1",
    "dataset.mask=alpha",
    "train.precision=fp32",
    "train.steps=6",
)
DATA = Path(os.environ.get("LORA_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


def changed(config: TrainConfig, *settings: str) -> TrainConfig:
    return parse_train_config(to_toml(config), source="test", overrides=settings)


def story(run: Run) -> list[float]:
    return [event["loss"] for event in read_events(run.folder) if event["kind"] == "step"]


def losses(config: TrainConfig, folder: Path) -> list[float]:
    run = Run.create(folder, config)
    train(run, config)
    return story(run)


def notes(run: Run) -> str:
    return " | ".join(event["text"] for event in read_events(run.folder) if event["kind"] == "note")


@pytest.fixture
def varied(config: TrainConfig, tmp_path: Path) -> TrainConfig:
    """Six pictures of two shapes, half of them with an alpha channel, in captions of several tags."""
    folder = tmp_path / "varied"
    folder.mkdir()
    for number in range(6):
        size = (96, 56) if number % 2 else (64, 72)
        pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3 + number // 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"thing {number}, red, blue, green, gold", encoding="utf-8")
    return changed(config, f"dataset.path={folder}", *VARIED)


@pytest.mark.parametrize("text", ["frozen", "trained"])
def test_losses_are_the_same_however_pictures_and_captions_are_kept(
    varied: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    config = changed(varied, f"optimizer.text_lr={0 if text == 'frozen' else 1e-3}")
    made = losses(changed(config, "dataset.cache=off"), tmp_path / "off")
    assert not list((tmp_path / "cache").rglob("*")) if (tmp_path / "cache").exists() else True
    told = {"ram": losses(changed(config, "dataset.cache=ram"), tmp_path / "ram")}
    told["cold"] = losses(config, tmp_path / "cold")
    told["warm"] = losses(config, tmp_path / "warm")
    for kept in told.values():
        assert kept == pytest.approx(made, rel=1e-5)
    assert told["cold"] == told["warm"] == told["ram"]
    assert len(set(made)) == 6


def test_a_frozen_text_encoder_rests_although_captions_shuffle_and_drop_out(varied: TrainConfig) -> None:
    """Else every step would wait for it, and it could not leave the device."""
    for cache, calls in (("ram", 0), ("off", 6)):
        config = changed(varied, "optimizer.text_lr=0", f"dataset.cache={cache}")
        ready = prepare(config, lambda *_: None)
        seen: list[object] = []
        ready.model.text_encoders["te"].register_forward_hook(lambda *_, seen=seen: seen.append(1))
        captions = set()
        for step in range(6):
            (draw,) = draw_step(step, ready.dataset, ready.latents, config, 1000)
            ready.condition(draw.captions)
            captions |= set(draw.captions)
        assert "" in captions
        assert len(captions) > 7
        assert len(seen) == calls


def test_the_weight_of_a_source_and_the_floor_of_a_mask_scale_the_loss(config: TrainConfig, tmp_path: Path) -> None:
    exact = changed(config, "train.precision=fp32", "train.steps=1", "dataset.caption_dropout=0")
    plain = losses(exact, tmp_path / "plain")
    pictures = Path(config.dataset.path)
    source = f'[{{ path = "{pictures}", weight = 0.25 }}]'
    weighted = losses(changed(exact, 'dataset.path=""', f"dataset.sources={source}"), tmp_path / "weighted")
    assert weighted == pytest.approx([plain[0] / 4], rel=1e-5)
    for file in pictures.glob("*.jpg"):
        Image.new("L", (8, 8), 0).save(file.with_suffix(".mask.png"))
    masked = changed(exact, "dataset.mask=file", "dataset.mask_floor=0.5")
    assert losses(masked, tmp_path / "masked") == pytest.approx([plain[0] / 2], rel=1e-5)


def test_a_mask_takes_the_rest_of_the_picture_out_of_the_loss(config: TrainConfig) -> None:
    for file in Path(config.dataset.path).glob("*.jpg"):
        mask = Image.new("L", (64, 64), 0)
        mask.paste(255, (0, 0, 32, 64))
        mask.save(file.with_suffix(".mask.png"))
    masked = changed(config, "dataset.mask=file")
    ready = prepare(masked, lambda *_: None)
    (draw,) = draw_step(0, ready.dataset, ready.latents, masked, 1000)
    assert draw.mask_B1HW is not None
    assert draw.mask_B1HW.shape == (2, 1, 8, 8)
    assert torch.equal(draw.mask_B1HW[..., :3], torch.ones(2, 1, 8, 3))
    assert torch.equal(draw.mask_B1HW[..., 5:], torch.zeros(2, 1, 8, 3))


def test_a_run_goes_on_over_a_changed_set_only_when_told_so(config: TrainConfig, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", config)
    train(run, config)
    longer = changed(config, "train.steps=4")
    (Path(config.dataset.path) / "red.txt").write_text("a crimson thing", encoding="utf-8")
    with pytest.raises(RunError, match=r"1 with another caption \(red\.jpg\): put it back, add --accept-changed-data"):
        train(Run.resume(run.folder, longer), longer, resume=True)
    said = CliRunner().invoke(app, ["run", str(run.folder), "--accept-changed-data"])
    assert said.exit_code == 0, said.exception
    assert "going on with a changed data set: 1 with another caption (red.jpg)" in notes(run)
    assert len(story(run)) == 4
    assert not Run.open(run.folder).config.dataset.accept_changes


def test_problems_are_told_before_the_first_step(config: TrainConfig, tmp_path: Path) -> None:
    folder = Path(config.dataset.path)
    Image.new("RGB", (20, 20), "red").save(folder / "tiny.png")
    Image.open(folder / "red.jpg").save(folder / "twin.png")
    for name in ("tiny", "twin"):
        (folder / f"{name}.txt").write_text("a thing", encoding="utf-8")
    run = Run.create(tmp_path / "run", changed(config, "train.steps=1"))
    train(run, run.config)
    assert "tiny.png is 20 x 20 px and is enlarged 3.2 times to 64 x 64" in notes(run)
    assert "twin.png has the very pixels of red.jpg" in notes(run)


PROCESS = """
import sys
from pathlib import Path
from diffusion_lora.config import load_train_config
from diffusion_lora.run import Run
from diffusion_lora.train.trainer import train
config = load_train_config(Path(sys.argv[1]))
train(Run.resume(Path(sys.argv[2]), config), config, resume=True)
"""


@pytest.mark.slow
def test_caching_that_is_killed_goes_on_and_ends_as_if_nothing_had_happened(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = Path(config.dataset.path)
    for number in range(40):
        pixels = np.random.default_rng(100 + number).integers(0, 255, (128, 128, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text("a thing", encoding="utf-8")
    config = changed(config, "dataset.flip=true", "dataset.size_px=128", "optimizer.text_lr=0", "train.steps=60")
    cache, folder, file = tmp_path / "cache", tmp_path / "killed", tmp_path / "config.toml"
    file.write_text(to_toml(config), encoding="utf-8")
    environment = {**os.environ, VARIABLE: str(cache)}
    command = [sys.executable, "-c", PROCESS, str(file), str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        deadline = time.monotonic() + 120
        while len(list(cache.glob("latents/*/*.tensors"))) < 5:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    kept = {path: path.stat().st_mtime_ns for path in cache.glob("latents/*/*.tensors")}
    assert 5 <= len(kept) < 80
    assert not any(event["kind"] == "step" for event in read_events(folder, current=False))

    short = changed(config, "train.steps=2")
    monkeypatch.setenv(VARIABLE, str(cache))
    resumed = Run.resume(folder, short)
    train(resumed, short, resume=True)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    monkeypatch.setenv(VARIABLE, str(tmp_path / "another"))
    assert story(resumed) == losses(short, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"the photographs are not in {DATA}")
def test_real_photographs_and_drawings_are_trained_on(config: TrainConfig, tmp_path: Path) -> None:
    """Kohya's folder with its tags, drawings with alpha in five shapes, photographs under one caption."""
    originals, dog = DATA / "wikipe_tan" / "originals", DATA / "dreambooth" / "dog6"
    sources = (
        f'[{{ path = "{originals}", caption = "tk, a drawing" }}, '
        f'{{ path = "{dog}", caption = "a photo of a dog", regularisation = true }}]'
    )
    real = changed(
        config,
        f"dataset.path={DATA / 'wikipe_tan' / '5_tk girl'}",
        f"dataset.sources={sources}",
        "dataset.shuffle=true",
        "dataset.keep_first=1",
        "dataset.mask=alpha",
        "train.steps=20",
        "validation.pictures=0",
    )
    run = Run.create(tmp_path / "run", real)
    train(run, real)
    assert len(story(run)) == 20
    assert all(np.isfinite(story(run)))
    assert next(event["pictures"] for event in read_events(run.folder) if event["kind"] == "start") == 14 + 6 + 5
    ready = prepare(real, lambda *_: None)
    assert len(ready.dataset.buckets) >= 2
    assert ready.dataset.sources[0].repeats == 5
    shares = [(share.pictures[0] >= 20, share.per_round) for b in ready.dataset.buckets for share in b.shares]
    assert sum(places for is_dog, places in shares if is_dog) == sum(places for is_dog, places in shares if not is_dog)
    assert ready.dataset.caption(0, 3).startswith("tk, ")
