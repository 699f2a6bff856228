"""Whole desks under a name: what was saved comes back, and nothing else does."""

from pathlib import Path

import pytest

from diffusion_lora.errors import OutputError, PromptError
from diffusion_lora.workspace import Workspace
from webui import desks
from webui.desk import Channel, channels_of

STATE = [
    {"name": "ink", "strength": 0.7, "text": 0.5, "muted": False, "solo": False, "thumb": "thumbnail/x",
     "blocks": "up:0", "steps": "0-0.5", "negative": 0.0},
    {"name": "mine/robot", "strength": -0.3, "text": None, "muted": True, "solo": False},
]


def test_a_desk_comes_back_as_it_was(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    assert desks.names(workspace) == []
    assert desks.save(workspace, " both ", STATE) == "both"
    desks.save(workspace, "one", STATE[:1])
    assert desks.names(workspace) == ["both", "one"]
    assert channels_of(desks.load(workspace, "both")) == (
        Channel("ink", 0.7, 0.5, blocks="up:0", steps="0-0.5", negative=0.0),
        Channel("mine/robot", -0.3, muted=True),
    )  # fmt: skip
    assert "thumbnail" not in (workspace.root / "desks.json").read_text(encoding="utf-8")


def test_what_is_no_desk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace.open(tmp_path)
    with pytest.raises(PromptError, match="empty"):
        desks.save(workspace, "x", [])
    with pytest.raises(OutputError, match="name"):
        desks.save(workspace, "../x", STATE)
    with pytest.raises(PromptError):
        desks.save(workspace, "x", [{"name": "ink", "strength": "nan"}])
    with pytest.raises(PromptError, match="there is no desk"):
        desks.load(workspace, "x")
    monkeypatch.setattr(desks, "_MAX_BYTES", 400)
    desks.save(workspace, "small", [{"name": "ink"}])
    with pytest.raises(PromptError, match="larger"):
        desks.save(workspace, "large", [{"name": "ink"}] * 9)
    assert desks.names(workspace) == ["small"], "those before are still there"
    (tmp_path / "desks.json").write_text("{", encoding="utf-8")
    with pytest.raises(PromptError, match="cannot be read"):
        desks.load(workspace, "x")
