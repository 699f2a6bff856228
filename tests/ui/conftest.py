"""Tests of the page: a real `diffusion-lora ui` and a real Chromium.

Each watched page must end without a console error and without a failed request. Without a browser these tests skip,
or fail where CI is set: scripts/browser says how to get one.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.ui.browser import NoBrowserError, browser_program, start_browser
from tests.ui.process import DeskProcess
from tests.ui.watch import Watch, open_watched

OpenPage = Callable[..., Watch]
StartDesk = Callable[..., DeskProcess]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests; every page has its own context."""
    try:
        program = browser_program()
    except NoBrowserError as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))
    with sync_playwright() as playwright:
        started = start_browser(playwright, program)
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Open watched pages; at the end of the test none of them may have complained."""
    watched: list[Watch] = []

    def open_one(url: str, **look: Any) -> Watch:
        watch = open_watched(browser, **look)
        watched.append(watch)
        watch.page.goto(url)
        return watch

    yield open_one
    complaints = [line for watch in watched for line in watch.complaints]
    for watch in watched:
        watch.page.context.close()
    assert not complaints


@pytest.fixture
def start_desk(tmp_path: Path) -> Iterator[StartDesk]:
    """Start `diffusion-lora ui` over a fresh workspace; everything it called up ends with the test."""
    started: list[DeskProcess] = []

    def start(*arguments: str, name: str = "workspace", environment: dict[str, str] | None = None) -> DeskProcess:
        desk = DeskProcess(tmp_path / name, *arguments, environment=environment)
        started.append(desk)
        return desk.start()

    yield start
    for desk in started:
        desk.close()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeskProcess]:
    """One desk for the tests of a module that leave it as they found it."""
    process = DeskProcess(tmp_path_factory.mktemp("desk") / "workspace")
    try:
        yield process.start()
    finally:
        process.close()
