"""The page before Gradio is there: our style sheet, the chosen light and the bar, in the HTML itself.

Gradio's own page stays empty, and white, until its scripts have run. What is put in here is painted at once.
"""

from __future__ import annotations

import hashlib

from fastapi import APIRouter, Response
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from webui import bar
from webui.theme import asset, style

_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16' fill='%23c97d1a'%3E"
    "%3Crect y='9' width='3' height='7' rx='1'/%3E%3Crect x='6' y='3' width='3' height='13' rx='1'/%3E"
    "%3Crect x='12' y='6' width='3' height='10' rx='1'/%3E%3C/svg%3E"
)


class Opening:
    """The middleware that puts it into the page's HTML."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        version = hashlib.blake2b(style().encode(), digest_size=8).hexdigest()
        self._head = (
            f'<link rel="stylesheet" href="desk.css?v={version}"><link rel="icon" href="{_ICON}">'
            "<title>diffusion-lora</title>"
        ).encode()
        self._body = asset("opening.html").replace("BRAND", bar.BRAND).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/" or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        # What is to be changed on its way must come as it is, not compressed.
        plain = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        held: list[Message] = []

        async def hold(message: Message) -> None:
            held.append(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                for part in _changed(held, self._head, self._body):
                    await send(part)

        await self._app({**scope, "headers": plain}, receive, hold)


def style_route() -> APIRouter:
    """The style sheet, under an address that changes with it."""
    router = APIRouter()
    text = style()

    @router.get("/desk.css")
    def style_sheet() -> Response:
        headers = {"Cache-Control": "public, max-age=31536000, immutable"}
        return Response(text, media_type="text/css", headers=headers)

    return router


def _changed(held: list[Message], head: bytes, body: bytes) -> list[Message]:
    start = held[0]
    page = b"".join(message.get("body", b"") for message in held[1:])
    if start["status"] == 200:
        page = page.replace(b"<head>", b"<head>" + head, 1)
        opened = page.find(b">", page.find(b"<body")) + 1
        page = page[:opened] + body + page[opened:]
    headers = MutableHeaders(raw=list(start["headers"]))
    headers["content-length"] = str(len(page))
    return [{**start, "headers": headers.raw}, {"type": "http.response.body", "body": page}]
