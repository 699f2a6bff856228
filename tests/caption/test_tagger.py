"""WD14-style taggers: what a real ONNX file says, by categories and thresholds, computed here a second time."""

import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lora.caption.captioner import Options
from diffusion_lora.caption.find import open_captioner
from diffusion_lora.caption.tagger import prepared
from diffusion_lora.errors import CaptionerError

pytest.importorskip("onnxruntime")

TAGS = [("general", 9), ("sensitive", 9), ("1girl", 0), ("red_hat", 0), ("^_^", 0), ("hatsune_miku", 4), ("sky", 0),
        ("long_hair", 0)]  # fmt: skip


@pytest.fixture(scope="module")
def folder(miniatures: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniatures.tagger(tmp_path_factory.mktemp("tagger") / "wd", TAGS)


def sure_of(picture: Image.Image) -> np.ndarray:
    """What the miniature computes, from its definition: blue, green and red means, on white, weighted."""
    weights = (torch.randn(3, len(TAGS), generator=torch.Generator().manual_seed(3)) / 300).numpy()
    side = max(picture.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    means = np.asarray(square.resize((16, 16), Image.Resampling.BICUBIC), np.float64).mean((0, 1))[::-1]
    return 1 / (1 + np.exp(-means @ weights))


def test_tags_are_those_above_their_category_s_threshold(folder: Path, pictures: list[Image.Image]) -> None:
    """Channels in the wrong order, a wrong pad or a swapped threshold would name other tags."""
    captioner = open_captioner(str(folder), Options(threshold=0.6, character_threshold=0.9))
    seen = set()
    for picture, caption in zip(pictures, captioner.describe(pictures), strict=True):
        sure = sure_of(picture)
        wanted = {i for i, (_, kind) in enumerate(TAGS) if sure[i] > {0: 0.6, 4: 0.9}.get(kind, 2)}
        order = sorted(wanted, key=lambda i: (TAGS[i][1] != 4, -sure[i]))
        names = [TAGS[i][0] if TAGS[i][0] == "^_^" else TAGS[i][0].replace("_", " ") for i in order]
        assert caption == ", ".join(names)
        seen.add(caption)
        assert captioner.describe([picture]) == [caption]
    assert len(seen) > 2


def test_blacklist_and_ratings(folder: Path, pictures: list[Image.Image]) -> None:
    everything = open_captioner(str(folder), Options(threshold=0, character_threshold=0)).describe(pictures[:1])[0]
    assert "general" not in everything.split(", "), "ratings are dropped by default"
    assert {"red hat", "hatsune miku", "^_^"} <= set(everything.split(", "))
    fewer = open_captioner(
        str(folder), Options(threshold=0, character_threshold=0, blacklist=("red_hat", "1GIRL"), ratings=True)
    ).describe(pictures[:1])[0]
    assert set(everything.split(", ")) - set(fewer.split(", ")) == {"red hat", "1girl"}
    assert fewer.split(", ")[0] in ("general", "sensitive")


def test_a_picture_is_whole_on_white(pictures: list[Image.Image]) -> None:
    wide = prepared(Image.new("RGB", (64, 16), (10, 20, 30)), 64)
    assert wide.shape == (64, 64, 3)
    assert wide[0, 0].tolist() == [255, 255, 255]
    assert wide[32, 0].tolist() == [30, 20, 10], "BGR"


def test_what_is_wrong_with_a_tagger_is_one_sentence(miniatures: ModuleType, folder: Path, tmp_path: Path) -> None:
    lone = tmp_path / "lone"
    lone.mkdir()
    (lone / "model.onnx").write_bytes((folder / "model.onnx").read_bytes())
    wrong = miniatures.tagger(tmp_path / "wrong", TAGS, outputs=3)
    broken = miniatures.tagger(tmp_path / "broken", TAGS)
    (broken / "model.onnx").write_bytes(b"not a graph")
    listless = miniatures.tagger(tmp_path / "listless", TAGS)
    (listless / "selected_tags.csv").write_text("a,b\n1,2\n")
    for name, sentence in (
        (lone, "has no selected_tags.csv"),
        (wrong, "names 8 tags, but model.onnx tells of 3"),
        (broken, "cannot be read as a tagger"),
        (listless, "no list of tags"),
        ("somebody/wd-vit-tagger-v3", "is not in the hub's cache"),
    ):
        with pytest.raises(CaptionerError, match=re.escape(sentence)) as told:
            open_captioner(str(name))
        assert "\n" not in str(told.value)


def test_without_onnxruntime_it_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)  # as if it were not installed
    with pytest.raises(CaptionerError, match="taggers need onnxruntime"):
        open_captioner(str(folder))
