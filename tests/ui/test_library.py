"""The library: what a person sees of a LoRA, what can be made of it, and what is not taken into it."""

import json
from pathlib import Path

import pytest
from playwright.sync_api import expect

from diffusion_lora.errors import AdapterFileError, OutputError
from diffusion_lora.sidecar import read_notes
from diffusion_lora.workspace import Workspace
from tests.ui.conftest import OpenPage
from tests.ui.person import Person
from tests.ui.process import DeskProcess
from tests.ui.raw import ask
from webui.library import Library

STYLE = Path(__file__).resolve().parents[1] / "judge" / "style.safetensors"


@pytest.fixture
def library(tmp_path: Path) -> Library:
    """A library with one real LoRA, noted."""
    workspace = Workspace.open(tmp_path / "w")
    (workspace.loras / "ink.safetensors").write_bytes(STYLE.read_bytes())
    (workspace.loras / "ink.json").write_text('{"notes": "soft at 0.6", "kept": 1}', encoding="utf-8")
    (workspace.loras / "ink.preview.png").write_bytes(b"a picture")
    return Library(workspace, str)


def loras(library: Library) -> list[str]:
    return sorted(path.name for path in library.workspace.loras.iterdir())


def test_a_card_and_its_details_say_what_the_file_says(library: Library) -> None:
    (card,) = library.cards()
    assert (card["title"], card["family"], card["trigger"]) == ("ink", "pocket", "blueprint style")
    assert "soft at 0.6" in card["words"], "a note is found by the search"
    told = library.details("ink")
    assert ["Read", "537 of 537 tensors, 179 layers"] in told["rows"]
    assert told["notes"]["text"] == "soft at 0.6"


def test_renaming_and_deleting_take_along_what_lies_beside(library: Library) -> None:
    """Wrong: notes and preview of a renamed LoRA are lost, or of a deleted one turn up at the next of its name."""
    assert library.rename({"name": "ink", "to": "ink two"}) == {"name": "ink two"}
    assert loras(library) == ["ink two.json", "ink two.preview.png", "ink two.safetensors"]
    library.delete("ink two")
    assert loras(library) == []
    assert len(list(library.workspace.trash.iterdir())) == 3


@pytest.mark.parametrize("name", ["../ink", "../loras/ink", "/etc/passwd", "..", "", "ink.safetensors/../ink"])
def test_no_name_leads_out_of_the_library(library: Library, name: str) -> None:
    for act in (library.details, library.spectrum, library.delete):
        with pytest.raises(AdapterFileError):
            act(name)
    for asked in ({"name": name, "to": "x"}, {"name": "ink", "to": name or " "}):
        with pytest.raises((AdapterFileError, OutputError)):
            library.rename(asked)


def test_what_is_no_lora_is_not_taken(library: Library, tmp_path: Path) -> None:
    for number, data in enumerate((b"", b"\x80\x04\x95 pickle", b"PK\x03\x04 zip", STYLE.read_bytes()[:-1])):
        file = tmp_path / f"{number}.part"
        file.write_bytes(data)
        with pytest.raises(AdapterFileError):
            library.take(file, "new.safetensors")
    assert loras(library) == ["ink.json", "ink.preview.png", "ink.safetensors"]
    file.write_bytes(STYLE.read_bytes())
    assert library.take(file, "..\\..\\ink.safetensors") == {"name": "ink-2"}, "a free name in the folder, never a path"


def test_a_person_imports_notes_and_resizes(desk: DeskProcess, open_page: OpenPage) -> None:
    person = Person(open_page(desk.url).page)
    page, folder = person.page, desk.workspace / "loras"
    person.go_to("library")
    expect(page.locator("#library-shelf .cards .empty")).to_be_visible()
    page.locator("#library-shelf .import-file").set_input_files(
        {"name": "ink.safetensors", "mimeType": "application/octet-stream", "buffer": STYLE.read_bytes()}
    )
    expect(page.locator("[data-lora=ink]")).to_be_visible()
    expect(page.locator("#library-shelf .facts")).to_contain_text("537 of 537")
    expect(page.locator("#library-shelf .spectrum rect.kept")).to_have_count(7)
    page.locator("#library-shelf .notes [name=text]").fill("soft at 0.6")
    expect(page.locator("#library-shelf .notes h3")).to_contain_text("saved")
    assert read_notes(folder / "ink.safetensors").notes == "soft at 0.6"
    page.locator("#library-shelf [data-act=resize]").click()
    page.locator("#library-shelf .work [name=out]").fill("ink small")
    page.locator("#library-shelf .work .go").click()
    expect(page.locator("#library-shelf .about h2")).to_have_text("ink small")
    expect(page.locator("#library-shelf .facts")).to_contain_text("7 (scale")
    # What comes into the folder by other hands is seen.
    (folder / "late.safetensors").write_bytes(STYLE.read_bytes())
    expect(page.locator("[data-lora=late]")).to_be_visible()
    page.locator("#library-shelf [data-act=put]").click()
    expect(person.channel("ink small")).to_be_visible()


def test_uploads_of_other_kinds_and_sizes_are_refused_and_noted(desk: DeskProcess) -> None:
    port, log = desk.port, desk.workspace / "state" / "page.log"
    post = {"method": "POST", "body": b"\x80\x04 a pickle"}
    assert ask(port, "/upload/lora?name=a.ckpt", **post).status == 415
    assert ask(port, "/upload/lora?name=a.safetensors", **post).status == 422
    place = "/upload/lora?name=a.safetensors"
    assert ask(port, place, method="POST", headers={"Content-Length": "1073741824"}).status == 413
    assert ask(port, place, headers={"Origin": "http://evil.example"}, **post).status == 403
    assert not (desk.workspace / "loras" / "a.safetensors").exists()
    assert not list((desk.workspace / "state" / "uploads").glob(".*.part"))
    noted = log.read_text(encoding="utf-8")
    assert [status for status in ("415", "422", "413", "403") if f"refused {status}" not in noted] == []
    assert json.dumps(noted).count("\\n") == len(noted.splitlines())
