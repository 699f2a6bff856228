"""Generate: the page's picture is the command line's, a drawing can be given up, and all words are taken as words."""

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageChops
from playwright.sync_api import expect

from diffusion_lora.generate.reading import read_request
from tests.ui.conftest import OpenPage
from tests.ui.hearing import violations
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


@pytest.mark.slow
def test_what_stands_behind_more_is_drawn_with_and_comes_back(
    person: Person, desk: DeskProcess, adapters: list[str]
) -> None:
    """Text encoder, blocks and steps of a channel; a mistyped schedule is told in place and changes nothing."""
    name = adapters[0]
    person.add_channel(name)
    person.press(name, "more")
    person.tell_more(text="0.5", steps="0-0.5", blocks="mid:0,up:0.5")
    more = person.page.locator("#desk-more")
    assert violations(person.page, "more") == []
    more.locator("[name=steps]").fill("sometimes")
    more.locator("[name=steps]").press("Enter")
    expect(more.locator(".told")).to_contain_text("sometimes")
    person.page.keyboard.press("Escape")
    expect(more).to_be_hidden()
    expect(person.channel(name).locator("[data-act=more]")).to_be_focused()
    person.ask_for("a red cat on a sky background", seed=2, steps=2)
    (drawn,) = person.draw()
    picture = desk.workspace / "pictures" / drawn
    (use,) = read_request(picture).loras
    assert (use.strength, use.text_strength, use.steps) == (1.0, 0.5, "0-0.5")
    assert use.blocks == (("mid", 0.0), ("up", 0.5))
    person.press(name, "remove")
    person.drop_picture(picture)
    expect(person.channel(name).locator("[data-act=more]")).to_have_attribute(
        "aria-label", re.compile(r"text encoder 0\.50, mid:0,up:0\.5, First half")
    )


@pytest.mark.slow
def test_a_grid_is_drawn_as_one_table_with_its_sheet(person: Person, desk: DeskProcess, adapters: list[str]) -> None:
    """Two axes, one order: every picture has its own settings, and the sheet lies beside the pictures."""
    name = adapters[1]
    person.add_channel(name)
    person.press(name, "mute")
    person.ask_for("a red cat on a sky background", seed=2, steps=2)
    person.page.locator("#desk-grid").click()
    form = person.page.locator("#desk-grid-form")
    expect(form.locator("[data-side=rows] [name=name]")).to_have_value(name)
    form.locator("[data-side=rows] [name=values]").fill("")
    expect(form.locator("#grid-go")).to_be_disabled()
    form.locator("[data-side=rows] [name=values]").fill("0, 1")
    form.locator("[data-side=columns] [name=key]").select_option("seed")
    form.locator("[data-side=columns] [name=values]").fill("4, 5, 6")
    names = person.until_drawn(form.locator("#grid-go"))
    drawn = [read_request(desk.workspace / "pictures" / picture) for picture in names]
    assert [(one.loras[0].strength, one.seed) for one in drawn] == [(0, 4), (0, 5), (0, 6), (1, 4), (1, 5), (1, 6)]
    person.page.locator("#stage [data-act=sheet]").click()
    expect(person.page.locator("#stage .sheet")).to_be_visible()
    assert person.page.evaluate("document.querySelector('#stage .sheet').decode().then(() => true)")
    assert len(list((desk.workspace / "pictures" / "sheets").glob("*.png"))) == 1


@pytest.mark.slow
def test_the_fader_of_all_is_drawn_with(person: Person, desk: DeskProcess, adapters: list[str]) -> None:
    """Wrong: the desk says 90 % and the picture has all of every fader."""
    person.add_channel(adapters[0])
    person.page.locator("#desk-master").press("ArrowDown")
    person.page.locator("#desk-master").press("ArrowDown")
    expect(person.page.locator("#desk .percent")).to_have_text("90%")
    person.ask_for("a red cat on a sky background", seed=2, steps=2)
    (drawn,) = person.draw()
    (use,) = read_request(desk.workspace / "pictures" / drawn).loras
    assert use.strength == 0.9


