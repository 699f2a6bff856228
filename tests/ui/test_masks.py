"""Masks painted on the Dataset tab: written beside the picture, found again, taken back; nothing else is written."""

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from diffusion_lora.config import shipped
from diffusion_lora.data.edits import Edit
from diffusion_lora.errors import DatasetError
from diffusion_lora.workspace import Workspace
from tests.ui.conftest import OpenPage
from tests.ui.person import Person
from tests.ui.process import DeskProcess, wait_for
from webui import sets
from webui.datasets import Datasets


def painted(size: tuple[int, int] = (64, 32), kind: str = "PNG", white: bool = True) -> str:
    """What a browser sends: the left half is white."""
    image = Image.new("L", size)
    if white:
        image.paste(255, (0, 0, size[0] // 2, size[1]))
    file = io.BytesIO()
    image.save(file, format=kind)
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A set of two pictures; the second has a mask in masks/."""
    folder = Workspace.open(tmp_path / "w").datasets / "mine"
    (folder / "masks").mkdir(parents=True)
    for name in "ab":
        Image.effect_noise((200, 100), 60).convert("RGB").save(folder / f"{name}.png")
    Image.new("L", (200, 100), 128).save(folder / "masks" / "b.png")
    return folder


@pytest.fixture
def datasets(mine: Path) -> Datasets:
    return Datasets(Workspace(mine.parents[1]), str)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def with_mask(datasets: Datasets, folder: Path) -> list[str]:
    return [item["name"] for item in datasets.open(str(folder))["items"] if item["mask"]]


def test_a_mask_has_the_size_of_its_picture_and_every_change_is_taken_back(datasets: Datasets, mine: Path) -> None:
    """Wrong: black and white change places, a mask in masks/ comes to light, Undo brings back another one."""
    order = {"folder": str(mine), "picture": "a.png"}
    assert with_mask(datasets, mine) == ["b.png"]
    told = datasets.save_mask({**order, "painted": painted()})
    assert told["masked"] == ["a.png", "b.png"]
    with Image.open(mine / "a.mask.png") as mask:
        assert (mask.format, mask.mode, mask.size) == ("PNG", "L", (200, 100))
        assert (mask.getpixel((10, 50)), mask.getpixel((190, 50))) == (255, 0)
    seen = datasets.mask(order)
    assert seen["size"] == (200, 100)
    assert base64.b64decode(seen["mask"])[:4] == b"\x89PNG"
    first = (mine / "a.mask.png").read_bytes()
    datasets.save_mask({**order, "painted": painted((32, 64))})
    assert datasets.remove_mask(order)["undo"] == "removing the mask of a.png"
    assert files(mine) == ["a.png", "b.png"]
    assert datasets.undo(order)["told"] == "Removing the mask of a.png is taken back."
    assert datasets.undo(order)["told"] == "The mask of a.png is taken back."
    assert (mine / "a.mask.png").read_bytes() == first
    datasets.undo(order)
    assert files(mine) == ["a.png", "b.png"]

    datasets.save_mask({**order, "picture": "b.png", "painted": painted()})
    assert datasets.remove_mask({**order, "picture": "b.png"})["masked"] == []
    datasets.undo(order)
    assert (mine / "masks" / "b.png").exists()
    assert (mine / "b.mask.png").exists()


def test_a_picture_takes_its_mask_along(datasets: Datasets, mine: Path) -> None:
    """Wrong: a mask that is left alone becomes a picture to train on."""
    order = {"folder": str(mine), "picture": "a.png"}
    datasets.save_mask({**order, "painted": painted()})
    datasets.remove_mask(order)
    datasets.remove(order)
    assert "trash" in datasets.undo(order)["told"]
    datasets.save_mask({**order, "picture": "b.png", "painted": painted()})
    Image.new("RGB", (200, 100)).save(mine / "b.jpg")  # shares the mask
    datasets.remove({**order, "picture": "b.png"})
    assert files(mine) == ["b.jpg", "b.mask.png"]
    assert with_mask(datasets, mine) == ["b.jpg"]


def test_a_shipped_set_is_painted_on_as_a_copy(datasets: Datasets) -> None:
    folder = shipped("datasets", "pocket-style").resolve()
    there = files(folder)
    order = {"folder": str(folder), "picture": "01-cactus.png", "painted": painted()}
    told = datasets.save_mask(order)
    assert Path(told["folder"]) == datasets.workspace.datasets / "pocket-style"
    assert (Path(told["folder"]) / "01-cactus.mask.png").is_file()
    assert files(folder) == there


def test_no_mask_is_written_while_the_set_is_captioned(datasets: Datasets, mine: Path) -> None:
    """Wrong: captioning, which is found again by the newest edit, is lost behind that of a mask."""
    order = Edit.of(mine, {"what": "caption"})
    with order.at_work(), pytest.raises(DatasetError, match="mine is being captioned"):
        datasets.save_mask({"folder": str(mine), "picture": "a.png", "painted": painted()})
    assert files(mine) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"picture": "../other/x.png"}, "has no picture"),
        ({"picture": "a.mask"}, "has no picture"),
        ({"painted": "not base64 at all"}, "no PNG"),
        ({"painted": base64.b64encode(b"<svg/>").decode()}, "no PNG"),
        ({"painted": painted(kind="JPEG")}, "no PNG"),
        ({"painted": painted((4096, 8))}, "too large"),
        ({"painted": "A" * 4_000_000}, "too large"),
        ({"painted": painted()[:60]}, "no PNG"),
        ({"painted": painted(white=False)}, "nothing is painted"),
        ({"painted": ""}, "nothing is painted"),
        ({"painted": None}, "nothing is painted"),
    ],
)
def test_what_is_no_mask_of_a_picture_is_refused(
    datasets: Datasets, mine: Path, wrong: dict[str, Any], sentence: str
) -> None:
    other = mine.parent / "other"
    other.mkdir()
    Image.new("RGB", (16, 16)).save(other / "x.png")
    before = files(mine)
    with pytest.raises(DatasetError, match=sentence):
        datasets.save_mask({"folder": str(mine), "picture": "a.png", "painted": painted(), **wrong})
    assert files(mine) == before
    assert files(other) == ["x.png"]


def test_nothing_is_written_outside_of_the_set(
    datasets: Datasets, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of masks may be a link; other machines open what lies in the workspace alone."""
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.new("RGB", (16, 16)).save(outside / "x.png")
    (mine / "masks" / "b.png").rename(outside / "b.png")
    (mine / "masks").rmdir()
    (mine / "masks").symlink_to(outside)
    for act in (datasets.mask, datasets.save_mask, datasets.remove_mask):
        with pytest.raises(DatasetError, match="does not lie in mine"):
            act({"folder": str(mine), "picture": "b.png", "painted": painted()})
    (outside / "b.png").unlink()

    monkeypatch.setattr(sets, "_allowed", [])
    datasets.save_mask({"folder": str(outside), "picture": "x.png", "painted": painted()})
    sets.stay_in(datasets.workspace.datasets)
    for act in (datasets.mask, datasets.save_mask, datasets.remove_mask):
        with pytest.raises(DatasetError, match="other machines"):
            act({"folder": str(outside), "picture": "x.png", "painted": painted()})
    assert files(outside) == ["x.mask.png", "x.png"]


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """A stroke over the picture, from and to shares of its width and height."""
    box = page.locator("#dataset-desk .mask-view canvas").bounding_box()
    assert box is not None
    for number, (x, y) in enumerate((start, end)):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=1 + 9 * number)
        if not number:
            page.mouse.down()
    page.mouse.up()


def shade(folder: Path, x: float, y: float) -> int:
    """How much the mask of a.png counts at a place."""
    with Image.open(folder / "a.mask.png") as mask:
        return int(mask.getpixel((int(x * mask.width), int(y * mask.height))))  # type: ignore[arg-type]


def open_mask(page: Page) -> None:
    page.locator("#dataset-desk [data-picture='a.png']").hover()
    page.locator("#dataset-desk [data-picture='a.png'] [data-act=mask]").click()
    expect(page.locator("#dataset-desk .mask-view canvas")).to_be_visible()


def test_a_person_paints_a_mask(desk: DeskProcess, open_page: OpenPage) -> None:
    folder = desk.workspace / "datasets" / "a-painted-set"  # the first of the list: it opens by itself
    folder.mkdir(parents=True)
    for name in "ab":
        Image.effect_noise((360, 240), 60).convert("RGB").save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text("a grey wall", encoding="utf-8")
    page = open_page(desk.url).page
    Person(page).go_to("dataset")
    view, told = page.locator("#dataset-desk .mask-view"), page.locator("#dataset-desk .wall > .told")
    button = page.locator("#dataset-desk [data-picture='a.png'] [data-act=mask]")
    expect(page.locator("#dataset-desk .set")).to_have_value(str(folder))

    open_mask(page)
    expect(view).to_have_accessible_name("Mask of a.png")
    expect(view.locator("[data-act=save-mask]")).to_be_disabled()
    expect(view.locator("[data-act=remove-mask]")).to_be_hidden()
    drag(page, (0.1, 0.25), (0.9, 0.25))
    view.locator("[data-act=erase]").click()
    drag(page, (0.5, 0.1), (0.5, 0.4))
    page.keyboard.press("Escape")
    expect(view.locator(".told")).to_contain_text("not saved")
    view.locator("[data-act=save-mask]").click()
    expect(view).to_be_hidden()
    expect(told).to_have_text("a.png has a mask now.")
    with Image.open(folder / "a.mask.png") as mask:
        assert (mask.format, mask.mode, mask.size) == ("PNG", "L", (360, 240))
    assert [shade(folder, x, 0.25) for x in (0.2, 0.8)] == [255, 255]
    assert [shade(folder, x, y) for x, y in ((0.5, 0.25), (0.2, 0.8), (0.8, 0.8), (0.02, 0.02))] == [0] * 4
    expect(button).to_have_accessible_name("Mask of a.png")
    expect(page.locator("#dataset-desk .problems")).to_contain_text("1 picture has a mask; training looks at it")

    page.reload()
    Person(page).go_to("dataset")
    expect(button).to_have_accessible_name("Mask of a.png")
    expect(page.locator("#dataset-desk [data-picture='b.png'] [data-act=mask]")).to_have_accessible_name(
        "Paint a mask for b.png"
    )
    open_mask(page)
    drag(page, (0.1, 0.75), (0.9, 0.75))  # further, on what was there
    view.locator("[data-act=save-mask]").click()
    expect(view).to_be_hidden()
    assert [shade(folder, x, y) for x in (0.2, 0.8) for y in (0.25, 0.75)] == [255] * 4
    assert shade(folder, 0.5, 0.25) == 0

    open_mask(page)
    view.locator("[data-act=clear]").click()
    view.locator("[data-act=save-mask]").click()
    expect(view.locator(".told")).to_contain_text("Nothing is painted")
    view.locator("[data-act=remove-mask]").click()
    expect(view).to_be_hidden()
    expect(told).to_have_text("a.png has no mask now; Undo brings it back.")
    assert not (folder / "a.mask.png").exists()
    expect(button).to_have_accessible_name("Paint a mask for a.png")
    page.locator("#dataset-desk [data-act=undo]").click()
    expect(button).to_have_accessible_name("Mask of a.png")
    wait_for("the mask to be back", (folder / "a.mask.png").exists)
    open_mask(page)
    page.keyboard.press("Escape")  # nothing was painted, nothing is asked
    expect(view).to_be_hidden()
