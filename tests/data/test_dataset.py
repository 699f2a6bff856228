"""What a step sees of a data set: every setting of [dataset] acts on it, and a changed set is noticed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffusion_lora.config import TrainConfig, parse_train_config
from diffusion_lora.data.dataset import Dataset, open_dataset
from diffusion_lora.data.fingerprint import NAME, changes, check_fingerprint, fingerprint
from diffusion_lora.errors import ConfigError, DatasetError, RunError

STEPS, COUNT = 24, 4


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A set on which every setting has something to act on."""
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    (folder / "masks").mkdir()
    for number, size in enumerate([(64, 64), (70, 64), (120, 60), (48, 96), (30, 30), (64, 64)]):
        pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 4), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"one, {number}, {{red|blue}} ||| two\nthree, four\n", encoding="utf-8")
        (folder / f"{number}.tags").write_text("from tags", encoding="utf-8")
    Image.new("RGB", (64, 64)).save(folder / "deep" / "below.png")
    (folder / "deep" / "below.txt").write_text("below", encoding="utf-8")
    Image.new("L", (64, 64), 255).save(folder / "masks" / "0.png")
    return folder


def config_of(pictures: Path, *settings: str) -> TrainConfig:
    text = f"[dataset]\npath = {json.dumps(str(pictures))}\n[output]\ntrigger_word = 'zib'\n"
    return parse_train_config(text, source="test", overrides=settings)


def dataset_of(pictures: Path, *settings: str) -> Dataset:
    config = config_of(pictures, *settings)
    return open_dataset(config, size_px=config.dataset.size_px or 64, factor=8)


def story(dataset: Dataset) -> list[Any]:
    """All that a run sees of a set."""
    told = []
    for step in range(STEPS):
        chosen = dataset.select(step, COUNT)
        views = [(shown.item.name, shown.mask, shown.view) for shown in dataset.shown(chosen)]
        told.append((views, dataset.captions(chosen), dataset.weights(chosen)))
    return told


@pytest.mark.parametrize(
    "settings",
    [
        ("dataset.layout=subfolders",),
        ("dataset.caption=all the same",),
        ("dataset.caption_files=['.tags']",),
        ("dataset.caption_lines=variants",),
        ("dataset.caption_dropout=0.3",),
        ("dataset.add_trigger=true",),
        ("dataset.shuffle=true",),
        ("dataset.tag_dropout=0.3",),
        ("dataset.wildcards=true",),
        ("dataset.keep_separator=|||",),
        ("dataset.shuffle=true", "dataset.keep_first=2"),
        ("dataset.shuffle=true", "dataset.separator=e"),
        ("dataset.shuffle=true", "dataset.caption_variants=2"),
        ("dataset.shuffle=true", "dataset.caption_variants=0"),
        ("dataset.flip=true",),
        ("dataset.size_px=48",),
        ("dataset.buckets=false",),
        ("dataset.bucket_step_px=16",),
        ("dataset.enlarge=false",),
        ("dataset.crop=random",),
        ("dataset.colour_jitter=0.1",),
        ("dataset.crop=random", "dataset.views=2"),
        ("dataset.mask=alpha",),
        ("dataset.mask=file",),
        ("train.seed=1",),
    ],
    ids=" ".join,
)
def test_every_setting_changes_what_is_seen(pictures: Path, settings: tuple[str, ...]) -> None:
    """An option that does nothing looks like one that does, until the night is over."""
    without = story(dataset_of(pictures, *settings[:-1]))
    assert story(dataset_of(pictures, *settings)) != without
    assert story(dataset_of(pictures, *settings[:-1])) == without


def test_captions_come_from_the_folder_when_that_is_chosen(pictures: Path) -> None:
    for file in pictures.glob("*.txt"):
        file.unlink()
    named = dataset_of(pictures, "dataset.caption_from=folder")
    assert {caption for _, captions, _ in story(named) for caption in captions} == {"pictures"}
    with pytest.raises(DatasetError, match="no caption was found for any of the 6 pictures"):
        dataset_of(pictures)
    assert dataset_of(pictures, "dataset.captions_required=false").items[0].caption == ""


