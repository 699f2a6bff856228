"""The first hour at the desk, in one go, as a person would spend it: train, restart, draw, mix, sweep, bring back."""

import re
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect
from safetensors import safe_open
from safetensors.numpy import save_file

from diffusion_lora.events import read_events
from diffusion_lora.generate.reading import read_request
from tests.ui.conftest import OpenPage, StartDesk
from tests.ui.person import Person
from tests.ui.process import DeskProcess
from tests.ui.watch import come_back

STEPS = 30
PROMPT = "a big red cat on a sky background, blueprint style"


def opposite(trained: Path, path: Path) -> None:
    """Another adapter, as somebody might get one from a friend: what was trained, pushed the other way."""
    with safe_open(trained, framework="numpy") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 -- not a dictionary
    turned = {key: -value if "lora_up" in key else value for key, value in tensors.items()}
    save_file({key: np.ascontiguousarray(value) for key, value in turned.items()}, path, metadata=metadata)


def mix(desk: DeskProcess, picture: str) -> dict[str, float]:
    """The adapters that drew a picture, with their strengths."""
    return {use.name: use.strength for use in read_request(desk.workspace / "pictures" / picture).loras}


@pytest.mark.slow
def test_the_first_hour_at_the_desk(start_desk: StartDesk, open_page: OpenPage, tmp_path: Path) -> None:
    desk = start_desk()
    watch = open_page(desk.url)
    page, person = watch.page, Person(watch.page)
    folder = desk.workspace / "runs" / "mine"

    # --- train on the shipped style set; the curve and a preview are seen ---------------------------------------------
    person.go_to("train")
    person.fill_training("mine", steps=STEPS, rank=4)
    person.start_training()
    person.wait_for_step(2, STEPS)
    expect(page.locator("#train-chart svg path, #train-chart svg polyline").first).to_be_attached()
    person.wait_for_status("training")

    # --- the page is restarted in the middle: the run goes on and is shown --------------------------------------------
    with watch.excused():
        desk.kill()
        desk.start()
        come_back(page, desk.url)
        expect(page.locator("#status")).to_be_visible()
    person.go_to("train")
    person.wait_for_step(3, STEPS)
    expect(page.locator("#train-previews img").first).to_be_visible()
    person.wait_for_step(STEPS, STEPS)
    expect(page.locator("#train-open")).to_be_visible()
    kinds = [event["kind"] for event in read_events(folder)]
    assert kinds.count("start") == kinds.count("end") == kinds.count("published") == 1
    assert kinds.count("step") == STEPS
    trained = desk.workspace / "loras" / "mine.safetensors"
    assert trained.read_bytes() == (folder / "adapter.safetensors").read_bytes()
    person.go_to("queue")
    expect(page.locator("#queue-list [data-run='mine']")).to_have_attribute("data-state", "done")
    person.go_to("train")

    # --- open in Generate: two channels, a fader moved, one muted -----------------------------------------------------
    opposite(trained, desk.workspace / "loras" / "other.safetensors")
    page.locator("#train-open").click()
    expect(person.channel("mine")).to_be_visible()
    person.wait_for_status("ready")
    person.add_channel("other")
    assert person.channels() == ["mine", "other"]
    person.ask_for(PROMPT, seed=7, steps=6, guidance=4, negative="a dog")
    person.draw()

    # A fader moves no weight: what the adapters need was put into the model with the first picture.
    loads = desk.engine_status()["loads"]
    person.set_fader("mine", 0.8)
    person.set_fader("other", -0.35)
    assert desk.engine_status()["loads"] == loads
    (both,) = person.draw()
    assert desk.engine_status()["loads"] == loads
    assert mix(desk, both) == {"mine": 0.8, "other": -0.35}
    person.press("other", "mute")
    (muted,) = person.draw()
    assert mix(desk, muted) == {"mine": 0.8}
    person.press("other", "mute")

    # --- a sweep of five, one mixed batch -----------------------------------------------------------------------------
    swept = person.sweep("other", -0.5, 1.0, 5)
    assert len(swept) == 5
    mixes = [mix(desk, name) for name in swept]
    assert [each["other"] for each in mixes] == pytest.approx([-0.5, -0.125, 0.25, 0.625, 1.0])
    assert {each["mine"] for each in mixes} == {0.8}
    # A click on a picture sets the fader to its value.
    page.locator("#stage figure").nth(3).click()
    assert person.strength("other") == pytest.approx(0.625, abs=0.006)

    # --- download one, change everything, drop it: the settings are back ----------------------------------------------
    downloaded = person.download_chosen(tmp_path)
    assert downloaded.read_bytes() == (desk.workspace / "pictures" / downloaded.name).read_bytes()
    person.ask_for("something else", seed=1, steps=3, guidance=1, negative="nothing")
    person.press("mine", "remove")
    person.set_fader("other", 0.0)
    person.drop_picture(downloaded)
    expect(person.field("prompt")).to_have_value(PROMPT)
    expect(person.field("negative")).to_have_value("a dog")
    expect(person.field("seed")).to_have_value("7")
    expect(person.field("steps")).to_have_value("6")
    expect(person.field("guidance")).to_have_value("4")
    assert person.channels() == ["mine", "other"]
    assert person.strength("mine") == pytest.approx(0.8)
    assert person.strength("other") == pytest.approx(0.625, abs=0.006)

    # --- and drawn again it is the same picture; all of them are in the gallery ---------------------------------------
    (again,) = person.draw()
    assert read_request(desk.workspace / "pictures" / again) == read_request(downloaded)
    drawn = sorted(path.name for path in (desk.workspace / "pictures").glob("*.png"))
    expect(page.locator("#gallery img")).to_have_count(len(drawn))
    assert re.fullmatch(r"\d{5}-7\.png", again)
