"""Folders of other programs used in place, and names that lead nowhere but to a model in them."""

import json
import os
from pathlib import Path

import pytest

from diffusion_lora.adopted import (
    SETTING,
    adopt,
    adopted_folders,
    find_model,
    lora_path,
    models,
    release,
    roots,
)
from diffusion_lora.errors import WorkspaceError
from diffusion_lora.workspace import Workspace


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.as_posix().encode())


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "workspace")


@pytest.fixture
def webui(tmp_path: Path) -> Path:
    """AUTOMATIC1111's folder."""
    folder = tmp_path / "stable-diffusion-webui"
    touch(
        folder / "models/Lora/ink.safetensors",
        folder / "models/Lora/styles/neon.safetensors",
        folder / "models/Lora/styles/neon.png",
        folder / "models/Lora/old.pt",
        folder / "models/Lora/.hidden.safetensors",
        folder / "models/LyCORIS/lokr.safetensors",
        folder / "models/Stable-diffusion/v1-5.safetensors",
        folder / "models/VAE/vae.safetensors",
    )
    return folder


@pytest.fixture
def comfy(tmp_path: Path) -> Path:
    folder = tmp_path / "ComfyUI"
    touch(folder / "models/loras/ink.safetensors", folder / "models/checkpoints/sdxl/base.safetensors")
    return folder


def names(workspace: Workspace, kind: str = "loras") -> list[str]:
    return [model.name for model in models(workspace, kind)]  # type: ignore[arg-type]


def test_models_are_found_where_they_lie_and_nothing_is_copied(workspace: Workspace, webui: Path, comfy: Path) -> None:
    """The library of hundreds of files stays the other program's; two of one name are told apart."""
    touch(workspace.loras / "mine.safetensors")
    before = sorted(webui.rglob("*"))
    assert {root.kind for root in adopt(workspace, webui)} == {"loras", "bases"}
    adopt(workspace, comfy)
    assert names(workspace) == ["mine", "ink", "styles/neon", "lokr", "ComfyUI/ink"]
    assert names(workspace, "bases") == ["v1-5", "sdxl/base"]
    assert find_model(workspace, "loras", "styles/neon").path == webui / "models/Lora/styles/neon.safetensors"
    assert find_model(workspace, "loras", "ComfyUI/ink").path == comfy / "models/loras/ink.safetensors"
    assert sorted(webui.rglob("*")) == before
    assert list(workspace.loras.iterdir()) == [workspace.loras / "mine.safetensors"]
    assert Workspace.open(workspace.root) == workspace
    assert adopted_folders(workspace) == [webui, comfy]

    release(workspace, webui)
    assert names(workspace) == ["mine", "ink"]
    assert find_model(workspace, "loras", "ink").path == comfy / "models/loras/ink.safetensors"


def test_a_folder_of_models_itself_can_be_adopted(workspace: Workspace, webui: Path) -> None:
    (root,) = adopt(workspace, webui / "models" / "Lora")
    assert (root.kind, root.label) == ("loras", "Lora")
    assert names(workspace) == ["ink", "styles/neon"]


def test_a_folder_that_has_gone_is_passed_over_and_comes_back(workspace: Workspace, webui: Path) -> None:
    """A drive that is not there today must not keep the page from opening."""
    adopt(workspace, webui)
    away = webui.rename(webui.with_name("away"))
    assert names(workspace) == []
    away.rename(webui)
    assert "ink" in names(workspace)


def test_what_cannot_be_adopted_is_a_sentence(workspace: Workspace, webui: Path, tmp_path: Path) -> None:
    adopt(workspace, webui)
    (tmp_path / "empty").mkdir()
    touch(tmp_path / "file")
    for folder, words in (
        (tmp_path / "empty", "is no folder of AUTOMATIC1111, Forge or ComfyUI: it has none of models/Lora"),
        (tmp_path / "file", "is no folder: name that of"),
        (webui, "is adopted already"),
        (workspace.loras, "lies in the workspace"),
    ):
        with pytest.raises(WorkspaceError, match=words):
            adopt(workspace, folder)
    with pytest.raises(WorkspaceError, match=r"is not adopted; the adopted folders are: .*webui"):
        release(workspace, tmp_path / "empty")


@pytest.mark.parametrize("text", ["", "[]", '{"folders": 3}', '{"folders": [1]}', '{"folders"', "\xff", "[" * 100_000])
def test_a_damaged_setting_is_a_sentence(workspace: Workspace, text: str) -> None:
    (workspace.root / SETTING).write_text(text, encoding="latin-1")
    with pytest.raises(WorkspaceError, match=r"adopted.json cannot be read .* delete it and adopt anew"):
        roots(workspace, "loras")


@pytest.mark.parametrize(
    "name",
    [
        "../secret", "styles/../../secret", "..\\secret", "styles\\..\\..\\..\\secret", "/etc/passwd", "C:\\x", "~/ink",
        "", ".", "..", "/", "styles", "styles/", "./ink", "ink\0", "ink/", "//ink", ".hidden", "old", "old.pt",
    ],
)  # fmt: skip
def test_a_name_leads_nowhere_but_to_a_listed_model(
    workspace: Workspace, webui: Path, tmp_path: Path, name: str
) -> None:
    """Names come from prompts, pictures and browsers: one that walks out of the roots would open any file."""
    touch(webui / "models" / "secret.safetensors", tmp_path / "secret.safetensors")
    adopt(workspace, webui)
    for asked in (name, name + ".safetensors", str(tmp_path / "secret.safetensors")):
        with pytest.raises(WorkspaceError, match="there is no LoRA"):
            find_model(workspace, "loras", asked)


@pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
def test_links_count_by_where_they_lead(workspace: Workspace, webui: Path, tmp_path: Path) -> None:
    """A link into another root is a second name; one that leads out, or in a circle, is nothing."""
    adopt(workspace, webui)
    outside = tmp_path / "outside"
    touch(outside / "private.safetensors")
    lora = webui / "models" / "Lora"
    (lora / "file-out.safetensors").symlink_to(outside / "private.safetensors")
    (lora / "folder-out").symlink_to(outside)
    (lora / "to-nothing.safetensors").symlink_to(outside / "absent.safetensors")
    (lora / "circle").symlink_to(lora)
    (lora / "loop.safetensors").symlink_to(lora / "loop.safetensors")
    (workspace.loras / "again.safetensors").symlink_to(lora / "ink.safetensors")
    assert names(workspace) == ["again", "ink", "styles/neon", "lokr"]
    for name in ("file-out", "folder-out/private", "private", "to-nothing", "loop"):
        with pytest.raises(WorkspaceError, match="there is no LoRA"):
            find_model(workspace, "loras", name)


@pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
def test_a_root_that_is_a_link_is_a_root(workspace: Workspace, webui: Path, tmp_path: Path) -> None:
    """Web UIs are often set up with models/ on another disk."""
    disk = tmp_path / "disk"
    (webui / "models" / "Lora").rename(disk)
    (webui / "models" / "Lora").symlink_to(disk)
    adopt(workspace, webui)
    assert names(workspace) == ["ink", "styles/neon", "lokr"]


def test_names_that_differ_in_case_alone_are_two(workspace: Workspace) -> None:
    """The name as written wins; another spelling is not guessed where it fits both."""
    touch(workspace.loras / "Ink.safetensors")
    if (workspace.loras / "ink.safetensors").exists():
        pytest.skip("this file system knows no case")
    assert find_model(workspace, "loras", "iNK").name == "Ink"
    touch(workspace.loras / "ink.safetensors")
    assert find_model(workspace, "loras", "ink").path.name == "ink.safetensors"
    assert find_model(workspace, "loras", "Ink.safetensors").path.name == "Ink.safetensors"
    with pytest.raises(WorkspaceError, match=r"'INK' may be (Ink, ink|ink, Ink): name the one"):
        find_model(workspace, "loras", "INK")


def test_the_last_part_of_a_name_is_enough_where_it_is_plain(workspace: Workspace, webui: Path) -> None:
    """A1111's prompts hold the file's bare name."""
    adopt(workspace, webui)
    assert find_model(workspace, "loras", "neon").name == "styles/neon"
    touch(workspace.loras / "a" / "neon.safetensors")
    with pytest.raises(WorkspaceError, match="may be a/neon, styles/neon"):
        find_model(workspace, "loras", "neon")
    with pytest.raises(WorkspaceError, match="did you mean styles/neon"):
        find_model(workspace, "loras", "styles/neom")


def test_the_setting_is_plain_json(workspace: Workspace, webui: Path) -> None:
    adopt(workspace, webui)
    assert json.loads((workspace.root / SETTING).read_text(encoding="utf-8")) == {"folders": [str(webui)]}


def test_a_path_is_a_path_and_the_rest_are_names(
    workspace: Workspace, webui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is typed as a file must stay that file, or be told to be missing; never another one of the workspace."""
    adopt(workspace, webui)
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "here.safetensors", tmp_path / "saved" / "adapter_model.safetensors")
    neon = webui / "models/Lora/styles/neon.safetensors"
    assert lora_path(workspace, Path("neon"), beside=Path()) == neon
    assert lora_path(workspace, Path("styles/neon")) == neon
    assert lora_path(workspace, Path("ink.safetensors"), beside=Path()) == Path("ink.safetensors")
    assert lora_path(workspace, Path("here.safetensors"), beside=Path()) == Path("here.safetensors")
    assert lora_path(workspace, Path("saved"), beside=Path()) == Path("saved")
    assert lora_path(workspace, Path("loras/x.safetensors")) == workspace.loras / "x.safetensors"
    assert lora_path(Workspace(tmp_path / "none"), Path("neon"), beside=Path()) == Path("neon")
    with pytest.raises(WorkspaceError, match="there is no LoRA 'nothing'"):
        lora_path(workspace, Path("nothing"), beside=Path())


def test_a_base_in_diffusers_layout_is_one_model(workspace: Workspace) -> None:
    """Its UNet alone is no base."""
    folder = workspace.bases / "my" / "base-v1.5"
    touch(folder / "model_index.json", folder / "unet" / "diffusion_pytorch_model.safetensors")
    touch(workspace.bases / "single.safetensors")
    assert names(workspace, "bases") == ["my/base-v1.5", "single"]
    assert find_model(workspace, "bases", "base-v1.5").path == folder
