"""Cards of LoRA files: what a list shows, from headers alone, and what is wrong with a file in a sentence."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_lora.adopted import adopt
from diffusion_lora.lora.card import read_card, read_cards, workspace_cards
from diffusion_lora.workspace import Workspace

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def write(path: Path, metadata: dict[str, str] | None = None, *, layer: str = LAYER, width: int = 768) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{layer}.lora_down.weight": np.ones((8, width), np.float16),
        f"{layer}.lora_up.weight": np.ones((320, 8), np.float16),
        f"{layer}.alpha": np.array(4, np.float16),
    }
    save_file(tensors, path, metadata)


def test_a_card_tells_what_the_header_says(tmp_path: Path) -> None:
    """The desk would show strips without rank, trigger word or base."""
    metadata = {
        "ss_network_alpha": "4.0",
        "ss_sd_model_name": "some-base.safetensors",
        "modelspec.trigger_phrase": "zorb",
        "modelspec.tags": "robot, Subject",
    }
    write(tmp_path / "robot.safetensors", metadata)
    card = read_card(tmp_path / "robot.safetensors", "robot")
    assert (card.rank, card.alpha, card.kind, card.trigger_word) == (8, 4.0, "subject", "zorb")
    assert card.base == "some-base.safetensors"
    assert card.size_bytes == (tmp_path / "robot.safetensors").stat().st_size
    assert card.changed == (tmp_path / "robot.safetensors").stat().st_mtime
    assert card.problem == ""


@pytest.mark.parametrize(("width", "title"), [(768, "Stable Diffusion 1"), (128, "pocket")])
def test_without_metadata_the_shapes_tell_the_family(tmp_path: Path, width: int, title: str) -> None:
    """A file of another program would not say what it is for."""
    write(tmp_path / "bare.safetensors", width=width)
    card = read_card(tmp_path / "bare.safetensors", "bare")
    assert (card.base, card.rank, card.alpha, card.kind, card.trigger_word) == (title, 8, None, "", "")


def test_a_folder_is_read_with_its_subfolders_and_without_what_is_being_written(tmp_path: Path) -> None:
    """LoRAs in subfolders would be missing, or half-written files be offered."""
    for name in ("b", "A", "mine/c", ".b.safetensors.12.tmp/x", ".hidden"):
        write(tmp_path / f"{name}.safetensors")
    (tmp_path / "notes.txt").write_text("no LoRA")
    assert [card.name for card in read_cards(tmp_path)] == ["A", "b", "mine/c"]
    assert read_cards(tmp_path / "nowhere") == []


def test_what_cannot_be_used_has_a_card_with_its_problem(tmp_path: Path) -> None:
    """One bad file would hide the whole list, or be offered like any other."""
    write(tmp_path / "strange.safetensors", layer="nothing_known")
    write(tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-10])
    (tmp_path / "empty.safetensors").touch()
    problems = {card.name: card.problem for card in read_cards(tmp_path)}
    assert "is no LoRA" in problems["strange"]
    assert "cut off" in problems["cut"]
    assert "not a safetensors file" in problems["empty"]
    assert "does not exist" in read_card(tmp_path / "gone.safetensors", "gone").problem


def test_cards_need_no_torch(checkout: Path) -> None:
    """The page would load torch to show a list."""
    code = "import sys, diffusion_lora.lora.card; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=checkout, check=False).returncode == 0


def test_adopted_loras_are_listed_with_what_is_noted_beside_them(tmp_path: Path) -> None:
    """Whoever comes from another program would find an empty list, or one without pictures and trigger words."""
    workspace = Workspace.open(tmp_path / "workspace")
    folder = tmp_path / "webui" / "models" / "Lora"
    write(workspace.loras / "mine.safetensors", {"modelspec.trigger_phrase": "own"})
    write(folder / "styles" / "ink.safetensors")
    (folder / "styles" / "ink.png").touch()
    noted = {"activation text": "inky\nbrush", "preferred weight": 0.7}
    (folder / "styles" / "ink.json").write_text(json.dumps(noted), encoding="utf-8")
    (folder / "torn.safetensors").touch()
    adopt(workspace, tmp_path / "webui")
    cards = {card.name: card for card in workspace_cards(workspace)}
    assert list(cards) == ["mine", "styles/ink", "torn"]
    ink = cards["styles/ink"]
    assert (ink.trigger_word, ink.preferred_weight, ink.rank) == ("inky brush", 0.7, 8)
    assert ink.preview == folder / "styles" / "ink.png"
    assert ink.path == folder / "styles" / "ink.safetensors"
    assert (cards["mine"].trigger_word, cards["mine"].preferred_weight) == ("own", 0.0)
    assert cards["torn"].problem
