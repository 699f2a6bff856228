"""Notes beside models: A1111's and Civitai's are read, ours are written so that A1111 reads them."""

import json
import os
from pathlib import Path

import pytest

from diffusion_lora.errors import WorkspaceError
from diffusion_lora.sidecar import Notes, read_notes, write_notes

A1111 = {
    "description": "Ink on paper",
    "sd version": "SD1",
    "activation text": "ink style, <x>",
    "preferred weight": 0.7,
    "negative text": "photo",
    "notes": "from Ann\nsecond line",
    "extra of another extension": {"kept": [1]},
}
CIVITAI = {
    "trainedWords": ["inky", "", 3, "brush"],
    "baseModel": "SD 1.5",
    "description": "<p>Ink &amp; brush</p><p>v2 <b>better</b></p>",
    "model": {"name": "Ink", "description": "of the model"},
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "ink.v2.safetensors"
    path.touch()
    return path


def test_what_a1111_noted_is_read(model: Path) -> None:
    (model.parent / "ink.v2.json").write_text(json.dumps(A1111), encoding="utf-8")
    (model.parent / "ink.v2.preview.png").touch()
    assert read_notes(model) == Notes(
        "Ink on paper", "SD1", "ink style, <x>", 0.7, "photo", "from Ann\nsecond line",
        preview=model.parent / "ink.v2.preview.png",
    )  # fmt: skip
    (model.parent / "ink.v2.png").touch()
    assert read_notes(model).preview == model.parent / "ink.v2.png"


def test_civitais_record_fills_what_nobody_noted(model: Path) -> None:
    (model.parent / "ink.v2.civitai.info").write_text(json.dumps(CIVITAI), encoding="utf-8")
    notes = read_notes(model)
    assert notes.description == "Ink & brush\nv2 better"
    assert (notes.activation_text, notes.sd_version) == ("inky, brush", "SD 1.5")
    write_notes(model, {"activation_text": "mine"})
    assert read_notes(model).activation_text == "mine"
    assert read_notes(model).description == "Ink & brush\nv2 better"
    bare = {**CIVITAI, "description": None}
    (model.parent / "ink.v2.civitai.info").write_text(json.dumps(bare), encoding="utf-8")
    assert read_notes(model).description == "of the model"


def test_a_text_beside_it_is_its_description(model: Path) -> None:
    (model.parent / "ink.v2.txt").write_text(" plain \n", encoding="utf-8")
    assert read_notes(model).description == "plain"


def test_ours_are_a1111s_fields_and_the_rest_stays(model: Path) -> None:
    """Its metadata editor loads exactly these names; a field of another extension must survive."""
    path = model.parent / "ink.v2.json"
    path.write_text(json.dumps(A1111), encoding="utf-8")
    assert write_notes(model, {"notes": "Käse", "preferred_weight": 1}) == path
    assert json.loads(path.read_text(encoding="utf-8")) == {**A1111, "notes": "Käse", "preferred weight": 1.0}
    path.unlink()
    write_notes(model, {"description": "d", "activation_text": "a", "negative_text": "n", "sd_version": "SDXL"})
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "description": "d", "activation text": "a", "negative text": "n", "sd version": "SDXL",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("{", "no JSON", id="cut off"),
        pytest.param("[]", "no JSON object", id="a list"),
        pytest.param("[" * 10**6, "no JSON", id="deep"),
        pytest.param(" " * (4 << 20) + "{}", "longer than 4 MiB", id="long"),
    ],
)
def test_what_cannot_be_read_is_told_and_never_written_over(model: Path, text: str, words: str) -> None:
    path = model.parent / "ink.v2.json"
    path.write_text(text, encoding="utf-8")
    assert words in read_notes(model).problem
    with pytest.raises(WorkspaceError, match="mend or remove it"):
        write_notes(model, {"notes": "x"})
    assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("weight", ["0.8", 1e400, None, [1], True, "x", 10**400, {}])
def test_values_of_other_types_are_left_out(model: Path, weight: object) -> None:
    odd = {"preferred weight": weight, "description": 3, "notes": None, "activation text": ["x"]}
    (model.parent / "ink.v2.json").write_text(json.dumps(odd), encoding="utf-8")
    notes = read_notes(model)
    assert notes.preferred_weight == (0.8 if weight == "0.8" else 0.0)
    assert (notes.description, notes.notes, notes.activation_text) == ("", "", "")


@pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
def test_links_that_lead_out_are_not_followed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A sidecar of a downloaded archive could otherwise show any file of this machine on the page."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.json").write_text(json.dumps(A1111), encoding="utf-8")
    (outside / "secret.png").touch()
    (model.parent / "ink.v2.json").symlink_to(outside / "secret.json")
    (model.parent / "ink.v2.png").symlink_to(outside / "secret.png")
    (model.parent / "ink.v2.txt").symlink_to(outside / "secret.json")
    assert read_notes(model) == Notes()
    assert read_notes(model, [outside]).description == "Ink on paper"


def test_a_weight_that_is_no_number_is_not_noted(model: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"0\.8"):
        write_notes(model, {"preferred_weight": float("nan")})
