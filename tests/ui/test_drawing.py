"""Generate: the page's picture is the command line's, a drawing can be given up, and all words are taken as words."""

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageChops
from playwright.sync_api import expect

from diffusion_lora.generate.reading import read_request
from tests.ui.conftest import OpenPage
from tests.ui.person import Person
from tests.ui.process import DeskProcess, wait_for
from tests.ui.training import train_briefly

CommandLine = Callable[..., "subprocess.CompletedProcess[str]"]

# What a template engine, a browser or a shell would take for more than words.
NASTY = "<img src=x onerror=window.caught=1> ${window.caught=2} {{caught}} `$(touch caught)` \"it's\" & \\"

# A prompt's braces are choices: of one thing, that one. It is drawn with, shown and kept as it came out.
DRAWN = NASTY.replace("{window.caught=2} {{caught}}", "window.caught=2 caught")


@pytest.fixture
def person(desk: DeskProcess, open_page: OpenPage) -> Person:
    """Somebody at Generate, the base being there."""
    somebody = Person(open_page(desk.url).page)
    somebody.wait_for_status("ready")
    somebody.go_to("generate")
    return somebody


@pytest.fixture(scope="module")
def adapters(desk: DeskProcess, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two small adapters in the workspace, trained for a step from different seeds."""
    names = ["one", "two words"]
    for seed, name in enumerate(names):
        train_briefly(desk.workspace / "loras" / f"{name}.safetensors", seed, tmp_path_factory.mktemp("training"))
    return names


@pytest.mark.slow
def test_the_page_draws_what_the_command_line_draws(
    person: Person, desk: DeskProcess, adapters: list[str], command_line: CommandLine, tmp_path: Path
) -> None:
    """Pixel for pixel, with two adapters, from the line that "Copy as command" gives."""
    for name, strength in zip(adapters, (0.8, -0.5)):
        person.add_channel(name)
        person.set_fader(name, strength)
    person.ask_for("a green boat on a sunset background", seed=11, steps=5, guidance=3.5, negative="a cat, rain")
    (drawn,) = person.draw()
    line = person.command_of_chosen()
    assert line.startswith("diffusion-lora generate ")
    done = command_line(*shlex.split(line)[1:], "--out", tmp_path / "drawn")
    assert done.returncode == 0, done.stderr
    (again,) = (tmp_path / "drawn").glob("*.png")
    ours, theirs = Image.open(desk.workspace / "pictures" / drawn), Image.open(again)
    assert ours.size == theirs.size
    assert ImageChops.difference(ours, theirs).getbbox() is None
    assert read_request(desk.workspace / "pictures" / drawn) == read_request(again)


@pytest.mark.slow
def test_a_drawing_shows_itself_and_can_be_given_up(person: Person, desk: DeskProcess) -> None:
    """A glimpse comes before the end, cancelling takes a step, and the engine draws on."""
    person.ask_for("a big yellow star on a night background", seed=3, steps=400)
    person.button("generate-go").click()
    expect(person.page.locator("#stage img[src^='data:image/webp']").first).to_be_visible()
    person.button("generate-cancel").click()
    expect(person.page.locator("#stage [data-phase]")).to_have_attribute("data-phase", "cancelled")
    wait_for("the engine to be free", lambda: desk.engine_status().get("state") == "ready")
    person.ask_for("a big yellow star on a night background", seed=3, steps=3)
    assert len(person.draw()) == 1


@pytest.mark.slow
def test_words_stay_words(person: Person, desk: DeskProcess, adapters: list[str], tmp_path: Path) -> None:
    """A prompt, a seed's field, the name of a file a friend sent: none of it may become code, markup or a command."""
    loras = desk.workspace / "loras"
    nasty = "${window.caught=3} <b onmouseover=caught()> {{x}} `it's`"
    named = loras / f"{nasty}.safetensors"
    named.write_bytes((loras / "one.safetensors").read_bytes())
    try:
        person.page.locator("#desk-add").click()
        person.page.get_by_role("button", name=nasty).first.click()
        assert nasty in person.channels()
        person.ask_for(NASTY, seed=1, steps=2)
        (drawn,) = person.draw()
        expect(person.page.locator("#stage .title")).to_have_text(DRAWN)
        request = read_request(desk.workspace / "pictures" / drawn)
        assert request.prompt == DRAWN
        assert [use.name for use in request.loras] == [nasty]
        words = shlex.split(person.command_of_chosen())
        assert DRAWN in words
        assert str(named) in " ".join(words)
        person.page.reload()
        person.go_to("generate")
        expect(person.page.locator("#stage .title")).to_have_text(DRAWN)
        assert person.page.evaluate("window.caught") is None
    finally:
        named.unlink()


@pytest.mark.slow
def test_a_file_that_is_no_lora_is_named_and_harms_nothing(person: Person, desk: DeskProcess) -> None:
    broken = desk.workspace / "loras" / "torn.safetensors"
    broken.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{\"torn\": ")
    try:
        person.page.locator("#desk-add").click()
        row = person.page.locator("[data-add='torn']")
        expect(row).to_be_disabled()
        expect(row).to_have_attribute("title")
    finally:
        broken.unlink()


@pytest.mark.slow
def test_a_picture_without_settings_says_so(person: Person, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "holiday.png")
    person.ask_for("stays as it is", seed=5)
    person.drop_picture(tmp_path / "holiday.png")
    expect(person.page.locator("#stage .notes")).to_contain_text("holiday.png does not say how it was drawn")
    expect(person.field("prompt")).to_have_value("stays as it is")


@pytest.mark.slow
def test_faders_obey_keys_numbers_and_clicks(person: Person, adapters: list[str]) -> None:
    """Solo and mute are the page's own: the request holds what sounds, tested with the pictures above."""
    name = adapters[0]
    person.add_channel(name)
    assert person.strength(name) == 1
    fader = person.fader(name)
    fader.focus()
    fader.press("ArrowDown")
    assert person.strength(name) == pytest.approx(0.95)
    fader.press("Shift+ArrowDown")
    assert person.strength(name) == pytest.approx(0.94)
    for _ in range(50):
        fader.press("ArrowDown")
    assert person.strength(name) == -1
    fader.dblclick()
    assert person.strength(name) == 1
    person.press(name, "solo")
    assert person.is_pressed(name, "solo")
    person.press(name, "remove")
    assert person.channels() == []
