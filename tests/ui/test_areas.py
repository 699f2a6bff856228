"""Where a channel acts: parts by name, boxes and painted areas become regions of a request, and come back."""

import base64
import io
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diffusion_lora.errors import PromptError
from diffusion_lora.generate.region import Region, parse_region_argument
from diffusion_lora.generate.request import LoraUse, Request
from diffusion_lora.lora.card import Card
from diffusion_lora.workspace import Workspace
from webui.desk import Form, channels_of, command, request_of, restore, strip


def painted() -> str:
    """A mask as the browser paints one: its left half."""
    image = Image.new("L", (16, 16))
    image.paste(255, (0, 0, 8, 16))
    file = io.BytesIO()
    image.save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace with four files that look like LoRAs from outside."""
    opened = Workspace.open(tmp_path / "ws")
    for name in "abcd":
        (opened.loras / f"{name}.safetensors").write_bytes(b"x")
    return opened


def test_areas_become_regions_and_come_back(workspace: Workspace, tmp_path: Path) -> None:
    """Wrong: a LoRA acts elsewhere than was painted; two of one area get half of it each; a dropped picture forgets."""
    state: list[dict[str, Any]] = [
        {"name": "a", "area": "left", "words": "zib on a beach"},
        {"name": "b", "area": "left", "words": "zib on a beach"},
        {"name": "c", "area": "painted", "mask": painted()},
        {"name": "d", "area": "0.25,0,1,0.5"},
    ]
    channels = channels_of(state)
    request = request_of(Form("x", seed="1"), channels, workspace)
    assert [(one.name, one.box, one.prompt, bool(one.mask)) for one in request.regions] == [
        ("left", (0, 0, 0.5, 1), "zib on a beach", False),
        ("area 2", (0, 0, 1, 1), "", True),
        ("area 3", (0.25, 0, 1, 0.5), "", False),
    ]
    assert [use.region for use in request.loras] == ["left", "left", "area 2", "area 3"]
    cards = [Card(path.stem, path) for path in sorted(workspace.loras.glob("*.safetensors"))]
    found = restore(request, cards)
    assert found.channels == channels
    assert found.told == ()
    kept = {key: strip(found.channels[2], None)[key] for key in ("area", "mask", "words")}
    assert kept == {"area": "painted", "mask": painted(), "words": ""}

    def file_of(mask: str) -> Path:
        path = tmp_path / "mask.png"
        path.write_bytes(base64.b64decode(mask))
        return path

    words = shlex.split(command(request, file_of=file_of))
    given = [parse_region_argument(words[at + 1]) for at, word in enumerate(words) if word == "--region"]
    assert [(one.name, one.box, one.prompt) for one in given] == [
        (one.name, one.box, one.prompt) for one in request.regions
    ]
    masks = [one.mask_image() for one in (given[1], request.regions[1])]
    assert masks[0] is not None
    assert masks[1] is not None
    assert masks[0].tobytes() == masks[1].tobytes()


def test_regions_that_the_desk_cannot_hold_are_told() -> None:
    """Wrong: words for a part of the picture that no LoRA acts in are lost in silence."""
    with_words = Request("x", regions=(Region("left", "a cat", (0, 0, 0.5, 1)),))
    soft = Request("x", loras=(LoraUse("a", Path("a"), region="r"),), regions=(Region("r", soft=0.5),))
    for request in (with_words, soft):
        assert any("regions" in told for told in restore(request, []).told)


@pytest.mark.parametrize(
    "said",
    [
        {"area": "painted"},
        {"area": "painted", "mask": "AAAA"},
        {"area": "nowhere"},
        {"area": "0,0,2,1"},
        {"area": "left", "words": "x" * 3000},
        {"area": "painted", "mask": "A" * 500_000},
    ],
)
def test_an_area_that_is_none_is_a_sentence(said: dict[str, str]) -> None:
    """Wrong: a LoRA that was meant for a part acts everywhere."""
    with pytest.raises(PromptError):
        channels_of([{"name": "a", **said}])
