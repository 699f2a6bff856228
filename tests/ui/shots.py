"""Pictures of the page: every tab, dark and light, at 1400 and 800 px (Generate and Train at 1024 and 390 too).

    python -m tests.ui.shots [--out docs/shots] [--every DIR] [--steps 400] [--workspace DIR]

Of a fresh workspace (empty), with two adapters that are trained for real, the style in `--steps` steps, the subject in
as many, and pictures drawn (full), and while a third training is under way and pictures wait for it (busy). The best go
into `--out`, for README and docs; with `--every` all of them, and a sheet of each tab to look at. With `--workspace`
what was trained before is used again, and nothing is taken empty.
"""

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from diffusion_lora.config import load_train_config, shipped
from diffusion_lora.jobs.store import Queue
from diffusion_lora.run import Run
from diffusion_lora.workspace import Workspace
from tests.ui.browser import browser_program, start_browser
from tests.ui.person import Person
from tests.ui.process import DeskProcess, wait_for
from tests.ui.watch import open_watched

TABS = ("start", "dataset", "train", "generate", "library", "queue")
WIDTHS_PX = {1400: 900, 800: 1100}
MORE_WIDTHS_PX = {1024: 800, 390: 844}
IN_MORE_WIDTHS = ("generate", "train")
THEMES = ("dark", "light")
BEST = {"start": "full", "dataset": "full", "train": "busy", "generate": "full", "library": "full", "queue": "busy"}
BEST_WIDTH_PX = 1400
SHEET_PX = 700  # width of a picture on a sheet
LARGEST_BYTES = 500_000
_HOUR_S = 3600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/shots"))
    parser.add_argument("--every", type=Path, help="where all of them go; by default nowhere")
    parser.add_argument("--steps", type=int, default=400, help="of each training")
    parser.add_argument("--workspace", type=Path, help="to be used again; by default one that is thrown away")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        every = args.every or Path(temporary) / "every"
        every.mkdir(parents=True, exist_ok=True)
        desk = DeskProcess((args.workspace or Path(temporary) / "workspace").absolute())
        try:
            _take(desk.start(), every, args.steps)
        finally:
            desk.close()
        for tab, state in BEST.items():
            for theme in THEMES:
                best = args.out / f"{tab}-{theme}-{BEST_WIDTH_PX}.png"
                best.write_bytes((every / f"{tab}-{state}-{theme}-{BEST_WIDTH_PX}.png").read_bytes())
                assert best.stat().st_size < LARGEST_BYTES, f"{best} has {best.stat().st_size} bytes"
        if args.every:
            _sheets(every)


