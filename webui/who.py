"""Who asks: the name of the user whose request is being answered, "" where nobody logs in.

The walls write it into a header that no browser can set, and into a variable of the request's own context. Handlers
that Gradio queues run outside of that context: they read the header (`of`). What is whose is decided by those who ask.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

HEADER = "x-desk-user"
_USER: ContextVar[str] = ContextVar("user", default="")


def is_asking() -> str:
    """The user whose request this is, inside the request's own context."""
    return _USER.get()


def of(request: Any) -> str:
    """The user of a Gradio request."""
    headers = getattr(request, "headers", None) or {}
    return str(headers.get(HEADER) or "")


@contextmanager
def asks(scope: MutableMapping[str, Any], user: str) -> Iterator[MutableMapping[str, Any]]:
    """The request with its user in it, for the length of its answer."""
    headers = [(name, value) for name, value in scope["headers"] if name.lower() != HEADER.encode()]
    token = _USER.set(user)
    try:
        yield {**scope, "headers": [*headers, (HEADER.encode(), user.encode())]}
    finally:
        _USER.reset(token)


@contextmanager
def acting_for(request: Any) -> Iterator[None]:
    """Be in the context of a Gradio request: for handlers that were queued."""
    token = _USER.set(of(request))
    try:
        yield
    finally:
        _USER.reset(token)
