"""Who may speak to the page: its own browser tabs, from this machine, or whoever logs in where it listens wider.

A request is refused (403) when its Host is none of the page's own names (another site's name that was pointed at this
machine), when its Origin is another site, or when the browser says that another site made it. With accounts every
route asks for a login, ours and Gradio's alike (HTTP basic; 401), and whoever guesses is made to wait (429). Behind the
walls a request says who asks (`who`). Answers carry headers that keep the page from asking anything of the outside;
what is refused is logged. What the routes do is not known here.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import socket
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import anyio.to_thread
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diffusion_lora.accounts import Accounts
from webui import who
from webui.refusals import note_refusal

# Gradio's page runs inline scripts and compiles its templates; beyond that nothing comes from elsewhere, nothing goes.
_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "connect-src 'self' data: blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_AFTER_A_WRONG_LOGIN_S = 1.0
_GUESSES, _GUESSES_S, _SENT_AWAY_S = 10, 600.0, 300.0
"""So many wrong logins from one address within so many seconds, and it is not listened to for so long."""


@dataclass(frozen=True)
class Names:
    """The names under which the page may be asked for. `any_address` admits every plain IP address, which no other
    site's name can turn into."""

    hosts: frozenset[str]
    any_address: bool = False

    @classmethod
    def of(cls, listen: str | None) -> Names:
        """Those of a page on loopback (None), or of one that listens on an address or on all of them."""
        loopback = {"127.0.0.1", "localhost", "::1"}
        if listen is None:
            return cls(frozenset(loopback))
        own = {listen.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}
        return cls(frozenset(loopback | own), any_address=listen in ("0.0.0.0", "::", ""))

    def admit(self, host: str, port: int) -> bool:
        """Whether a Host header names this page."""
        try:
            asked = urlsplit(f"//{host}")
            name, asked_port = (asked.hostname or "").lower(), asked.port
        except ValueError:
            return False
        if (80 if asked_port is None else asked_port) != port or "@" in host:
            return False
        return name in self.hosts or (self.any_address and _is_address(name))


class Walls:
    """The middleware around everything the page serves."""

    def __init__(self, app: ASGIApp, *, names: Names, port: int, accounts: Accounts | None = None) -> None:
        self._app = app
        self._names = names
        self._port = port
        self._accounts = accounts
        self._wrong = _Guesses()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        refusal, user = await self._judged(scope)
        if refusal is not None:
            note_refusal(scope, refusal.status_code, bytes(refusal.body).decode().strip())
        if refusal is None:
            with who.asks(scope, user) as known:
                await self._app(known, receive, send_with_headers)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refusal(scope, receive, send_with_headers)

    async def _judged(self, scope: Scope) -> tuple[PlainTextResponse | None, str]:
        """Why a request is refused, or the name of the user who makes it ("" where nobody logs in)."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._names.admit(host, self._port):
            return PlainTextResponse("This page is not served under that name.\n", 403), ""
        origin = headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
        if foreign or (headers.get("sec-fetch-site") == "cross-site" and not _is_followed_link(scope)):
            return PlainTextResponse("Another site may not use this page.\n", 403), ""
        if self._accounts is None:
            return None, ""
        address = str((scope.get("client") or ("",))[0])
        if (seconds := self._wrong.wait_of(address)) > 0:
            wait = {"Retry-After": str(round(seconds))}
            return PlainTextResponse("Too many wrong logins: try again later.\n", 429, wait), ""
        given = _given(headers.get("authorization", ""))
        if given is not None and await anyio.to_thread.run_sync(self._accounts.check, *given):
            self._wrong.forget(address)
            return None, given[0]
        if "authorization" in headers:
            self._wrong.note(address)
            await asyncio.sleep(_AFTER_A_WRONG_LOGIN_S)
        challenge = {"WWW-Authenticate": 'Basic realm="diffusion-lora", charset="UTF-8"'}
        return PlainTextResponse("Log in to use this page.\n", 401, challenge), ""


class _Guesses:
    """Wrong logins by address."""

    def __init__(self) -> None:
        self._at: dict[str, list[float]] = {}

    def note(self, address: str) -> None:
        now = time.monotonic()
        self._at = {one: times for one, times in self._at.items() if now - times[-1] < _GUESSES_S}
        self._at[address] = [*(at for at in self._at.get(address, []) if now - at < _GUESSES_S), now]

    def wait_of(self, address: str) -> float:
        """Seconds for which an address is not listened to; 0 for one that may try."""
        times = self._at.get(address, [])
        return max(0.0, times[-1] + _SENT_AWAY_S - time.monotonic()) if len(times) >= _GUESSES else 0.0

    def forget(self, address: str) -> None:
        self._at.pop(address, None)


def _given(authorization: str) -> tuple[str, str] | None:
    """Name and password of HTTP's basic login; None for anything else."""
    scheme, _, text = authorization.partition(" ")
    try:
        name, colon, password = base64.b64decode(text, validate=True).decode().partition(":")
    except (ValueError, binascii.Error):
        return None
    return (name, password) if colon and scheme.lower() == "basic" else None


def _is_followed_link(scope: Scope) -> bool:
    """A person who clicks a link to the page, say in a README, comes from another site and may: it opens, no more."""
    return (
        scope["type"] == "http"
        and scope["method"] == "GET"
        and scope["path"] == "/"
        and Headers(scope=scope).get("sec-fetch-mode") == "navigate"
    )


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
