"""The embedded captioner on drawings it never saw: what it names, how long it takes, how large it is."""

import random
import time
from pathlib import Path

import pytest
import torch

import diffusion_lora.caption
from diffusion_lora.caption.captioner import Captioner
from diffusion_lora.caption.find import open_captioner
from recipes.pocket.captioner.examine import shares
from recipes.pocket.captioner.words import WORDS, caption_of, mirrored, said
from recipes.pocket.world import Scene, draw, sample_scene

COUNT = 256
FOLDER = Path(diffusion_lora.caption.__file__).with_name("embedded")


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return open_captioner("embedded")


def scenes(count: int, seed: str) -> list[Scene]:
    return [sample_scene(random.Random(f"{seed} {i}"), pairs="any") for i in range(count)]


def test_things_colours_and_background_are_named_rightly(captioner: Captioner) -> None:
    """What the base draws and held styles are counted by `recipes.pocket.captioner.examine`."""
    shown = scenes(COUNT, "fresh")
    pictures = [draw(scene) for scene in shown]
    torch.set_num_threads(min(2, torch.get_num_threads()))
    started = time.process_time()
    told = captioner.describe(pictures)
    seconds = (time.process_time() - started) / COUNT
    found = shares(told, shown)
    assert found["all three"] >= 97  # measured: 100
    assert seconds <= 0.3
    assert told[:5] == [captioner.describe([picture])[0] for picture in pictures[:5]]


def test_it_is_small_and_whole() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 8_000_000
    assert not list(FOLDER.glob("*.bin"))
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in FOLDER.iterdir()), "another user can read it"


def test_what_is_said_reads_back() -> None:
    """The counting rests on this: of every scene the caption says what is there, mirrored or not."""
    for scene in scenes(200, "words"):
        for each in (scene, mirrored(scene)):
            text = caption_of(each)
            assert set(text.replace(",", " ,").split()) <= set(WORDS), text
            heard = said(text)
            assert heard.things == {(thing.colour, thing.kind) for thing in scene.things}
            assert heard.background == scene.background
            assert heard.style == (scene.style if scene.style != "plain" else None)
        if "left" in caption_of(scene) or "right" in caption_of(scene):
            assert caption_of(scene) != caption_of(mirrored(scene))
