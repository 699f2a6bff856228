"""Whoever reads the page by ear finds names and labels: no serious violation that axe knows, on any tab."""

import pytest

from tests.ui.conftest import OpenPage
from tests.ui.hearing import violations
from tests.ui.person import Person
from tests.ui.process import DeskProcess

TABS = ("start", "dataset", "train", "generate", "library", "queue")


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["dark", "light"])
def test_no_tab_has_a_serious_violation(desk: DeskProcess, open_page: OpenPage, theme: str) -> None:
    person = Person(open_page(desk.url, theme=theme).page)
    person.wait_for_status("loading", "ready", "busy", "training")
    found: list[str] = []
    for tab in TABS:
        person.go_to(tab)
        person.page.wait_for_timeout(500)
        found += violations(person.page, tab)
    assert not found, "\n".join(found)


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["dark", "light"])
def test_what_generate_unfolds_has_none_either(desk: DeskProcess, open_page: OpenPage, theme: str) -> None:
    """Wrong: a grid's form or the ways to begin a picture are there for the eye alone."""
    person = Person(open_page(desk.url, theme=theme).page)
    person.go_to("generate")
    found: list[str] = []
    for mode in ("image", "inpaint", "upscale"):
        person.page.locator(f"#source [value={mode}]").check()
        found += violations(person.page, mode)
    person.page.locator("#desk-grid").click()
    found += violations(person.page, "grid")
    assert not found, "\n".join(found)