def _take(desk: DeskProcess, out: Path, steps: int) -> None:
    with sync_playwright() as playwright:
        browser = start_browser(playwright, browser_program())
        watch = open_watched(browser, theme="dark")
        page, person = watch.page, Person(watch.page)
        page.goto(desk.url)
        person.wait_for_status("ready")
        if not any((desk.workspace / "runs").iterdir()):
            for tab in TABS:
                _shoot(person, tab, "empty", out)
        _train(desk, {"blueprint": "pocket-style", "zib": "pocket-subject"}, steps)
        person.wait_for_status("ready")

        person.go_to("generate")
        for prompt, seed in (("a big red cat on a sky background", 3), ("a small green boat on a sunset background", 5),
                             ("a yellow star on a night background", 8)):  # fmt: skip
            person.ask_for(prompt, seed=seed, steps=20)
            person.draw()
        person.add_channel("blueprint")
        person.add_channel("zib")
        person.ask_for("zib on a night background, blueprint style", seed=4)
        person.set_fader("zib", 0.9)
        person.draw()
        person.sweep("blueprint", 0, 1.2, 7)
        page.locator("#stage figure").nth(4).click()
        _shoot(person, "generate", "full", out)

        _shoot(person, "start", "full", out)
        person.go_to("library")
        page.locator("[data-lora=blueprint]").click()
        expect(page.locator("#library-shelf .spectrum rect").first).to_be_visible()
        _shoot(person, "library", "full", out)
        person.go_to("dataset")
        expect(page.locator("#dataset-desk .problems .dot.good")).to_be_visible()
        _shoot(person, "dataset", "full", out)
        _shoot(person, "queue", "full", out)
        page.locator("#queue-list [data-run=blueprint]").get_by_role("button", name="Show").click()
        expect(page.locator("#train-figures")).to_contain_text("blueprint")
        _shoot(person, "train", "full", out)

        length = max(steps // 2, 20)
        person.fill_training("blueprint at work", steps=length)
        person.start_training()
        person.go_to("train")
        person.wait_for_step(2 * length // 5, length)
        expect(page.locator("#train-previews img").nth(2)).to_be_visible()
        _shoot(person, "train", "busy", out)
        _shoot(person, "queue", "busy", out)
        person.go_to("generate")
        person.button("generate-go").click()
        for tab in ("generate", "start", "library", "dataset"):
            _shoot(person, tab, "busy", out)
        browser.close()
    assert not watch.complaints, watch.complaints


def _train(desk: DeskProcess, presets: dict[str, str], steps: int) -> None:
    """Queue a run for each preset that the workspace has no adapter of yet, and wait for them."""
    workspace = Workspace(desk.workspace)
    queue = Queue(workspace)
    for name, preset in presets.items():
        if queue.job(name) is None:
            settings = (f"output.name={name}", f"train.steps={steps}", f"preview.every={max(steps // 5, 5)}")
            config = load_train_config(shipped("configs", preset), settings)
            Run.create(workspace.run_folder(name), config)
            queue.add(name)
    for name in presets:
        wait_for(f"the training of {name}", partial(_is_done, queue, name), _HOUR_S)


def _is_done(queue: Queue, name: str) -> bool:
    job = queue.job(name)
    assert job is not None
    assert job.state not in {"failed", "stopped"}, f"{name}: {job.text}"
    return job.state == "done"


def _shoot(person: Person, tab: str, state: str, out: Path) -> None:
    """The tab in both themes and all its widths; the narrow ones whole, since its parts lie below each other."""
    page = person.page
    person.go_to(tab)
    for theme in THEMES:
        _turn_to(page, theme)
        for width, height in (WIDTHS_PX | (MORE_WIDTHS_PX if tab in IN_MORE_WIDTHS else {})).items():
            page.set_viewport_size({"width": width, "height": height})
            page.mouse.move(0, 0)
            page.wait_for_timeout(600)
            path = out / f"{tab}-{state}-{theme}-{width}.png"
            page.screenshot(path=path, full_page=width < 1000, animations="disabled", caret="hide")
            _shrink(path)
            print(f"{path}: {path.stat().st_size // 1000} kB")
    page.set_viewport_size({"width": 1400, "height": 900})


def _turn_to(page: Page, theme: str) -> None:
    is_dark = page.evaluate("document.body.classList.contains('dark')")
    if is_dark != (theme == "dark"):
        page.locator("[data-act=theme]").click()


def _shrink(path: Path) -> None:
    """As small as PNG gets it without losing a colour."""
    Image.open(path).convert("RGB").save(path, optimize=True)


def _sheets(folder: Path) -> None:
    """`sheet-TAB-STATE.png`: the pictures of a tab in a state, side by side."""
    for tab in TABS:
        for state in ("empty", "full", "busy"):
            pictures = [Image.open(path) for path in sorted(folder.glob(f"{tab}-{state}-*.png"))]
            if pictures:
                _side_by_side(pictures).save(folder / f"sheet-{tab}-{state}.png", optimize=True)


def _side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    small = [one.resize((SHEET_PX, round(one.height * SHEET_PX / one.width))) for one in pictures]
    sheet = Image.new("RGB", (len(small) * SHEET_PX, max(one.height for one in small)))
    for number, one in enumerate(small):
        sheet.paste(one, (number * SHEET_PX, 0))
    return sheet


if __name__ == "__main__":
    main()
