"""What a person does on the page, in the page's own names: one verb for each thing done with hands and eyes.

Everything here goes through what is seen and clicked; what lies on disk is looked at by the tests themselves.
"""

import re
from pathlib import Path

from playwright.sync_api import Locator, Page, expect

from tests.ui.process import PATIENCE_S


class Person:
    """Somebody in front of `page`."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def go_to(self, tab: str) -> None:
        """Turn to start, dataset, train, generate, library or queue."""
        self.page.locator(f"#{tab}-button").click()
        expect(self.page.locator(f"#{tab}")).to_be_visible()

    def wait_for_status(self, *states: str) -> None:
        """Until the line in the header says one of these."""
        wanted = re.compile("|".join(states))
        expect(self.page.locator("#status")).to_have_attribute("data-state", wanted)

    # --- Train ---

    def fill_training(self, name: str, *, steps: int, rank: int | None = None, trigger: str | None = None) -> None:
        self.field("train-name").fill(name)
        if trigger is not None:
            self.field("train-trigger").fill(trigger)
        if rank is not None:
            self.page.locator("#train-rank label").get_by_text(str(rank), exact=True).click()
        steps_field = self.field("train-steps")
        steps_field.fill(str(steps))
        steps_field.blur()

    def start_training(self) -> None:
        self.button("train-start").click()

    def wait_for_step(self, step: int, steps: int) -> None:
        """Until the page says that this step, or a later one, is done."""
        self.page.wait_for_function(
            """([step, steps]) => {
                const told = document.querySelector("#train-progress")?.textContent.match(/(\\d+)\\s*\\/\\s*(\\d+)/);
                return told && Number(told[1]) >= step && Number(told[2]) === steps;
            }""",
            arg=[step, steps],
            timeout=PATIENCE_S * 1000,
        )

    def choose_set(self, folder: Path) -> None:
        """Type the path of a folder of pictures."""
        field = self.page.locator("#train-dataset input")
        field.fill(str(folder))
        field.press("Enter")
        field.blur()

    def edit_captions(self) -> None:
        self.page.locator("#train-thumbs [data-act=captions]").click()
        expect(self.page.locator("#train-pictures textarea").first).to_be_visible()

    def caption_of(self, picture: str) -> Locator:
        """The field of a picture's caption."""
        return self.page.locator(f"#train-pictures [data-picture='{picture}'] textarea")

    def dataset_folder(self) -> str:
        """Where the pictures that are shown lie."""
        return self.page.locator("#train-pictures [data-folder]").get_attribute("data-folder") or ""

    # --- Generate ---

    def ask_for(self, prompt: str, *, seed: int | None = None, steps: int | None = None, guidance: float | None = None,
                negative: str | None = None) -> None:  # fmt: skip
        """Fill the form; what is not given stays as it is."""
        given = {"prompt": prompt, "seed": seed, "steps": steps, "guidance": guidance, "negative": negative}
        for name, value in given.items():
            if value is not None:
                self.field(name).fill(str(value))
                self.field(name).blur()

    def draw(self) -> list[str]:
        """Click Generate and wait for the end; the file names of the pictures."""
        return self.until_drawn(self.button("generate-go"))

    def sweep(self, adapter: str, low: float, high: float, count: int) -> list[str]:
        """Sweep a channel: a click draws at once as set before, so the fields are filled and drawn again."""
        channel = self.channel(adapter)
        if not self.page.locator("#sweep-go").is_visible():
            self.until_drawn(channel.locator("[data-act=sweep]"))
        for name, value in (("sweep-from", low), ("sweep-to", high), ("sweep-count", count)):
            self.page.locator(f"#{name}").fill(f"{value:g}")
        return self.until_drawn(self.page.locator("#sweep-go"))

    def pictures(self) -> Locator:
        """The finished pictures on the stage."""
        return self.page.locator("#stage img[src*='workspace/pictures/']")

    def picture_names(self) -> list[str]:
        """Their file names, in order."""
        addresses = self.pictures().evaluate_all("images => images.map(image => image.getAttribute('src'))")
        return [re.sub(r"\?.*", "", address).rpartition("/")[2] for address in addresses]

    def phase(self) -> str:
        """What the stage is at: empty, waiting, drawing, done, cancelled or failed."""
        return self.page.locator("#stage [data-phase]").get_attribute("data-phase") or ""

    def drop_picture(self, picture: Path) -> None:
        """Drop a PNG: its settings come back."""
        self.page.locator("#drop-settings input[type=file]").set_input_files(picture)

    def download_chosen(self, folder: Path) -> Path:
        """Download the picture chosen on the stage."""
        with self.page.expect_download() as download:
            self.page.locator("#stage [data-act=download]").click()
        path = folder / download.value.suggested_filename
        download.value.save_as(path)
        return path

    def command_of_chosen(self) -> str:
        """What "Copy as command" puts into the clipboard for the picture chosen on the stage."""
        self.page.locator("#stage [data-act=command]").click()
        expect(self.page.locator("#stage [data-act=command]")).to_have_text("Copied")
        copied: str = self.page.evaluate("navigator.clipboard.readText()")
        return copied

    # --- the desk ---

    def channel(self, adapter: str) -> Locator:
        return self.page.locator(f"#desk [data-adapter='{adapter}']")

    def channels(self) -> list[str]:
        """The names on the desk, from left to right."""
        names: list[str] = self.page.locator("#desk [data-adapter]").evaluate_all(
            "strips => strips.map(strip => strip.dataset.adapter)"
        )
        return names

    def add_channel(self, adapter: str) -> None:
        self.page.locator("#desk-add").click()
        self.page.locator(f"[data-add='{adapter}']").click()
        expect(self.channel(adapter)).to_be_visible()

    def fader(self, adapter: str) -> Locator:
        return self.channel(adapter).locator("input[type=range]")

    def set_fader(self, adapter: str, strength: float) -> None:
        """To 0 by the typed value, then up or down with the arrow keys, as fingers would."""
        typed = self.channel(adapter).locator("input.value")
        typed.fill("0")
        typed.press("Enter")
        fader = self.fader(adapter)
        fader.focus()
        key = "ArrowUp" if strength > 0 else "ArrowDown"
        hundredths = round(abs(strength) * 100)
        for _ in range(hundredths // 5):
            fader.press(key)
        for _ in range(hundredths % 5):
            fader.press(f"Shift+{key}")

    def strength(self, adapter: str) -> float:
        return float(self.fader(adapter).input_value())

    def press(self, adapter: str, act: str) -> None:
        """mute, solo, sweep, more or remove."""
        self.channel(adapter).locator(f"[data-act={act}]").click()

    def is_pressed(self, adapter: str, act: str) -> bool:
        return self.channel(adapter).locator(f"[data-act={act}]").get_attribute("aria-pressed") == "true"

    def tell_more(self, **knobs: str) -> None:
        """Type into what is open behind More: text, blocks, steps, negative."""
        for name, value in knobs.items():
            knob = self.page.locator(f"#desk-more [name={name}]")
            knob.fill(value)
            knob.press("Enter")
            knob.blur()

    # --- parts ---

    def field(self, name: str) -> Locator:
        """The field of a component: its text area or its input."""
        return self.page.locator(f"#{name} textarea, #{name} input").first

    def button(self, name: str) -> Locator:
        """A button, whether the id is its own or that of what is around it."""
        return self.page.locator(f"button#{name}, #{name} button").first

    def until_drawn(self, click: Locator) -> list[str]:
        """Click what begins a drawing and wait for the end; the file names of the pictures."""
        before = self.page.locator("#stage [data-phase]").get_attribute("data-order") or ""
        click.click()
        self.page.wait_for_function(
            """before => {
                const stage = document.querySelector("#stage [data-phase]");
                return stage.dataset.order !== before && !["waiting", "drawing"].includes(stage.dataset.phase);
            }""",
            arg=before,
            timeout=PATIENCE_S * 1000,
        )
        assert self.phase() == "done", self.page.locator("#stage").inner_text()
        # The last glimpse gives way when its picture is decoded.
        count = self.page.locator("#stage figure").count()
        expect(self.pictures()).to_have_count(count)
        return self.picture_names()
