"""The browser of the tests: where it lies (scripts/browser knows), and how it is started so that it stays at home."""

import os
import subprocess
import sys

from playwright.sync_api import Browser, Playwright

from tests.ui.process import CHECKOUT

# A browser with nothing to say to the world: no update checks, no look-ups of its maker's hosts.
_FLAGS = (
    "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-default-apps", "--disable-domain-reliability",
    "--no-default-browser-check", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)  # fmt: skip


class NoBrowserError(Exception):
    """There is none; the sentence says how to get one."""


def browser_program() -> str:
    """The path of a browser that is there. Raises NoBrowserError."""
    found = subprocess.run(
        [CHECKOUT / "scripts" / "browser", "--find"],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        raise NoBrowserError(found.stderr.strip())
    return found.stdout.strip()


def start_browser(playwright: Playwright, program: str) -> Browser:
    """A headless browser. Its sandbox wants rights that a container often lacks; it loads nothing but our own page."""
    return playwright.chromium.launch(executable_path=program, args=list(_FLAGS), chromium_sandbox=False)
