"""The `workspace` commands as a person types them, and LoRAs by name wherever a file can stand."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from diffusion_lora.adapter_commands import app as adapter_app
from diffusion_lora.cli import _found
from diffusion_lora.errors import BaseModelError, WorkspaceError
from diffusion_lora.families.source import locate
from diffusion_lora.generate.infotext import request_fields
from diffusion_lora.generate.request import Request, parse_lora_argument
from diffusion_lora.lora.adapter import Adapter, LowRank, write_adapter
from diffusion_lora.serve.asked import Generate, read
from diffusion_lora.workspace import Workspace
from diffusion_lora.workspace_commands import app

KEY = "unet.mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.fixture
def webui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A web UI's folder with one LoRA, and a default workspace that has not adopted it."""
    monkeypatch.setenv("DIFFUSION_LORA_WORKSPACE", str(tmp_path / "workspace"))
    folder = tmp_path / "webui"
    (folder / "models" / "Lora").mkdir(parents=True)
    adapter = Adapter({KEY: LowRank(torch.randn(4, 32), torch.randn(48, 4), 2.0)}, {})
    write_adapter(adapter, folder / "models" / "Lora" / "ink.safetensors")
    return folder


def call(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_adopted_listed_noted_and_released(webui: Path) -> None:
    assert "none: put .safetensors files into" in call("list")
    assert f"loras: {webui / 'models' / 'Lora'} (1 files)" in call("adopt", webui)
    assert call("list") == "ink\n"
    assert "activation text: inky" in call("notes", "ink", "--activation", "inky", "--weight", "0.7")
    noted = json.loads((webui / "models/Lora/ink.json").read_text(encoding="utf-8"))
    assert noted == {"activation text": "inky", "preferred weight": 0.7}
    assert call("list") == "ink  0.7  inky\n"
    (told,) = json.loads(call("list", "--json"))["loras"]
    assert (told["name"], told["preferred weight"]) == ("ink", 0.7)
    assert "none:" in call("list", "bases")
    webui.rename(webui.with_name("away"))
    assert f"note: the adopted folder {webui} is not there" in call("list")
    webui.with_name("away").rename(webui)
    call("release", webui)
    with pytest.raises(WorkspaceError, match="there is no LoRA 'ink'"):
        call("notes", "ink")


def test_a_name_stands_wherever_a_file_can(webui: Path) -> None:
    """In the commands on LoRA files, when drawing, and in an order to the engine."""
    call("adopt", webui)
    path = webui / "models" / "Lora" / "ink.safetensors"
    info = CliRunner().invoke(adapter_app, ["info", "ink", "--json"])
    assert json.loads(info.stdout)["file"] == str(path)
    compared = CliRunner().invoke(adapter_app, ["compare", "ink:0.5", "ink", "--json"])
    assert compared.exit_code == 0, compared.exception
    assert _found(parse_lora_argument("ink:0.8")).path == path
    order = request_fields(Request("x", loras=(parse_lora_argument("ink:0.8"),)))
    assert read(Generate, {"requests": [order]}, Workspace.at()).requests[0].loras[0].path == path
    missing = CliRunner().invoke(adapter_app, ["info", "inc"])
    assert isinstance(missing.exception, WorkspaceError)
    assert "did you mean ink?" in str(missing.exception)


def test_a_base_has_a_name_too(webui: Path) -> None:
    """`--base v1-5` is the web UI's checkpoint; a name nobody has is still looked for on the hub."""
    checkpoint = webui / "models" / "Stable-diffusion" / "v1-5.safetensors"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    with pytest.raises(BaseModelError):
        locate("v1-5")
    call("adopt", webui)
    assert locate("v1-5").file == checkpoint
    assert call("list", "bases") == "v1-5\n"
