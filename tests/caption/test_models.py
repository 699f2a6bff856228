"""Captioners of transformers: every kind runs as it is on disk, alone as in company; what is wrong is one sentence."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from diffusion_lora.caption.captioner import Options
from diffusion_lora.caption.find import open_captioner
from diffusion_lora.caption.model import INSTRUCTION
from diffusion_lora.errors import CaptionerError, DeviceError

Saved = Callable[[str], Path]
KINDS = ["blip", "blip-2", "git", "florence2", "llava", "llava with a template", "pair"]
CLASSES = {
    "blip": "BlipForConditionalGeneration", "blip-2": "Blip2ForConditionalGeneration", "git": "GitForCausalLM",
    "florence2": "Florence2ForConditionalGeneration", "llava": "LlavaForConditionalGeneration",
    "pair": "VisionEncoderDecoderModel",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_has_the_same_caption_alone_and_in_company(
    saved: Saved, pictures: list[Image.Image], kind: str
) -> None:
    """Otherwise --batch, a shard or a resume would change captions."""
    captioner = open_captioner(str(saved(kind)), Options(new_tokens=8))
    assert captioner.kind == CLASSES[kind.split(" ")[0]]
    together = captioner.describe(pictures)
    assert together == [captioner.describe([picture])[0] for picture in pictures]
    assert all(together)
    assert len(set(together)) > 1, "the pictures make no difference: the test tests nothing"
    assert not any(special in caption for caption in together for special in ("[BOS]", "[PAD]", "<image>"))
    captioner.close()
    with pytest.raises(CaptionerError, match="is closed"):
        captioner.describe(pictures[:1])


def test_a_question_is_not_part_of_its_answer(saved: Saved, pictures: list[Image.Image]) -> None:
    for kind in ("llava", "llava with a template", "blip-2"):
        captioner = open_captioner(str(saved(kind)), Options(new_tokens=6, prompt="the sky with a hat"))
        assert all(len(caption.split()) <= 6 for caption in captioner.describe(pictures[:3])), kind


def test_a_caption_that_goes_on_from_words_begins_with_them(saved: Saved, pictures: list[Image.Image]) -> None:
    for kind in ("blip", "git"):
        captioner = open_captioner(str(saved(kind)), Options(new_tokens=6, prompt="a big cat"))
        assert all(caption.startswith("a big cat") for caption in captioner.describe(pictures[:3])), kind


def test_a_prompt_changes_what_is_said(saved: Saved, pictures: list[Image.Image]) -> None:
    said = [
        open_captioner(str(saved("llava")), Options(new_tokens=8, prompt=prompt)).describe(pictures)
        for prompt in ("the sky", "a red dog on the mat")
    ]
    assert said[0] != said[1]
    assert INSTRUCTION


def test_what_cannot_be_asked_is_told(saved: Saved) -> None:
    with pytest.raises(CaptionerError, match=re.escape("the task '<OD>' is unknown to Florence-2")):
        open_captioner(str(saved("florence2")), Options(prompt="<OD>"))
    with pytest.raises(CaptionerError, match="is not asked anything"):
        open_captioner(str(saved("pair")), Options(prompt="what is this"))


def test_length_is_limited(saved: Saved, pictures: list[Image.Image]) -> None:
    captioner = open_captioner(str(saved("pair")), Options(new_tokens=3))
    assert max(len(caption.split()) for caption in captioner.describe(pictures)) <= 3
    open_captioner(str(saved("pair")), Options(new_tokens=10_000)).describe(pictures[:1])  # more than it has places for


def broken(how: str, saved: Saved, folder: Path) -> str:
    """A captioner that cannot be used, by what is wrong with it."""
    if how == "nowhere":
        return "there/is/none"
    if how == "a file":
        (folder / "x.bin").write_bytes(b"x")
        return str(folder / "x.bin")
    if how == "an empty folder":
        return str(folder)
    if how == "not on this machine":
        return "somebody/a-captioner-that-was-never-fetched"
    shutil.copytree(saved("git"), folder, dirs_exist_ok=True)
    weights, config = folder / "model.safetensors", folder / "config.json"
    match how:
        case "no weights":
            weights.unlink()
        case "truncated weights":
            weights.write_bytes(weights.read_bytes()[:5000])
        case "no tokenizer":
            for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
                (folder / name).unlink(missing_ok=True)
        case "broken config":
            config.write_text("{")
        case "a model that does not write captions":
            config.write_text(json.dumps({"model_type": "bert"}))
        case "an unknown kind":
            config.write_text(json.dumps({"model_type": "clairvoyant"}))
        case "gaps":
            from safetensors.torch import load_file, save_file

            tensors = load_file(weights)
            tensors.pop(next(name for name in tensors if "visual_projection" in name))
            save_file(tensors, weights, {"format": "pt"})
        case "pickled weights":
            weights.unlink()
            (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    return str(folder)


@pytest.mark.parametrize(
    "how",
    ["nowhere", "a file", "an empty folder", "not on this machine", "no weights", "truncated weights", "no tokenizer",
     "broken config", "a model that does not write captions", "an unknown kind", "gaps", "pickled weights"],
)  # fmt: skip
def test_a_wrong_or_missing_model_is_one_sentence(saved: Saved, tmp_path: Path, how: str) -> None:
    name = broken(how, saved, tmp_path)
    with pytest.raises(CaptionerError) as told:
        open_captioner(name)
    assert "\n" not in str(told.value)
    assert name in str(told.value)
    assert len(str(told.value)) < 500


def test_a_model_that_needs_torchvision_says_so(miniatures: ModuleType, saved: Saved, tmp_path: Path) -> None:
    """The real processor of Qwen2-VL, which asks for it; where torchvision is there, there is nothing to test."""
    if importlib_has("torchvision"):
        pytest.skip("torchvision is here")
    folder = tmp_path / "qwen"
    shutil.copytree(saved("git"), folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    (folder / "processor_config.json").unlink(missing_ok=True)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"processor_class": "Qwen2VLProcessor", "image_processor_type": "Qwen2VLImageProcessor"})
    )
    with pytest.raises(CaptionerError, match="needs torchvision: install it with `pip install torchvision`"):
        open_captioner(str(folder))


def test_quantised_on_a_cpu_is_refused(saved: Saved) -> None:
    with pytest.raises(DeviceError, match="on CUDA only"):
        open_captioner(str(saved("git")), Options(quantised="4bit", device="cpu"))


def importlib_has(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None
