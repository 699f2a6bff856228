"""The film strip and the pictures that stand for a LoRA: what lies in the workspace, and nothing else."""

import os
from pathlib import Path

import pytest
from PIL import Image

from diffusion_lora.errors import PromptError
from diffusion_lora.workspace import Workspace
from webui import gallery
from webui.gallery import Film, picture_named, thumb


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A fresh workspace."""
    return Workspace.open(tmp_path / "ws")


def picture(path: Path, at: int = 0) -> Path:
    """A small picture, made at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    os.utime(path, (1_700_000_000 + at, 1_700_000_000 + at))
    return path


def test_the_newest_picture_comes_first_and_a_new_one_is_seen(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong: the strip keeps its old pictures, shows half-written files, or does not say that there are more."""
    film = Film(workspace, str)
    assert film.value() == {"pictures": [], "more": 0}
    picture(workspace.pictures / "00002-1.png", 1)
    picture(workspace.pictures / "00001-1.png", 2)
    picture(workspace.pictures / ".5-1.png", 3)
    (workspace.pictures / "notes.txt").write_text("x")
    os.utime(workspace.pictures, (1_700_000_000, 1_700_000_000))
    shown = film.value()
    assert [entry["name"] for entry in shown["pictures"]] == ["00001-1.png", "00002-1.png"]
    assert shown["pictures"][0]["src"] == str(workspace.pictures / "00001-1.png")
    monkeypatch.setattr(gallery, "SHOWN", 2)
    picture(workspace.pictures / "00003-1.png", 3)
    os.utime(workspace.pictures, (1_700_000_001, 1_700_000_001))
    assert [entry["name"] for entry in film.value()["pictures"]] == ["00003-1.png", "00001-1.png"]
    assert film.value()["more"] == 1


@pytest.mark.parametrize("name", ["", "gone.png", "../state/x.png", "/etc/passwd", ".hidden.png"])
def test_a_name_leads_into_the_folder_of_pictures_or_nowhere(workspace: Workspace, name: str) -> None:
    """Wrong: a browser can have any file read as a picture."""
    picture(workspace.state / "x.png")
    picture(workspace.pictures / ".hidden.png")
    with pytest.raises(PromptError, match="no longer in"):
        picture_named(workspace.pictures, name)


def test_a_lora_is_shown_by_the_picture_beside_it_or_its_last_preview(workspace: Workspace) -> None:
    """Wrong: a strip without a picture though there is one, or with the first blur of a training."""
    assert thumb(workspace, "neon", str) is None
    picture(workspace.runs / "neon" / "previews" / "step-000010-0.png")
    picture(workspace.runs / "neon" / "previews" / "step-000200-0.png")
    assert thumb(workspace, "neon", str) == str(workspace.runs / "neon" / "previews" / "step-000200-0.png")
    picture(workspace.loras / "neon.png")
    assert thumb(workspace, "neon", str) == str(workspace.loras / "neon.png")
