"""HTTP as an attacker would send it: the path goes out as it is written, and headers are the test's own."""

import base64
import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """Status, headers (names in lower case) and the first megabyte of an answer."""

    status: int
    headers: dict[str, str]
    body: bytes


def ask(
    port: int,
    path: str,
    *,
    method: str = "GET",
    host: str | None = "",
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> Answer:
    """One request to 127.0.0.1. `host`: "" for the right one, None for none at all."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        if host is not None:
            connection.putheader("Host", host or f"127.0.0.1:{port}")
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        told = {name.lower(): value for name, value in answer.getheaders()}
        # A stream of news has no end: its status says enough.
        endless = "event-stream" in told.get("content-type", "")
        return Answer(answer.status, told, b"" if endless else _read(answer))
    finally:
        connection.close()


def _read(answer: http.client.HTTPResponse) -> bytes:
    """The body. Who refuses a request before reading its body may cut the line while we read what it says."""
    try:
        return answer.read(1_000_000)
    except ConnectionResetError:
        if answer.status < 400:
            raise
        return b""


def post_json(port: int, path: str, value: Any, headers: Mapping[str, str] | None = None) -> Answer:
    """A POST of JSON, as a script of a page would send it."""
    sent = {"Content-Type": "application/json", **(headers or {})}
    return ask(port, path, method="POST", headers=sent, body=json.dumps(value).encode())


def basic(name: str, password: str) -> dict[str, str]:
    """The header of HTTP's own login."""
    return {"Authorization": f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"}
