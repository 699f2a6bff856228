"""`diffusion-lora dataset`: what is wrong with a set is listed, and nothing else; so is what is trained with."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from diffusion_lora.cli import app
from diffusion_lora.errors import UserError


def said(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["dataset", *map(str, arguments)], env={"COLUMNS": "200"})
    if done.exception is not None:
        raise done.exception
    return done.stdout


def told(*arguments: object) -> dict[str, object]:
    answer: dict[str, object] = json.loads(said(*arguments, "--json"))
    return answer


def picture(path: Path, seed: int, size: tuple[int, int] = (160, 120), caption: str | None = "a red cat") -> Path:
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """Four good pictures and twelve faults."""
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(4):
        picture(folder / f"good-{number}.png", number)
    Image.new("I;16", (160, 120), 3000).save(folder / "good-16-bit.png")
    (folder / "good-16-bit.txt").write_text("a dark thing", encoding="utf-8")
    whole = picture(folder / "truncated.jpg", 10).read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    picture(folder / "empty.png", 11).write_bytes(b"")
    picture(folder / "text.png", 12).write_bytes(b"no picture at all")
    picture(folder / "tiny.png", 13, (40, 40))
    copy = Image.open(folder / "good-0.png")
    for name, image in (("zz-copy.bmp", copy), ("zz-smaller.jpg", copy.resize((140, 105)))):
        image.save(folder / name)
        (folder / name).with_suffix(".txt").write_text("a red cat", encoding="utf-8")
    picture(folder / "bare.png", 14, caption=None)
    picture(folder / "blank.png", 15, caption=" \n")
    picture(folder / "long.png", 16, caption="a " + "big red cat " * 30 + "on a sky background")
    picture(folder / "latin.png", 17).with_suffix(".txt").write_bytes("a café".encode("latin-1"))
    picture(folder / "good-1.mask.png", 18)
    (folder / "metadata.csv").write_text("file_name,text\ngone.png,a cat\n", encoding="utf-8")
    return folder


def test_twelve_planted_faults_are_found_and_nothing_else(faulty: Path) -> None:
    answer = told("check", faulty)
    found = {(problem["kind"], problem["picture"], problem["left_out"]) for problem in answer["problems"]}  # type: ignore[attr-defined]
    assert found == {
        ("unreadable", "truncated.jpg", True),
        ("unreadable", "empty.png", True),
        ("unreadable", "text.png", True),
        ("too small", "tiny.png", False),
        ("duplicate", "zz-copy.bmp", False),
        ("near duplicate", "zz-smaller.jpg", False),
        ("no caption", "bare.png", False),
        ("no caption", "blank.png", False),
        ("no caption", "latin.png", False),
        ("long caption", "long.png", False),
        ("caption encoding", "latin.png", False),
        ("mask", "good-1.mask.png", False),
        ("not there", "gone.png", False),
    }
    assert answer["pictures"] == 12
    told_text = said("check", faulty)
    assert "12 pictures can be trained on; 13 problems" in told_text
    assert "zz-copy.bmp has the very pixels of good-0.png" in told_text
    assert "the caption of long.png has" in told_text
    assert "cut off is 'cat big red cat" in told_text
    assert "truncated.jpg cannot be read as a picture (image file is truncated" in told_text


def test_a_shipped_set_has_nothing_against_it(faulty: Path) -> None:
    for name in ("pocket-style", "pocket-subject", "pocket-character", "pocket-concept"):
        assert told("check", name)["problems"] == []
    assert "no problems" in said("check", "pocket-style")


def test_shapes_are_told_with_what_is_cut_off(faulty: Path) -> None:
    for file in faulty.glob("*"):
        if not file.name.startswith("good-0") and not file.name.startswith("good-2"):
            file.unlink()
    picture(faulty / "square.png", 30, (128, 128))
    assert "144 x 112: 2 pictures, 4 % cut off, at most 4 %" in said("check", faulty)
    buckets = told("check", faulty)["buckets"]
    assert [(bucket["size"], bucket["pictures"]) for bucket in buckets] == [([128, 128], 1), ([144, 112], 2)]  # type: ignore[attr-defined]
    assert buckets[1]["cropped_mean"] == pytest.approx(1 - 144 * 112 / (160 * 120 * (112 / 120) ** 2))  # type: ignore[index]
    squares = told("check", faulty, "--set", "dataset.buckets=false")["buckets"]
    assert [(bucket["size"], bucket["pictures"]) for bucket in squares] == [([128, 128], 3)]  # type: ignore[attr-defined]


def test_the_very_captions_and_tokens_are_listed(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    picture(folder / "a.png", 0, caption="zib, red, cat")
    picture(folder / "b.png", 1, caption="a cat on a sky background")
    settings = (
        "--set",
        "dataset.shuffle=true",
        "--set",
        "dataset.keep_first=1",
        "--set",
        "dataset.caption_dropout=0.1",
    )
    listed = told("captions", folder, *settings)
    assert listed["caption_dropout"] == 0.1
    first, second = listed["pictures"]  # type: ignore[misc]
    assert {caption["caption"] for caption in first["captions"]} == {"zib, red, cat", "zib, cat, red"}
    assert [caption["caption"] for caption in second["captions"]] == ["a cat on a sky background"]
    (chunk,) = second["captions"][0]["chunks"]
    assert [token["token"] for token in chunk] == ["a", "cat", "on", "a", "sky", "background"]
    text = said("captions", folder, *settings, "--picture", "b.png")
    assert text.splitlines() == [
        "b.png",
        "    6 tokens  a cat on a sky background",
        "              a cat on a sky background",
        "and no caption at all 10 % of the time",
    ]
    with pytest.raises(UserError, match=r"there is no picture 'c\.png'"):
        said("captions", folder, "--picture", "c.png")


def test_what_is_no_set_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        said("check", tmp_path / "nowhere")
    with pytest.raises(UserError, match="or name a folder of pictures"):
        said("check", "nowhere")
    with pytest.raises(UserError, match="there is no picture in"):
        said("check", tmp_path)
