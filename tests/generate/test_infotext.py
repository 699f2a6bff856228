"""A picture tells how it was drawn: to us without loss, to other programs in their words, and theirs are read."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from diffusion_lora.errors import PromptError
from diffusion_lora.generate.infotext import (
    from_json,
    parse_infotext,
    png_chunks,
    request_from_infotext,
    to_json,
    write_infotext,
)
from diffusion_lora.generate.reading import read_request
from diffusion_lora.generate.request import LoraUse, Request
from diffusion_lora.generate.samplers import SAMPLERS, sampler_named, sampler_of_a1111

DATA = Path(os.environ.get("LORA_TEST_DATA", Path(__file__).parents[2].parent / "shared" / "data")) / "infotext"
FULL = Request(
    prompt="a red cat, on a sky background",
    negative_prompt="blurry: yes",
    seed=7,
    steps=25,
    guidance_scale=6.5,
    width=512,
    height=768,
    sampler="dpm++_2m_karras",
    loras=(
        LoraUse("style_v2", Path("/models/style_v2.safetensors"), 0.7, None, "ab" * 32),
        LoraUse("hero", Path("/models/hero.safetensors"), 1.0, 0.25, "cd" * 32),
    ),
    base="someone/stable-diffusion",
    base_hash="0123456789abcdef" * 4,
)
NASTY = [
    Request(prompt="two\nlines\nNegative prompt: not a negative prompt", negative_prompt="a\nb"),
    Request(prompt="Steps: 20, Sampler: Euler a, CFG scale: 7", seed=2**63 - 1),
    Request(prompt='quotes " and \\ and ünïcode 猫 <b>', guidance_scale=1 / 3 + 1),
    Request(prompt="", loras=(LoraUse("a, b: <c>", Path("x y.safetensors"), -1e-7, 1 / 3, "e" * 64),)),
    Request(prompt="  spaces kept  "),
]


def saved(request: Request, path: Path) -> Path:
    Image.new("RGB", (8, 8)).save(path, pnginfo=png_chunks(request))
    return path


@pytest.mark.parametrize("request_", [FULL, *NASTY])
def test_a_saved_png_reads_back_as_the_same_request(request_: Request, tmp_path: Path) -> None:
    assert read_request(saved(request_, tmp_path / "picture.png")) == request_


def test_the_infotext_is_the_web_ui_s(tmp_path: Path) -> None:
    with Image.open(saved(FULL, tmp_path / "picture.png")) as image:
        text = image.info["parameters"]
    first, second, last = text.splitlines()
    assert first == "a red cat, on a sky background <lora:style_v2:0.7> <lora:hero:0.25:1>"
    assert second == "Negative prompt: blurry: yes"
    assert last.startswith(
        "Steps: 25, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 7, Size: 512x768, "
        "Model hash: 0123456789, Model: stable-diffusion, RNG: CPU, "
        'Lora hashes: "style_v2: abababababab, hero: cdcdcdcdcdcd", Version: diffusion-lora '
    )


def test_the_infotext_alone_gives_back_all_it_can_tell() -> None:
    request = request_from_infotext(write_infotext(FULL))
    assert (request.prompt, request.negative_prompt) == (FULL.prompt, FULL.negative_prompt)
    assert (request.seed, request.steps, request.guidance_scale) == (7, 25, 6.5)
    assert (request.width, request.height, request.sampler) == (512, 768, "dpm++_2m_karras")
    assert [(use.name, use.strength, use.text_strength, use.sha) for use in request.loras] == [
        ("style_v2", 0.7, None, "ab" * 6),
        ("hero", 1.0, 0.25, "cd" * 6),
    ]


def test_paths_below_the_home_folder_do_not_tell_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "maria"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "maria"))
    home = Path.home()
    request = Request(loras=(LoraUse("s", home / "loras/s.safetensors"),), base=str(home / "bases/sd"))
    text = to_json(request)
    assert "maria" not in text
    assert "maria" not in write_infotext(request)
    assert from_json(text) == request


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_has_a_name_of_the_web_ui_that_means_it(name: str) -> None:
    sampler = sampler_named(name)
    assert sampler_of_a1111(sampler.a1111, sampler.a1111_schedule) is sampler


def test_a_sampler_named_with_its_schedule_is_understood() -> None:
    """Pictures of the web UI before 1.9 say `DPM++ 2M Karras` in one word."""
    assert sampler_of_a1111("DPM++ 2M Karras").name == "dpm++_2m_karras"
    assert sampler_of_a1111("DPM++ 2M").name == "dpm++_2m"
    with pytest.raises(PromptError, match="'Restart'"):
        sampler_of_a1111("Restart")


def test_automatic_is_what_the_web_ui_takes() -> None:
    """Since 1.9 `DPM++ 2M` with `Schedule type: Automatic` is drawn with Karras' schedule there."""
    assert sampler_of_a1111("DPM++ 2M", "Automatic").name == "dpm++_2m_karras"
    assert sampler_of_a1111("DPM++ 2M SDE", "Automatic").name == "dpm++_2m_sde_exponential"
    assert sampler_of_a1111("Euler", "Automatic").name == "euler"