@pytest.mark.slow
def test_a_picture_is_repainted_where_it_was_painted_and_compared(person: Person, desk: DeskProcess) -> None:
    """From the stage to Inpaint, a stroke of the brush, and both pictures in one place; dropped, all of it is back."""
    page = person.page
    person.ask_for("a red cat on a sky background", seed=2, steps=4)
    (first,) = person.draw()
    page.locator("#stage [data-act=send]").select_option("inpaint")
    canvas = page.locator("#source canvas")
    expect(canvas).to_be_visible()
    box = canvas.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.1, box["y"] + box["height"] * 0.5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.5, steps=4)
    page.mouse.up()
    person.ask_for("a blue cat on a sky background", seed=9)
    (second,) = person.draw()
    folder = desk.workspace / "pictures"
    start = read_request(folder / second).start
    assert start is not None
    assert start.mask is not None
    assert (start.image, start.strength) == (folder / first, 0.6)
    before, after = (Image.open(folder / name).convert("RGB") for name in (first, second))
    width, height = before.size
    kept, drawn = (width // 2, 0, width, height), (0, 0, width // 2, height)
    assert ImageChops.difference(before.crop(kept), after.crop(kept)).getbbox() is None
    assert ImageChops.difference(before.crop(drawn), after.crop(drawn)).getbbox() is not None

    page.locator("#stage [data-act=compare]").click()
    page.locator(f"#gallery [data-name='{first}']").click()
    edge = page.locator("#stage .compare input")
    expect(page.locator("#stage .compare .one")).to_have_attribute("src", re.compile(second))
    edge.press("ArrowLeft")
    expect(edge).to_have_value("49")
    assert violations(page, "compared") == []
    page.keyboard.press("Escape")
    expect(page.locator("#stage .compare")).to_be_hidden()

    page.locator("#source [value=text]").check()
    person.drop_picture(folder / second)
    expect(page.locator("#source [value=inpaint]")).to_be_checked()
    page.locator("#source [value=text]").check()


@pytest.mark.slow
def test_upscale_draws_the_picture_larger_with_its_own_settings(person: Person, desk: DeskProcess) -> None:
    """Wrong: another picture comes, or one of the same size."""
    person.ask_for("a red cat on a sky background", seed=2, steps=3)
    (first,) = person.draw()
    person.ask_for("something else", seed=3)
    person.page.locator("#stage [data-act=send]").select_option("upscale")
    expect(person.field("prompt")).to_have_value("a red cat on a sky background")
    (second,) = person.draw()
    small, large = (Image.open(desk.workspace / "pictures" / name).size for name in (first, second))
    assert large == (2 * small[0], 2 * small[1])
    assert read_request(desk.workspace / "pictures" / second).seed == 2
    person.page.locator("#source [value=text]").check()


@pytest.mark.slow
def test_a_channel_acts_where_it_is_painted(person: Person, desk: DeskProcess, adapters: list[str]) -> None:
    """Its area is filled without a brush, so that hands are not needed; elsewhere it changes less than it would."""
    name = adapters[0]
    person.ask_for("a red cat on a sky background", seed=2, steps=3)
    (plain,) = person.draw()
    person.add_channel(name)
    (everywhere,) = person.draw()
    person.press(name, "more")
    more = person.page.locator("#desk-more")
    more.locator("[name=area-choice]").select_option("painted")
    more.locator(".paint-tools select").select_option("left")
    person.page.keyboard.press("Escape")
    expect(person.channel(name).locator(".of-blocks")).to_have_text("Where I paint")
    (drawn,) = person.draw()
    request = read_request(desk.workspace / "pictures" / drawn)
    assert [use.region for use in request.loras] == ["area 1"]
    assert request.regions[0].mask
    mask = request.regions[0].mask_image()
    assert mask is not None
    width, height = mask.size
    assert [mask.getpixel((x, height // 2)) for x in (2, width // 2 - 2, width // 2 + 2, width - 2)] == [255, 255, 0, 0]
    base, whole, part = (
        Image.open(desk.workspace / "pictures" / picture).convert("RGB") for picture in (plain, everywhere, drawn)
    )
    outside = (base.width // 2, 0, base.width, base.height)
    changed = [_difference(base.crop(outside), other.crop(outside)) for other in (whole, part)]
    assert changed[1] < 0.75 * changed[0], changed


@pytest.mark.slow
def test_two_channels_are_compared_when_asked(person: Person, adapters: list[str]) -> None:
    """Wrong: nobody is told that two LoRAs are in each other's way before a picture shows it."""
    for name in adapters:
        person.add_channel(name)
    person.press(adapters[0], "more")
    person.page.locator("#desk-more [data-act=later]").click()
    person.page.keyboard.press("Escape")
    assert person.channels() == adapters[::-1], "a strip is moved without being dragged"
    note = person.page.locator("#desk .note")
    note.get_by_role("button").click()
    expect(note.locator("p")).to_contain_text(re.compile("go their own ways|cosine"))


def _difference(one: Image.Image, other: Image.Image) -> float:
    """How far two pictures are apart, in all."""
    counts = ImageChops.difference(one, other).convert("L").histogram()
    return float(sum(value * count for value, count in enumerate(counts)))
