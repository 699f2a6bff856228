"""What a drawing begins with: pictures by name and by hash, masks as painted; nothing that is somebody else's."""

import base64
import io
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diffusion_lora.errors import PromptError
from diffusion_lora.generate.request import Request
from diffusion_lora.generate.start import Hires, Start
from diffusion_lora.workspace import Workspace
from webui.desk import command, restore
from webui.sources import NOTHING, Source, picture_of, sent, source_of, state_of


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace with a picture in it."""
    opened = Workspace.open(tmp_path / "ws")
    Image.new("RGB", (64, 96), "red").save(opened.pictures / "00001-1.png")
    return opened


def encoded(colour: str, size: tuple[int, int] = (8, 8)) -> str:
    """A picture as the browser sends it."""
    file = io.BytesIO()
    Image.new("L", size, colour).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_words_alone_are_what_there_is_at_first(workspace: Workspace) -> None:
    """Wrong: a page that was just opened draws from a picture."""
    assert source_of(None, workspace, "") == source_of(dict(NOTHING), workspace, "") == Source()


def test_a_picture_and_what_is_painted_become_a_start_and_come_back(workspace: Workspace) -> None:
    """Wrong: a dropped picture draws from another start than it was drawn from, or without its mask."""
    state = {"mode": "inpaint", "picture": {"name": "00001-1.png"}, "strength": 0.8, "blur": 2, "only_masked": True,
             "mask": encoded("white")}  # fmt: skip
    (request,) = source_of(state, workspace, "").of([Request("x", seed=3)])
    start = request.start
    assert start is not None
    assert start.mask is not None
    assert (start.image, start.strength, start.blur_px, start.only_masked) == (
        workspace.pictures / "00001-1.png", 0.8, 2, True,
    )  # fmt: skip
    back, told = state_of(request, workspace, "", str)
    assert told == ""
    assert back["picture"] == {"name": "00001-1.png", "src": str(start.image)}
    assert source_of(back, workspace, "").of([request]) == [request]
    assert restore(request, []).told == ()
    words = shlex.split(command(request))
    assert words[words.index("--image") + 1] == str(start.image)
    assert words[words.index("--mask") + 1] == str(start.mask)
    assert "--only-masked" in words


def test_a_larger_second_pass_goes_there_and_back(workspace: Workspace) -> None:
    """Wrong: Upscale draws the picture as it was, or its settings are lost."""
    state = {"mode": "upscale", "scale": 1.5, "again": 0.4, "upscaler": "lanczos"}
    (request,) = source_of(state, workspace, "").of([Request("x")])
    assert request.hires == Hires(1.5, 0.4, 0, "lanczos")
    back, told = state_of(request, workspace, "", str)
    assert (source_of(back, workspace, "").hires, told) == (request.hires, "")
    assert "--hires 1.5 --strength 0.4 --upscaler lanczos" in command(request)


def test_a_picture_of_ones_own_is_kept_under_its_content(workspace: Workspace) -> None:
    """Wrong: the same picture lies there twice, or what is no picture is kept."""
    first = sent("data:image/png;base64," + encoded("grey"), workspace)
    assert sent(encoded("grey"), workspace) == first
    held = picture_of(first, workspace, "", "small")
    assert (held["width"], held["height"], held["src"]) == (8, 8, "small")
    start = source_of({"mode": "image", "picture": held}, workspace, "").start
    assert start is not None
    assert start.image == first
    with pytest.raises(PromptError, match="no picture that can be read"):
        sent(base64.b64encode(b"<svg onload=alert(1)>").decode(), workspace)
    assert list((workspace.state / "given").iterdir()) == [first]
    with pytest.raises(PromptError, match="not arrived"):
        sent("x!", workspace)


@pytest.mark.parametrize(
    "said",
    [
        {"mode": "image"},
        {"mode": "image", "picture": {"name": "../state/x.png"}},
        {"mode": "image", "picture": {"given": "../../../etc/passwd"}},
        {"mode": "image", "picture": {"given": "0" * 64}},
        {"mode": "image", "picture": {"name": "00001-1.png"}, "strength": "all"},
        {"mode": "image", "picture": {"name": "00001-1.png"}, "strength": 7},
        {"mode": "inpaint", "picture": {"name": "00001-1.png"}},
        {"mode": "inpaint", "picture": {"name": "00001-1.png"}, "mask": "AAAA"},
        {"mode": "upscale", "scale": 90},
        {"mode": "upscale", "upscaler": "/etc/passwd"},
    ],
)
def test_what_cannot_be_begun_with_is_a_sentence(workspace: Workspace, said: dict[str, Any]) -> None:
    """Wrong: a browser names a file of this machine, or a figure that is none becomes a traceback."""
    with pytest.raises(PromptError):
        source_of(said, workspace, "")


def test_nobody_begins_with_a_picture_of_another_or_of_elsewhere(workspace: Workspace, tmp_path: Path) -> None:
    """Wrong: a picture that was passed on makes the page open the file that it names."""
    with pytest.raises(PromptError):
        source_of({"mode": "image", "picture": {"name": "00001-1.png"}}, workspace, "somebody")
    elsewhere = tmp_path / "private.png"
    Image.new("RGB", (8, 8)).save(elsewhere)
    for path, user in ((elsewhere, ""), (workspace.pictures / "00001-1.png", "somebody")):
        back, told = state_of(Request("x", start=Start(path)), workspace, user, str)
        assert back["picture"] is None
        assert path.name in told
