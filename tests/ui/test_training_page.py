"""Train and Queue: pictures and captions, mistakes in the form, runs that are stopped, resumed, cancelled, removed."""

import re
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import expect

from diffusion_lora.config import load_train_config, shipped
from diffusion_lora.events import read_events
from diffusion_lora.jobs.store import Queue
from diffusion_lora.run import Run
from diffusion_lora.workspace import Workspace
from tests.ui.conftest import OpenPage
from tests.ui.person import Person
from tests.ui.process import DeskProcess, wait_for
from webui.texts import KINDS

CHARACTER = ("pocket-character", "sd15-character")
NASTY = "<img src=x onerror=window.caught=1> ${window.caught=2} {{caught}} it's \"so\" & on"


@pytest.fixture
def person(desk: DeskProcess, open_page: OpenPage) -> Person:
    """Somebody at Train."""
    somebody = Person(open_page(desk.url).page)
    somebody.go_to("train")
    return somebody


def pictures(folder: Path, captions: list[str]) -> Path:
    """A folder of small pictures, each with its caption."""
    folder.mkdir(parents=True)
    for number, caption in enumerate(captions):
        Image.effect_noise((140, 140), 60).convert("RGB").save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption, encoding="utf-8")
    return folder


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def test_a_caption_of_a_shipped_set_is_edited_in_a_copy(person: Person, desk: DeskProcess) -> None:
    """What the package ships is not a person's to change, and a changed caption is on disk without a Save."""
    before = {path.name: path.read_bytes() for path in shipped("datasets", "pocket-style").iterdir()}
    person.edit_captions()
    person.caption_of("01-cactus.png").fill("a cyan cactus, edited here")
    person.caption_of("02-tree.png").fill("a tree, edited too")
    copy = desk.workspace / "datasets" / "pocket-style"
    edited = {"01-cactus.txt": "a cyan cactus, edited here\n", "02-tree.txt": "a tree, edited too\n"}
    wait_for("both captions", lambda: {name: read(copy / name) for name in edited} == edited)
    assert len(list((desk.workspace / "datasets").iterdir())) == 1
    assert {path.name for path in copy.iterdir()} == before.keys()
    assert {path.name: path.read_bytes() for path in shipped("datasets", "pocket-style").iterdir()} == before


def test_another_base_keeps_the_kind_that_was_chosen(person: Person, desk: DeskProcess) -> None:
    """Wrong: who chose Character and then a base of their own trains a style without being asked."""
    kinds, base = person.page.locator("#train-preset label"), person.page.locator("#train-base input")
    assert kinds.all_inner_texts() == ["Style", "Subject", "Character", "Concept"]
    for name in ("Subject", "Concept", "Character"):
        kinds.get_by_text(name, exact=True).click()
        expect(person.page.locator("#train-purpose")).to_have_text(KINDS[name.lower()][1])
    expect(person.field("train-name")).to_have_value("pocket-character")
    expect(person.field("train-trigger")).to_have_value("fen")
    assert Path(person.dataset_folder()).name == "pocket-character"
    steps = {preset: str(load_train_config(shipped("configs", preset)).train.steps) for preset in CHARACTER}
    assert len(set(steps.values())) == 2
    for chosen, preset in (("stable-diffusion-v1-5/stable-diffusion-v1-5", CHARACTER[1]), ("pocket", CHARACTER[0])):
        base.fill(chosen)
        base.press("Enter")
        base.blur()
        expect(person.field("train-steps")).to_have_value(steps[preset])
        expect(kinds.locator("input:checked")).to_have_value(preset)
        assert kinds.all_inner_texts()[:4] == ["Style", "Subject", "Character", "Concept"]
    assert Path(person.dataset_folder()).name == "pocket-character"


def test_uploaded_pictures_become_a_set(person: Person, desk: DeskProcess, tmp_path: Path) -> None:
    mine = pictures(tmp_path / "mine", ["a grey cloud", "another cloud"])
    (mine / "notes.pdf").write_bytes(b"%PDF-1.4 no picture")
    with person.page.expect_file_chooser() as chooser:
        person.button("train-upload").click()
    chooser.value.set_files(sorted(mine.iterdir()))
    expect(person.caption_of("0.png")).to_have_value("a grey cloud")
    expect(person.page.locator("#train-left-out")).to_contain_text("notes.pdf")
    folder = Path(person.dataset_folder())
    assert folder.parent == desk.workspace / "datasets"
    assert {path.name for path in folder.iterdir()} == {"0.png", "0.txt", "1.png", "1.txt"}