@pytest.mark.skipif(not DATA.is_dir(), reason="the test data is not on this machine")
@pytest.mark.parametrize("name", ["automatic1111_cropped.png", "a1111_full_00025.png", "a1111_lora_hashes.txt"])
def test_real_infotexts_are_taken_apart_as_their_makers_mean_them(name: str) -> None:
    expected = json.loads((DATA / "expected.json").read_text())[name]
    path = DATA / name
    if path.suffix == ".txt":
        text = path.read_text()
    else:
        with Image.open(path) as image:
            text = image.info["parameters"]
    info = parse_infotext(text)
    assert info.prompt == expected["prompt"]
    assert info.negative_prompt == expected["negative_prompt"]
    assert {key: info.parameters.get(key) for key in expected["params"]} == expected["params"]


@pytest.mark.skipif(not DATA.is_dir(), reason="the test data is not on this machine")
@pytest.mark.parametrize("name", ["automatic1111_cropped.png", "text_after_idat.png"])
def test_pictures_of_the_web_ui_become_requests(name: str) -> None:
    request = read_request(DATA / name)
    assert (request.prompt, request.negative_prompt) == ("photo of a duck", "monochrome")
    assert (request.seed, request.steps, request.guidance_scale) == (235284042, 15, 5.0)
    assert (request.width, request.height, request.sampler) == (512, 400, "unipc")
    assert request.base == "", "any base may draw it"


def test_a_picture_without_parameters_says_so(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "bare.png")
    with pytest.raises(PromptError, match="does not say how it was drawn"):
        read_request(tmp_path / "bare.png")


def test_a_last_line_of_two_pairs_is_prompt() -> None:
    info = parse_infotext("a cat\nSteps: 20, Sampler: DDIM")
    assert info.prompt == "a cat\nSteps: 20, Sampler: DDIM"
    assert info.parameters == {}
    with pytest.raises(PromptError, match="no generation parameters"):
        request_from_infotext("a cat")


@pytest.mark.parametrize(
    "damage", ["no json", "[]", '{"request": {"loras": [], "base": "", "unknown": 1}}', '{"request": {"loras": 3}}']
)
def test_a_damaged_request_is_told(damage: str) -> None:
    with pytest.raises(PromptError, match="damaged, or of a newer version"):
        from_json(damage)


def test_a_number_that_is_none_is_told() -> None:
    with pytest.raises(PromptError, match="no number"):
        request_from_infotext("a cat\nSteps: many, Sampler: DDIM, Seed: 1, Size: 64x64")


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n half"])
def test_what_is_no_picture_is_told(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(PromptError, match=r"x\.png"):
        read_request(path)
    with pytest.raises(PromptError, match=r"absent\.png"):
        read_request(tmp_path / "absent.png")
