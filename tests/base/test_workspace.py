"""The workspace: its places, names that every system can bear, and adapters that are never written over."""

import os
from pathlib import Path

import pytest

from diffusion_lora.errors import OutputError
from diffusion_lora.workspace import Workspace, check_name, sha256, workspace_of


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "workspace")


def adapter(folder: Path, data: bytes) -> Path:
    path = folder / "adapter.safetensors"
    path.write_bytes(data)
    return path


def test_a_workspace_has_all_its_places(workspace: Workspace) -> None:
    names = {path.name for path in workspace.root.iterdir()}
    assert names == {"bases", "loras", "datasets", "runs", "pictures", "trash", "state"}
    assert Workspace.open(workspace.root) == workspace
    if os.name == "posix":
        assert workspace.state.stat().st_mode & 0o777 == 0o700


def test_the_variable_names_the_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION_LORA_WORKSPACE", str(tmp_path / "mine"))
    assert Workspace.open().root == tmp_path / "mine"


def test_a_workspace_below_a_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot be made: .* choose another folder with --workspace"):
        Workspace.open(tmp_path / "file" / "workspace")


def test_only_a_run_in_runs_belongs_to_a_workspace(workspace: Workspace, tmp_path: Path) -> None:
    """Else a run beside a checkout would wait for a device that nobody shares with it."""
    assert workspace_of(workspace.runs / "a") == workspace
    assert workspace_of(workspace.pictures / "a") is None
    (tmp_path / "runs" / "a").mkdir(parents=True)
    assert workspace_of(tmp_path / "runs" / "a") is None


def test_paths_are_told_as_seen_from_the_root(workspace: Workspace, tmp_path: Path) -> None:
    assert workspace.relative(workspace.loras / "a.safetensors") == "loras/a.safetensors"
    assert workspace.relative(tmp_path / "elsewhere") == str(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    "name",
    ["", "  ", ".", "..", "../a", "a/b", "a\\b", "a:b", "con", "LPT1.x", "a.", "a ", " a", ".a", "a\n", "x" * 81],
)
def test_names_that_no_file_could_have_everywhere(workspace: Workspace, name: str) -> None:
    with pytest.raises(OutputError, match="name"):
        check_name(name)
    with pytest.raises(OutputError, match="name"):
        workspace.run_folder(name)


@pytest.mark.parametrize("name", ["my-style", "Stil 2", "käse_3.1", "x" * 80, "console"])
def test_names_that_are_well(name: str) -> None:
    assert check_name(name) == name


def test_a_run_gets_the_first_name_that_is_free(workspace: Workspace) -> None:
    for expected in ("style", "style-2", "style-3"):
        assert workspace.free_run_name("style") == expected
        (workspace.runs / expected).mkdir()
    (workspace.runs / ("x" * 80)).mkdir()
    assert workspace.free_run_name("x" * 80) == "x" * 75 + "-2"


def test_publishing_writes_over_nothing_but_its_own(workspace: Workspace, tmp_path: Path) -> None:
    """If this failed, a second training of one name would cost the first one's adapter."""
    first = workspace.publish(adapter(tmp_path, b"one"), "style")
    assert first == workspace.loras / "style.safetensors"
    assert workspace.publish(adapter(tmp_path, b"one"), "style") == first
    second = workspace.publish(adapter(tmp_path, b"two"), "style")
    assert second.name == "style-2.safetensors"
    assert first.read_bytes() == b"one"

    grown = workspace.publish(adapter(tmp_path, b"one, grown"), "style", earlier=(first, sha256(first)))
    assert grown == first
    assert first.read_bytes() == b"one, grown"
    digest = sha256(first)
    first.write_bytes(b"changed by somebody")
    again = workspace.publish(adapter(tmp_path, b"one, grown more"), "style", earlier=(first, digest))
    assert again.name == "style-3.safetensors"
    assert first.read_bytes() == b"changed by somebody"


def test_what_is_thrown_away_is_kept(workspace: Workspace) -> None:
    places = set()
    for _ in range(2):
        (workspace.runs / "a").mkdir()
        (workspace.runs / "a" / "file").touch()
        places.add(workspace.throw_away(workspace.runs / "a"))
    assert len(places) == 2
    assert all((place / "file").exists() and place.parent == workspace.trash for place in places)