def test_captions_names_and_paths_stay_words(person: Person, desk: DeskProcess) -> None:
    """A set from somewhere else may say anything; a run may be called anything a file may be."""
    pictures(desk.workspace / "datasets" / "${window.caught=3} {{x}} it's", [NASTY, NASTY + " again"])
    person.page.reload()
    person.go_to("train")
    person.choose_set(desk.workspace / "datasets" / "${window.caught=3} {{x}} it's")
    person.edit_captions()
    expect(person.caption_of("0.png")).to_have_value(NASTY)
    workspace = Workspace(desk.workspace)
    name = "${window.caught=4} {{x}} it's"
    preset = shipped("configs", "pocket-style")
    Run.create(workspace.run_folder(name), load_train_config(preset, [f'output.name="{name}"', "train.steps=2"]))
    queue = Queue(workspace)
    queue.add(name)
    queue.cancel(name)
    person.go_to("queue")
    expect(person.page.locator("#queue-list")).to_contain_text(name)
    person.page.locator("#queue-list .queue-job", has_text=name).get_by_role("button", name="Show").click()
    expect(person.page.locator("#train-figures")).to_contain_text(name)
    assert person.page.evaluate("window.caught") is None


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [("train-name", "", "name"), ("train-name", "a/b", "a/b"), ("train-steps", "0", "steps")],
)
def test_a_mistake_in_the_form_is_a_sentence(
    person: Person, desk: DeskProcess, field: str, value: str, told: str
) -> None:
    """And nothing is queued, nothing lies around."""
    before = sorted((desk.workspace / "runs").iterdir())
    person.field(field).fill(value)
    person.field(field).blur()
    person.start_training()
    expect(person.page.locator("#train-note")).to_contain_text(told)
    assert sorted((desk.workspace / "runs").iterdir()) == before


def test_a_folder_that_is_not_there_is_a_sentence(person: Person, desk: DeskProcess, tmp_path: Path) -> None:
    person.choose_set(tmp_path / "nowhere")
    expect(person.page.locator("#train-note")).to_contain_text("nowhere")


@pytest.mark.slow
def test_a_run_is_stopped_with_what_it_has_and_resumed(person: Person, desk: DeskProcess) -> None:
    """Stop saves, Resume goes on from there; one that waits meanwhile can be cancelled, and removed into the trash."""
    page, runs = person.page, desk.workspace / "runs"
    steps = 300  # more than fit into this test, however fast the machine: nothing here waits for the end
    person.fill_training("stopped", steps=steps, rank=4)
    person.start_training()
    person.fill_training("waiting", steps=5, rank=4)
    person.start_training()
    person.go_to("queue")
    waiting = page.locator("#queue-list [data-run='waiting']")
    expect(waiting).to_have_attribute("data-state", "waiting")
    waiting.get_by_role("button", name="Cancel").click()
    expect(waiting).to_have_attribute("data-state", "stopped")
    waiting.get_by_role("button", name="Remove").click()
    expect(waiting).to_have_count(0)
    assert [path.name.split()[0] for path in (desk.workspace / "trash").iterdir()] == ["waiting"]
    assert not (runs / "waiting").exists()

    stopped = page.locator("#queue-list [data-run='stopped']")
    stopped.get_by_role("button", name="Show").click()
    person.wait_for_step(1, steps)
    person.button("train-stop").click()
    expect(person.button("train-resume")).to_be_visible()
    saved = [event["step"] for event in read_events(runs / "stopped") if event["kind"] == "checkpoint"][-1]
    assert 1 <= saved < steps
    assert (runs / "stopped" / "adapter.safetensors").is_file()
    expect(person.button("train-resume")).to_have_text(re.compile(str(saved)))
    person.button("train-resume").click()
    person.wait_for_step(saved + 1, steps)
    person.button("train-stop").click()
    expect(person.button("train-resume")).to_be_visible()
    taken = [event["step"] for event in read_events(runs / "stopped") if event["kind"] == "step"]
    assert taken == list(range(1, len(taken) + 1)), "a step was taken twice, or lost"
    assert len(taken) > saved


def test_the_curve_can_be_looked_at_closely(person: Person, desk: DeskProcess) -> None:
    """By mouse and by button: the training's loss, and that on held-out pictures."""
    page, workspace = person.page, Workspace(desk.workspace)
    settings = ["output.name=long", "train.steps=1000"]
    run = Run.create(workspace.run_folder("long"), load_train_config(shipped("configs", "pocket-style"), settings))
    for step in range(1, 801):
        run.emit("step", step=step, loss=0.3 + (1 if step < 100 else 0) + 0.001 * (step % 7))
        if step % 100 == 0:
            run.emit("validation", step=step, loss=0.31, pictures=["a.png"])
    queue = Queue(workspace)
    queue.add("long")
    queue.cancel("long")
    person.go_to("queue")
    page.locator("#queue-list [data-run='long']").get_by_role("button", name="Show").click()
    plot, across = page.locator("#train-chart .plot"), page.locator("#train-chart .x span")
    whole = page.locator("#train-chart [data-act='whole']")
    expect(plot.locator("polyline.held")).to_have_attribute("points", re.compile(r"(\S+ ){7}\S+"))
    expect(across.last).to_have_text("1000")
    expect(whole).to_be_hidden()

    page.get_by_role("button", name="Closer").click()
    expect(across.first).to_have_text("400")
    expect(across.last).to_have_text("800")
    expect(page.locator("#train-chart .y span").first).to_have_text(re.compile(r"^0\.3"))
    page.keyboard.press("Escape")
    expect(across.last).to_have_text("1000")

    box = plot.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 60, steps=4)
    page.mouse.up()
    expect(across.first).to_have_text("200")
    expect(across.last).to_have_text("400")
    whole.click()
    expect(across.first).to_have_text("0")
    expect(across.last).to_have_text("1000")
