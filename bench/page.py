"""How long a person waits for the page: command to first content, to the form, to the base; click to first picture.

Run from the checkout: `python -m bench.page [--rounds 3] [--write]`. Each round is a new workspace and new processes on
a warm disk; a real browser looks. First content is the browser's own first contentful paint (the bar, in its colours);
the form can be used when Train's button is there, after a click on its tab. These are promises, not ratios (6 s, 20 s
and 4 s on 2 cores).
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright
from playwright.sync_api import Error as BrowserError

from tests.ui.browser import browser_program, start_browser
from tests.ui.person import Person
from tests.ui.process import DeskProcess
from tests.ui.watch import open_watched

_PAINTED = "() => performance.getEntriesByName('first-contentful-paint').length > 0"

PROMISED_S = {"first content": 6.0, "base ready": 20.0, "first picture": 4.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    with sync_playwright() as playwright:
        browser = start_browser(playwright, browser_program())
        rounds = [_round(browser) for _ in range(args.rounds)]
        browser.close()
    median_s = {name: round(statistics.median(told[name] for told in rounds), 2) for name in rounds[0]}
    for name, seconds in median_s.items():
        told = "  ".join(f"{each[name]:.2f}" for each in rounds)
        promised = f"promised {PROMISED_S[name]:.0f}" if name in PROMISED_S else ""
        print(f"{name:32} {seconds:6.2f} s  {promised:12} ({told})")
    if args.write:
        record = {
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
            "versions": {name: version(name) for name in ("torch", "diffusers", "gradio")},
            "median_s": median_s,
            "promised_s": PROMISED_S,
        }
        path = Path("bench/results") / f"page-{date.today():%Y-%m-%d}.json"
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(path)


def _round(browser: Browser) -> dict[str, float]:
    """One cold start and the first two pictures, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        desk = DeskProcess(Path(folder) / "workspace")
        watch = open_watched(browser)
        page, person = watch.page, Person(watch.page)
        try:
            begun = time.perf_counter()
            desk.launch()
            _open_as_soon_as_possible(page, desk.url)
            page.wait_for_function(_PAINTED, polling=20)
            told = {"first content": time.perf_counter() - begun}
            page.locator("#status").wait_for()
            person.go_to("train")  # the page opens on Start
            page.locator("#train-start").wait_for()
            told["form"] = time.perf_counter() - begun
            person.wait_for_status("ready")
            told["base ready"] = time.perf_counter() - begun
            person.go_to("generate")
            person.ask_for("a red cat on a sky background", seed=1)
            for name in ("first picture", "second picture"):
                clicked = time.perf_counter()
                person.draw()
                told[name] = time.perf_counter() - clicked
            return told
        finally:
            page.context.close()
            desk.close()


def _open_as_soon_as_possible(page: Page, url: str) -> None:
    """As a person who reloads until it is there; the command itself opens a browser a little later."""
    while True:
        try:
            page.goto(url, wait_until="commit")
            return
        except BrowserError:
            time.sleep(0.05)


if __name__ == "__main__":
    main()
