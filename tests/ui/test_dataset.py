"""The Dataset tab: pictures come in, captions are edited, described and taken back, and nothing else gets in."""

import io
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Route, expect

from diffusion_lora.config import shipped
from diffusion_lora.errors import ConfigError, DatasetError
from diffusion_lora.workspace import Workspace
from tests.ui.conftest import OpenPage
from tests.ui.person import Person
from tests.ui.process import DeskProcess, wait_for
from tests.ui.raw import ask
from webui import sets
from webui.datasets import Datasets


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A set of three pictures, one lying and one without caption."""
    folder = Workspace.open(tmp_path / "w").datasets / "mine"
    folder.mkdir()
    sizes = {"a": (128, 128), "b": (256, 100), "c": (128, 128)}
    said = {"a": "a Cat, red", "b": "a cat on a mat"}
    for name, size in sizes.items():
        Image.effect_noise(size, 60).convert("RGB").save(folder / f"{name}.png")
        if name in said:
            (folder / f"{name}.txt").write_text(said[name], encoding="utf-8")
    return folder


@pytest.fixture
def datasets(mine: Path) -> Datasets:
    return Datasets(Workspace(mine.parents[1]), str)


def captions(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))}


def test_a_rule_changes_all_captions_and_is_taken_back(datasets: Datasets, mine: Path) -> None:
    """Wrong: a preview that writes, a word found inside another, or a caption that is not as it was."""
    before = captions(mine)
    order = {"folder": str(mine), "kind": "replace", "find": "cat", "put": "dog"}
    assert datasets.edit({**order, "dry": True})["shown"] == [
        ["a.png", "a Cat, red", "a dog, red"], ["b.png", "a cat on a mat", "a dog on a mat"],
    ]  # fmt: skip
    assert captions(mine) == before
    assert datasets.edit(order)["changed"] == 2
    assert captions(mine) == {"a": "a dog, red", "b": "a dog on a mat"}
    assert datasets.open(str(mine))["undo"] == "cat became dog"
    datasets.undo({"folder": str(mine)})
    assert captions(mine) == before
    with pytest.raises(ConfigError):
        datasets.edit({"folder": str(mine), "kind": "regex", "find": "(", "put": ""})
    with pytest.raises(DatasetError):
        datasets.undo({"folder": str(mine)})


def test_crops_and_tokens_are_told_for_the_base(datasets: Datasets, mine: Path) -> None:
    shapes = datasets.shapes({"folder": str(mine), "base": "pocket"})
    assert shapes["pictures"]["a.png"] == [128, 128, 128, 128, 0.0]
    width, height, wide, high, cut = shapes["pictures"]["b.png"]
    assert (width, height) == (256, 100)
    assert wide > high
    assert cut == pytest.approx(1 - wide / high / 2.56 if wide / high < 2.56 else 1 - 2.56 * high / wide, abs=1e-3)
    (short, long) = datasets.tokens({"captions": ["a red cat", "a cat " * 40]})["tokens"]
    assert short == [3, ""]
    assert long == [80, "cat a cat a cat "]


def test_the_pictures_of_a_shipped_set_are_removed_from_a_copy(datasets: Datasets) -> None:
    folder = shipped("datasets", "pocket-style").resolve()
    there = sorted(path.name for path in folder.iterdir())
    told = datasets.remove({"folder": str(folder), "picture": "01-cactus.png"})
    assert Path(told["folder"]) == datasets.workspace.datasets / "pocket-style"
    assert sorted(path.name for path in folder.iterdir()) == there
    assert len(list(Path(told["folder"]).glob("*.png"))) == 23


def test_a_caption_finds_its_picture_in_either_order(tmp_path: Path) -> None:
    """Files are sent one after the other, and a second picture of a name gets another one."""
    for number in (1, 2):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.part", format="PNG")
        (tmp_path / f"{number}.text").write_text(f"caption {number}", encoding="utf-8")
    folder = tmp_path / "set"
    folder.mkdir()
    sets.take_picture(folder, tmp_path / "1.text", "x.txt")
    assert sets.take_picture(folder, tmp_path / "1.part", "x.png") == "x.png"
    assert sets.take_picture(folder, tmp_path / "2.part", "../x.PNG") == "x-2.png"
    assert captions(folder) == {"x": "caption 1"}


def zipped(files: dict[str, bytes]) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return held.getvalue()


def picture() -> bytes:
    held = io.BytesIO()
    Image.effect_noise((140, 140), 60).convert("RGB").save(held, format="PNG")
    return held.getvalue()


def test_uploads_that_are_no_pictures_are_refused_and_noted(desk: DeskProcess) -> None:
    port = desk.port
    html, svg = b"<html><script>alert(1)</script>", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"
    bomb = zipped({"a.png": b"\0" * 20_000_000})
    slip = zipped({"../../evil.png": picture()})
    for path, body, status in (
        ("picture?name=a.svg", svg, 415), ("picture?name=a.html", html, 415), ("picture?name=a.png", html, 422),
        ("picture?name=a.png", svg, 422), ("picture?name=a.txt", b"\xff\xfe\x00", 422), ("zip?name=a.zip", bomb, 422),
        ("zip?name=a.zip", slip, 422), ("zip?name=a.zip", b"no zip", 422), ("zip?name=..", b"", 415),
    ):  # fmt: skip
        assert ask(port, f"/upload/{path}", method="POST", body=body).status == status, (path, body[:20])
    long = {"Content-Length": "1073741824"}
    assert ask(port, "/upload/picture?name=a.png", method="POST", headers=long).status == 413
    names = [path.name for path in desk.workspace.rglob("*") if path.suffix in {".svg", ".html", ".part"}]
    assert not names
    assert not (desk.workspace / "evil.png").exists()
    assert not (desk.workspace.parent / "evil.png").exists()
    assert (desk.workspace / "state" / "page.log").read_text(encoding="utf-8").count("refused 4") >= 10


def test_what_is_begun_before_the_first_set_has_come_stays(desk: DeskProcess, open_page: OpenPage) -> None:
    """Wrong: the answer for the set that opens by itself takes away the line somebody is already typing in."""
    page = open_page(desk.url).page
    held: list[Route] = []
    page.route("**/component_server/**", lambda route: held.append(route))
    page.reload()
    Person(page).go_to("dataset")
    page.locator("#dataset-desk").get_by_role("button", name="New set").click()  # it has its words from its script
    line = page.locator("#dataset-desk .line input")
    line.fill("cats")
    wait_for("the page to ask for the first set", lambda: page.wait_for_timeout(50) or held)
    page.unroute("**/component_server/**")  # which lets go what was held
    expect(page.locator("#dataset-desk .pictures > *").first).to_be_visible()
    expect(line).to_have_value("cats")


def test_a_person_makes_a_set(desk: DeskProcess, open_page: OpenPage) -> None:
    person = Person(open_page(desk.url).page)
    page = person.page
    person.go_to("dataset")
    page.locator("#dataset-desk").get_by_role("button", name="New set").click()  # it has its words from its script
    page.locator("#dataset-desk .line input").fill("cats")
    page.locator("#dataset-desk .line .go").click()
    folder = desk.workspace / "datasets" / "cats"
    expect(page.locator("#dataset-desk .set")).to_have_value(str(folder))
    expect(page.locator("#dataset-desk .pictures .empty")).to_be_visible()
    files = [{"name": f"{name}.png", "mimeType": "image/png", "buffer": picture()} for name in "abc"]
    files.append({"name": "a.txt", "mimeType": "text/plain", "buffer": b"a red cat"})
    page.locator("#dataset-desk .add-files").set_input_files(files)
    expect(page.locator("#dataset-desk .card")).to_have_count(3)
    area = page.locator("#dataset-desk [data-picture='b.png'] textarea")
    area.fill("a blue cat")
    expect(page.locator("#dataset-desk [data-picture='b.png'] .state")).to_have_text("saved")
    expect(page.locator("#dataset-desk [data-picture='b.png'] .tokens")).to_have_text("3 tokens")
    assert captions(folder)["b"].strip() == "a blue cat"
    page.locator("#dataset-desk .words .chip", has_text="blue").click()
    expect(page.locator("#dataset-desk .card")).to_have_count(1)
    page.locator("#dataset-desk .words .chip", has_text="blue").click()
    expect(page.locator("#dataset-caption")).to_have_text("Caption the missing one")
    page.locator("#dataset-caption").click()
    wait_for("the embedded captioner's words", lambda: captions(folder).get("c"))
    expect(page.locator("#dataset-desk [data-picture='c.png'] textarea")).not_to_have_value("")
    expect(page.locator("#dataset-desk .captioner .problem")).to_contain_text("1 captions written")
    page.locator("#dataset-desk [data-act=undo]").click()
    expect(page.locator("#dataset-desk [data-picture='c.png'] textarea")).to_have_value("")
    assert not (folder / "c.txt").exists()
    page.locator("#dataset-train").click()
    expect(page.locator("#train-dataset input")).to_have_value("cats")
