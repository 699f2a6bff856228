"""Ten people at one page at once: each logs in, draws his own prompt again and again, and watches.

    python -m bench.users [--users 10] [--minutes 5] [--write]

Each has a browser context of his own, with the page open on Generate. Whatever is drawn is read back from its file: the
prompt and the seed have to be those this person asked for, and the file has to lie among his own pictures. A console
error or a failed request of any of them counts as an error. Memory is that of page and engine, in the second minute
and in the last one. Run from the checkout.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from playwright.sync_api import Browser, sync_playwright

from diffusion_lora.accounts import add_user
from diffusion_lora.generate.reading import read_request
from tests.ui.browser import browser_program, start_browser
from tests.ui.person import Person
from tests.ui.process import DeskProcess
from tests.ui.watch import Watch

_MOST_GROWTH = 0.05
_STEPS = 8
_THINGS = ("cat", "house", "tree", "star", "fish", "car", "boat", "bird", "mug", "flower")


@dataclass
class User:
    """Somebody at the page, what he asked for last and what came of it."""

    name: str
    watch: Watch
    prompt: str
    order: str = ""
    seed: int = 0
    began: float = 0.0
    drawn: int = 0
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def person(self) -> Person:
        return Person(self.watch.page)

    def ask(self) -> None:
        """Change the seed and click."""
        self.seed += 1
        self.order = self._stage()[0]
        self.person.ask_for(self.prompt, seed=self.seed, steps=_STEPS)
        self.began = time.monotonic()
        self.person.button("generate-go").click()

    def look(self, pictures: Path) -> bool:
        """Whether the picture has come; it is compared with what was asked for."""
        order, phase = self._stage()
        if order == self.order or phase in {"waiting", "drawing"}:
            return False
        names = self.person.picture_names() if phase == "done" else []
        if phase == "done" and not names:
            return False  # the last glimpse gives way when its picture is decoded
        self.seconds.append(time.monotonic() - self.began)
        if len(names) != 1:
            self.wrong.append(f"{self.name}, seed {self.seed}: {phase}, {len(names)} pictures")
            return True
        file = pictures / self.name / names[0]
        if not file.is_file():
            self.wrong.append(f"{self.name}, seed {self.seed}: {names[0]} does not lie among this person's pictures")
            return True
        told = read_request(file)
        if (told.prompt, told.seed) != (self.prompt, self.seed):
            self.wrong.append(f"{self.name} asked for {self.prompt!r}, seed {self.seed}: {told.prompt!r}, {told.seed}")
        self.drawn += 1
        return True

    def _stage(self) -> tuple[str, str]:
        stage = self.watch.page.locator("#stage [data-phase]")
        return stage.get_attribute("data-order") or "", stage.get_attribute("data-phase") or ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    names = [f"user{number}" for number in range(args.users)]
    with tempfile.TemporaryDirectory(prefix="users-") as folder:
        accounts = Path(folder) / "users.json"
        for name in names:
            add_user(accounts, name, f"the password of {name}")
        desk = DeskProcess(Path(folder) / "workspace", "--auth", str(accounts))
        try:
            desk.start().wait_for_engine()
            found = used(desk, names, args.minutes * 60)
        finally:
            desk.close()
    holds = not found["wrong"] and not found["errors"] and abs(found["memory, last of second"] - 1) <= _MOST_GROWTH
    facts = {
        "date": date.today().isoformat(),
        "hardware": f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("torch", "diffusers", "gradio")},
        "users": args.users,
        "minutes": args.minutes,
        "steps": _STEPS,
        **found,
        "holds": holds,
    }
    print(json.dumps(facts, indent=1))
    if args.write:
        path = Path("bench/results") / f"users-{facts['date']}.json"
        path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        print(path)
    sys.exit(0 if holds else 1)


def used(desk: DeskProcess, names: Sequence[str], seconds: float) -> dict[str, Any]:
    """Let them all draw for so long; what went wrong, how long they waited, and the memory of page and engine."""
    with sync_playwright() as playwright:
        browser = start_browser(playwright, browser_program())
        users = [_come(browser, desk, name, number) for number, name in enumerate(names)]
        for user in users:
            user.ask()
        began, memory = time.monotonic(), list[tuple[float, int]]()
        engine = psutil.Process(desk.wait_for_presence("engine")["pid"])
        page = psutil.Process(desk.pid)
        while (passed := time.monotonic() - began) < seconds:
            for user in users:
                if user.look(desk.workspace / "pictures"):
                    user.ask()
            memory.append((passed, engine.memory_info().rss + page.memory_info().rss))
            users[0].watch.page.wait_for_timeout(100)
        errors = [line for user in users for line in user.watch.complaints]
        browser.close()
    # The first fifth warms up: thumbnails, caches, ten pages that are sent.
    early = statistics.mean(size for passed, size in memory if seconds / 5 <= passed < 2 * seconds / 5)
    late = statistics.mean(size for passed, size in memory if passed >= 4 * seconds / 5)
    waits = sorted(wait for user in users for wait in user.seconds)
    return {
        "pictures": {user.name: user.drawn for user in users},
        "wrong": [line for user in users for line in user.wrong],
        "errors": errors,
        "seconds, median": round(statistics.median(waits), 2),
        "seconds, longest": round(waits[-1], 2),
        "memory, second fifth, MiB": round(early / 2**20, 1),
        "memory, last fifth, MiB": round(late / 2**20, 1),
        "memory, last of second": round(late / early, 4),
    }


def _come(browser: Browser, desk: DeskProcess, name: str, number: int) -> User:
    context = browser.new_context(
        viewport={"width": 1200, "height": 800},
        http_credentials={"username": name, "password": f"the password of {name}", "send": "always"},
    )
    context.set_default_timeout(120_000)
    user = User(name, Watch(context.new_page()), f"a red {_THINGS[number % len(_THINGS)]}")
    user.seed = 1000 * number
    user.watch.page.goto(desk.url)
    user.person.go_to("generate")
    return user


if __name__ == "__main__":
    main()
