"""What axe finds on a page for whoever reads it by ear: the serious violations, as lines."""

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

# What Gradio's own parts are made of, and we do not write.
_NOT_OURS = {"exclude": [[".tab-container"], [".toast-wrap"], ["gradio-app > .wrap"]]}


def violations(page: Page, where: str) -> list[str]:
    """Serious and critical ones, with up to three places each."""
    found = []
    for violation in Axe().run(page, context=_NOT_OURS).response["violations"]:
        if violation["impact"] in ("serious", "critical"):
            places = [" ".join(map(str, node["target"])) for node in violation["nodes"][:3]]
            found.append(f"{where}: {violation['id']} ({violation['help']}): {'; '.join(places)}")
    return found
