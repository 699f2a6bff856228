"""Pictures of the page for README: every tab, dark and light, at 1400 and 800 px, of a workspace with something in it.

    python -m tests.ui.shots [--out docs/shots] [--steps 400] [--workspace DIR]

Two adapters are trained for real (the style in `--steps` steps, the subject in as many), pictures are drawn, and a
third training is under way while Train and Queue are taken. With `--workspace` what was trained before is used again.
"""

import argparse
import tempfile
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

WIDTHS_PX = {1400: 900, 800: 1100}
THEMES = ("dark", "light")
LARGEST_BYTES = 500_000
_HOUR_S = 3600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/shots"))
    parser.add_argument("--steps", type=int, default=400, help="of each training")
    parser.add_argument("--workspace", type=Path, help="to be used again; by default one that is thrown away")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        desk = DeskProcess((args.workspace or Path(temporary) / "workspace").absolute())
        try:
            _take(desk.start(), args.out, args.steps)
        finally:
            desk.close()


def _take(desk: DeskProcess, out: Path, steps: int) -> None:
    _train(desk, {"blueprint": "pocket-style", "zib": "pocket-subject"}, steps)
    with sync_playwright() as playwright:
        browser = start_browser(playwright, browser_program())
        watch = open_watched(browser, theme="dark")
        page, person = watch.page, Person(watch.page)
        page.goto(desk.url)
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
        _shoot(person, "generate", out)

        person.go_to("library")
        page.locator("[data-lora=blueprint]").click()
        expect(page.locator("#library-shelf .spectrum rect").first).to_be_visible()
        _shoot(person, "library", out)
        person.go_to("dataset")
        expect(page.locator("#dataset-desk .problems .dot.good")).to_be_visible()
        _shoot(person, "dataset", out)

        person.go_to("train")
        length = max(steps // 2, 20)
        person.fill_training("blueprint at work", steps=length)
        person.start_training()
        person.go_to("train")
        person.wait_for_step(2 * length // 5, length)
        expect(page.locator("#train-previews img").nth(2)).to_be_visible()
        _shoot(person, "train", out)
        _shoot(person, "queue", out)
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


def _shoot(person: Person, tab: str, out: Path) -> None:
    """The tab in both themes and widths; the narrow one whole, since its parts lie below each other."""
    page = person.page
    person.go_to(tab)
    for theme in THEMES:
        _turn_to(page, theme)
        for width, height in WIDTHS_PX.items():
            page.set_viewport_size({"width": width, "height": height})
            page.mouse.move(0, 0)
            page.wait_for_timeout(600)
            path = out / f"{tab}-{theme}-{width}.png"
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
    assert path.stat().st_size < LARGEST_BYTES, f"{path} has {path.stat().st_size} bytes"


if __name__ == "__main__":
    main()
