"""The queue, the door of the page and a run in a workspace, as somebody at a terminal meets them. No training here."""

import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from diffusion_lora.accounts import Accounts, add_user
from diffusion_lora.processes import Presence, announce, only_one
from diffusion_lora.workspace import Workspace

CommandLine = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "workspace")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "pictures" / "0.png")
    (tmp_path / "pictures" / "0.txt").write_text("a red thing", encoding="utf-8")
    path = tmp_path / "mine.toml"
    path.write_text('[dataset]\npath = "pictures"\n[output]\nname = "mine"\n', encoding="utf-8")
    return path


def complaint(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.returncode == 2, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def test_runs_are_queued_told_paused_tried_again_and_removed(
    command_line: CommandLine, workspace: Workspace, config: Path
) -> None:
    """A stand-in holds the worker's lock and says it is there, so that nothing is trained meanwhile."""
    here = ("--workspace", workspace.root)
    assert "the queue is empty" in command_line("queue", *here).stdout
    announce(workspace, "worker", Presence.this())
    with only_one(workspace.state / "worker.lock"):
        for name in ("mine", "mine-2"):
            added = command_line("queue", "add", config, "--steps", 7, *here)
            assert added.returncode == 0, added.stderr
            assert added.stdout == f"queued: {name} ({workspace.runs / name})\n"
        assert "another worker is at work" in command_line("worker", *here).stdout
        assert command_line("queue", "pause", "mine", *here).stdout == "mine is paused\n"
        assert command_line("queue", "cancel", "mine-2", *here).stdout == "mine-2 is out of the line\n"
        assert command_line("queue", "retry", "mine", *here).stdout == "mine waits for its turn\n"
        told = command_line("queue", "list", *here).stdout.splitlines()
        assert [line.split()[:2] for line in told] == [["mine", "waiting"], ["mine-2", "stopped"]]
        assert "already" in complaint(command_line("queue", "retry", "mine", *here))
        assert "there is no run 'yours'" in complaint(command_line("queue", "cancel", "yours", *here))
        removed = command_line("queue", "remove", "mine-2", *here).stdout
        assert str(workspace.trash) in removed
        assert not (workspace.runs / "mine-2").exists()


def test_the_page_lets_nobody_else_in_without_a_login(
    command_line: CommandLine, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DIFFUSION_LORA_PASSWORD", raising=False)
    file = workspace.root / "users.json"
    here = ("--workspace", workspace.root, "--no-browser")
    assert "add --auth FILE" in complaint(command_line("ui", "--listen", "0.0.0.0", *here))
    assert "users add NAME" in complaint(command_line("ui", "--auth", file, *here))
    said = complaint(command_line("users", "add", "me", "--auth", file, stdin=subprocess.DEVNULL))
    assert "DIFFUSION_LORA_PASSWORD" in said
    monkeypatch.setenv("DIFFUSION_LORA_PASSWORD", "short")
    assert "give 8 or more" in complaint(command_line("users", "add", "me", "--auth", file))
    assert not file.exists()
    monkeypatch.setenv("DIFFUSION_LORA_PASSWORD", "long enough")
    assert "me is added" in command_line("users", "add", "me", "--auth", file).stdout
    assert "long enough" not in file.read_text(encoding="utf-8")
    assert command_line("users", "list", "--auth", file).stdout == "me\n"
    assert Accounts(file).check("me", "long enough")
    assert not Accounts(file).check("me", "long enouGh")
    assert not Accounts(file).check("you", "long enough")


def test_a_taken_port_and_a_foreign_address_are_sentences(
    command_line: CommandLine, workspace: Workspace
) -> None:
    here = ("--workspace", workspace.root, "--no-browser")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} cannot be used" in complaint(command_line("ui", "--port", port, *here))
    add_user(workspace.root / "users.json", "me", "a secret")
    said = complaint(command_line("ui", "--listen", "192.0.2.1", "--auth", workspace.root / "users.json", *here))
    assert "--listen 192.0.2.1: there is no such address on this machine" in said
