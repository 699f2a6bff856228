"""Who may speak to the engine: a program of this machine that could read the token from the workspace. Nobody else.

A browser is never such a program, so a request with an Origin is refused, and so is a Host that is not this very
address: a page elsewhere could have its own name point here (DNS rebinding). Both are looked at before the token.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Guard:
    """ASGI: answers 403 and 401 itself and lets nothing but `lifespan` and what is allowed through."""

    def __init__(self, app: App, *, port: int, token: str) -> None:
        self._app = app
        self._hosts = {f"127.0.0.1:{port}".encode(), f"localhost:{port}".encode()}
        self._authorization = f"Bearer {token}".encode()
        self._token = token.encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        refusal = None if scope["type"] == "lifespan" else self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            status, text = refusal
            body = json.dumps({"text": text}).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _refusal(self, scope: Message) -> tuple[int, str] | None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]

        def every(name: bytes) -> list[bytes]:
            return [value for key, value in headers if key.lower() == name]

        hosts, tokens = every(b"host"), every(b"authorization")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return 403, "This address answers to 127.0.0.1 alone."
        if every(b"origin"):
            return 403, "The engine does not speak to web pages."
        if len(tokens) != 1 or not self._is_token(tokens[0]):
            return 401, "The engine's token is missing or wrong; it is in the workspace's state/engine.json."
        return None

    def _is_token(self, authorization: bytes) -> bool:
        """The token itself, or as clients of the web UI send it: any name, with the token as the password."""
        if authorization[:6] == b"Basic ":
            try:
                _, _, password = base64.b64decode(authorization[6:], validate=True).partition(b":")
            except ValueError:
                return False
            return secrets.compare_digest(password, self._token)
        return secrets.compare_digest(authorization, self._authorization)