def test_sources_come_with_their_repeats_weights_and_captions(pictures: Path, tmp_path: Path) -> None:
    more = tmp_path / "5_more things"
    more.mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(more / f"more-{number}.png")
    text = f"""
        [dataset]
        path = {json.dumps(str(pictures))}
        buckets = false
        add_trigger = true
        [[dataset.sources]]
        path = {json.dumps(str(more))}
        caption = "a thing"
        regularisation = true
        weight = 0.5
        repeats = 0.2
        [output]
        trigger_word = "zib"
    """
    config = parse_train_config(text, source="test")
    dataset = open_dataset(config, size_px=64, factor=8)
    assert [source.repeats for source in dataset.sources] == [1, 1]
    (bucket,) = dataset.buckets
    assert [share.per_round for share in bucket.shares] == [6, 6]
    for views, captions, weights in story(dataset):
        for (name, _, _), caption, weight in zip(views, captions, weights, strict=True):
            assert caption.startswith("zib") != name.startswith("more")
            assert weight == (0.5 if name.startswith("more") else 1.0)
    assert parse_train_config((text), source="test") == config


def test_a_source_that_is_misspelt_is_told(pictures: Path) -> None:
    for wrong, sentence in (
        ("{ path = 'x', weigth = 2.0 }", "unknown key 'weigth' in dataset.sources; did you mean 'weight'"),
        ("{ weight = 2.0 }", "it must be a list, each item a table { path = ..., layout = ..."),
    ):
        with pytest.raises(ConfigError) as caught:
            config_of(pictures, f"dataset.sources=[{wrong}]")
        assert sentence in str(caught.value)
    with pytest.raises(ConfigError, match=r"dataset\.path is missing: folder of pictures"):
        parse_train_config("[dataset]\nflip = true", source="test")


def test_a_picture_that_changes_or_goes_is_named(pictures: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    before = dataset_of(pictures)
    assert check_fingerprint(run, before, began=False, accept=False) is None
    assert check_fingerprint(run, dataset_of(pictures), began=True, accept=False) is None
    Image.new("RGB", (64, 64)).save(pictures / "1.png")
    (pictures / "2.txt").write_text("another", encoding="utf-8")
    (pictures / "3.png").unlink()
    (pictures / "5.png").rename(pictures / "6.png")
    (pictures / "5.txt").rename(pictures / "6.txt")
    after = dataset_of(pictures)
    with pytest.raises(RunError) as caught:
        check_fingerprint(run, after, began=True, accept=False)
    told = "1 added (6.png); 2 gone (3.png, 5.png); 1 with other pixels (1.png); 1 with another caption (2.png)"
    assert f"has changed since the run in {run} began: {told}: put it back, add --accept-changed-data" in str(
        caught.value
    )
    assert check_fingerprint(run, after, began=True, accept=True) == f"going on with a changed data set: {told}"
    assert check_fingerprint(run, after, began=True, accept=False) is None
    (run / NAME).write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match="remove it to go on without comparing"):
        check_fingerprint(run, after, began=True, accept=False)


def test_a_mask_belongs_to_the_fingerprint_and_a_place_does_not(pictures: Path, tmp_path: Path) -> None:
    before = fingerprint(dataset_of(pictures, "dataset.mask=file"))
    Image.new("L", (64, 64), 100).save(pictures / "masks" / "0.png")
    assert changes(before, fingerprint(dataset_of(pictures, "dataset.mask=file"))) == ["1 with another mask (0.png)"]
    plain = fingerprint(dataset_of(pictures))
    assert changes(plain, fingerprint(dataset_of(pictures.rename(tmp_path / "elsewhere")))) == []


def test_nothing_that_can_be_used_is_an_error(tmp_path: Path) -> None:
    Image.new("RGB", (5, 5)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("x", encoding="utf-8")
    problems: list[str] = []
    with pytest.raises(DatasetError, match=r"none of the 1 pictures in .* can be used"):
        open_dataset(
            config_of(tmp_path, "dataset.enlarge=false"),
            size_px=64,
            factor=8,
            report=lambda problem: problems.append(problem.text),
        )
    assert problems == ["a.png is only 5 x 5 px, less than the step between buckets"]
    whole = dataset_of(tmp_path)
    assert replace(whole.places[0]).scale == 12.8
