"""Whoever reads the page by ear finds names and labels: no serious violation that axe knows, on any tab."""

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.ui.conftest import OpenPage
from tests.ui.person import Person
from tests.ui.process import DeskProcess

TABS = ("start", "dataset", "train", "generate", "library", "queue")
# What Gradio's own parts are made of, and we do not write.
_NOT_OURS = {"exclude": [[".tab-container"], [".toast-wrap"], ["gradio-app > .wrap"]]}


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["dark", "light"])
def test_no_tab_has_a_serious_violation(desk: DeskProcess, open_page: OpenPage, theme: str) -> None:
    person = Person(open_page(desk.url, theme=theme).page)
    person.wait_for_status("loading", "ready", "busy", "training")
    found: list[str] = []
    for tab in TABS:
        person.go_to(tab)
        person.page.wait_for_timeout(500)
        for violation in Axe().run(person.page, context=_NOT_OURS).response["violations"]:
            if violation["impact"] in ("serious", "critical"):
                places = [" ".join(map(str, node["target"])) for node in violation["nodes"][:3]]
                found.append(f"{tab}: {violation['id']} ({violation['help']}): {'; '.join(places)}")
    assert not found, "\n".join(found)
