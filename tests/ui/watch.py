"""A browser page under watch: everything it complains of, and every request that leaves this machine, is noted.

A page that works may still log errors or ask for files that are not there; nobody sees it but the person who opens the
developer tools.
"""

import contextlib
from collections.abc import Iterator
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Error, Page, Request, Response, expect

from tests.ui.process import PATIENCE_S

# The page itself let go of it: it went elsewhere, or put another picture in the place.
_LET_GO = "net::ERR_ABORTED"


class Watch:
    """`page`, and what went wrong on it so far in `complaints`."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self._excused = False
        page.on("console", self._console)
        page.on("pageerror", lambda error: self._note(f"error: {error}"))
        page.on("request", self._request)
        page.on("requestfailed", self._failed)
        page.on("response", self._response)

    @contextlib.contextmanager
    def excused(self) -> Iterator[None]:
        """While the test itself has taken the server away, the page may complain."""
        self._excused = True
        try:
            yield
        finally:
            self._excused = False

    def _note(self, text: str) -> None:
        if not self._excused:
            self.complaints.append(text)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            where = message.location
            self._note(f"console: {message.text} ({where.get('url', '')}:{where.get('lineNumber', '')})")

    def _request(self, request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme in {"http", "https", "ws", "wss"} and address.hostname not in {"127.0.0.1", "localhost"}:
            self.complaints.append(f"leaves this machine: {request.method} {request.url}")

    def _failed(self, request: Request) -> None:
        if request.failure != _LET_GO:
            self._note(f"failed: {request.method} {request.url} ({request.failure})")

    def _response(self, response: Response) -> None:
        if response.status >= 400:
            self._note(f"status {response.status}: {response.request.method} {response.url}")


def open_watched(browser: Browser, *, width: int = 1400, height: int = 900, theme: str | None = None) -> Watch:
    """A new page in a context of its own (cookies, storage, clipboard), not yet gone anywhere.

    `theme` is what the person's system prefers: dark, light, or nothing said.
    """
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if theme == "dark" else "light" if theme == "light" else "no-preference",
        permissions=["clipboard-read", "clipboard-write"],
    )
    context.set_default_timeout(PATIENCE_S * 1000)
    expect.set_options(timeout=PATIENCE_S * 1000)
    return Watch(context.new_page())


def come_back(page: Page, address: str) -> None:
    """Open a page again whose server was away; the tab may be on its way there already, and is then waited for."""
    try:
        page.goto(address)
    except Error as error:
        if "interrupted by another navigation" not in str(error) and "ERR_ABORTED" not in str(error):
            raise
        page.wait_for_load_state()
