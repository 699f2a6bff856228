"""Drawing from a picture, in a part of it, in two passes, with a little of another seed, and with edges that meet."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from diffusion_lora.errors import PromptError
from diffusion_lora.generate.engine import Engine
from diffusion_lora.generate.infotext import from_json, request_from_infotext, to_json, write_infotext
from diffusion_lora.generate.picture import Picture
from diffusion_lora.generate.request import LoraUse, Request
from diffusion_lora.generate.start import Hires, Start

BASE = Request("a red cat on a sky background", seed=3, steps=4, width=64, height=64, sampler="euler")


def pixels(picture: Picture) -> np.ndarray:
    return np.asarray(picture.image, float)


def apart(a: Picture, b: Picture) -> float:
    return float(np.abs(pixels(a) - pixels(b)).mean())


@pytest.fixture(scope="module")
def photo(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that the base could have drawn: of others it knows little at this size."""
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    (drawn,) = engine.draw([Request("a yellow star on a sky background", seed=5, steps=8, width=96, height=64)])
    drawn.image.save(path)
    return path


@pytest.fixture(scope="module")
def mask(photo: Path) -> Path:
    path = photo.with_name("mask.png")
    image = Image.new("L", (96, 64), 0)
    ImageDraw.Draw(image).rectangle((40, 24, 55, 39), fill=255)
    image.save(path)
    return path


def test_a_row_of_starts_is_the_single_picture(engine: Engine, photo: Path, mask: Path, style: LoraUse) -> None:
    requests = [
        replace(BASE, start=Start(photo, 0.5), loras=(style.at(0.5),)),
        replace(BASE, start=Start(photo, 0.5, mask), seed=4),
    ]
    for row, request in zip(engine.draw(requests), requests, strict=True):
        (alone,) = engine.draw([request])
        assert np.abs(pixels(row) - pixels(alone)).max() <= 1


def test_what_the_mask_keeps_is_kept_to_the_pixel(engine: Engine, photo: Path, mask: Path) -> None:
    whole = np.asarray(Image.open(photo).convert("RGB"), float)
    inside, only = engine.draw([
        replace(BASE, start=Start(photo, 1.0, mask, blur_px=2)),
        replace(BASE, start=Start(photo, 1.0, mask, blur_px=2, only_masked=True, padding_px=8)),
    ])  # fmt: skip
    assert inside.image.size == (64, 64)
    assert only.image.size == (96, 64), "only the masked part is drawn, the whole comes back"
    for picture, given in ((inside, whole[:, 16:80]), (only, whole)):
        change = np.abs(pixels(picture) - given).sum(axis=-1)
        left = 24 if picture is inside else 40
        assert change[:, : left - 8].max() == 0
        assert change[:12].max() == 0
        assert change[26:38, left + 2 : left + 14].mean() > 5


def test_the_second_pass_enlarges_what_the_first_one_drew(engine: Engine) -> None:
    (small,) = engine.draw([BASE])
    for upscaler in ("latent", "lanczos"):
        (large,) = engine.draw([replace(BASE, hires=Hires(1.5, 0.3, 10, upscaler))])
        assert large.image.size == (96, 96)
        again = np.asarray(large.image.resize((64, 64), Image.Resampling.LANCZOS), float)
        assert np.abs(again - pixels(small)).mean() < 40, upscaler


def test_a_variation_lies_between_two_seeds(engine: Engine) -> None:
    first, none, some, whole, other = engine.draw([
        BASE,
        replace(BASE, variation_seed=9),
        replace(BASE, variation_seed=9, variation_strength=0.2),
        replace(BASE, variation_seed=9, variation_strength=1.0),
        replace(BASE, seed=9),
    ])  # fmt: skip
    assert apart(none, first) == 0
    assert apart(whole, other) < 0.5
    assert 0 < apart(some, first) < apart(other, first)


def test_edges_meet_when_tiled(engine: Engine, style: LoraUse) -> None:
    def seam(picture: Picture) -> float:
        x = pixels(picture)
        across = np.abs(x[:, 0] - x[:, -1]).mean() + np.abs(x[0] - x[-1]).mean()
        inside = np.abs(np.diff(x, axis=0)).mean() + np.abs(np.diff(x, axis=1)).mean()
        return float(across / inside)

    plain, tiled, after = (
        engine.draw([request])[0] for request in (BASE, replace(BASE, tiling=True, loras=(style.at(0.3),)), BASE)
    )
    assert seam(tiled) < 3 < seam(plain)
    assert apart(plain, after) == 0


def test_all_of_it_comes_back_from_text(photo: Path, mask: Path) -> None:
    started = replace(BASE, start=Start(photo, 0.5, mask, 3, True, 16, "ab", "cd"), tiling=True)
    twice = replace(BASE, hires=Hires(1.5, 0.3, 10, "lanczos"), variation_seed=9, variation_strength=0.25)
    for request in (started, twice):
        assert from_json(to_json(request)) == request
    back = request_from_infotext(write_infotext(twice))
    assert (back.hires, back.variation_seed, back.variation_strength) == (twice.hires, 9, 0.25)
    assert "Denoising strength: 0.5, Mask blur: 3, Inpaint area: Only masked, Tiling: True" in write_infotext(started)


def test_what_cannot_be_started_from_is_told(engine: Engine, photo: Path, tmp_path: Path) -> None:
    black = tmp_path / "black.png"
    Image.new("L", (8, 8)).save(black)
    for start, word in (
        (Start(tmp_path / "gone.png"), "cannot be read"),
        (Start(photo, sha="00"), "another by now"),
        (Start(photo, mask=black), "black"),
    ):
        with pytest.raises(PromptError, match=word):
            engine.draw([replace(BASE, start=start)])
    for wrong in ({"strength": 0.0}, {"only_masked": True}, {"blur_px": -1}):
        with pytest.raises(PromptError):
            Start(photo, **wrong)  # type: ignore[arg-type]
