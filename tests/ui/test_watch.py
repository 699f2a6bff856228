"""The watch itself: a page with errors must not pass, and no browser is no reason to pass in CI."""

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.ui.process import CHECKOUT
from tests.ui.watch import open_watched

_PAGES = {
    "/": "<link rel=icon href=data:,><p>quiet</p>",
    "/console": "<link rel=icon href=data:,><script>console.error('a word')</script>",
    "/raises": "<link rel=icon href=data:,><script>throw new Error('a fall')</script>",
    "/missing": "<link rel=icon href=data:,><img src=/not-there.png>",
    "/abroad": "<link rel=icon href=data:,><img src=http://elsewhere.example/x.png>",
}


class _Pages(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = _PAGES.get(self.path, "").encode()
        self.send_response(200 if body else 404)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def pages() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("path", "told"),
    [("/", ""), ("/console", "a word"), ("/raises", "a fall"), ("/missing", "404"), ("/abroad", "leaves this machine")],
)
def test_what_a_page_complains_of_is_noted(browser: Browser, pages: str, path: str, told: str) -> None:
    watch = open_watched(browser)
    watch.page.goto(pages + path)
    watch.page.wait_for_timeout(100)
    watch.page.context.close()
    assert told in " ".join(watch.complaints) if told else not watch.complaints


@pytest.mark.parametrize(("ci", "outcome"), [("", "1 skipped"), ("1", "1 error")])
def test_without_a_browser_these_tests_skip_and_fail_in_ci(ci: str, outcome: str) -> None:
    """A suite that is green because nothing of it ran would tell CI that the page works."""
    test = "tests/ui/test_watch.py::test_what_a_page_complains_of_is_noted[/-]"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", test],
        cwd=CHECKOUT,
        env={**os.environ, "CI": ci, "DIFFUSION_LORA_BROWSER": str(CHECKOUT / "no-such-browser")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome in done.stdout
    assert "DIFFUSION_LORA_BROWSER names" in done.stdout
    assert bool(done.returncode) == bool(ci)
