"""Who is refused: everybody without the token, every browser, every other name for this address."""

import stat
import sys
from typing import Any

import httpx
import pytest

from diffusion_lora.processes import Presence, read

ROUTES = [("GET", "/status"), ("GET", "/adapters"), ("POST", "/generate"), ("POST", "/cancel"), ("POST", "/load")]


@pytest.fixture(scope="module")
def presence(engine: Any) -> Presence:
    found = read(engine.workspace, "engine")
    assert found is not None
    return found


def ask(presence: Presence, method: str, path: str, **headers: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {presence.token}"} | {key.replace("_", "-"): headers[key] for key in headers}
    with httpx.Client(trust_env=False, timeout=20) as client:
        return client.request(method, f"http://127.0.0.1:{presence.port}{path}", headers=headers, json={})


def test_it_answers_who_has_the_token(presence: Presence) -> None:
    """Else the refusals below would prove nothing."""
    assert ask(presence, "GET", "/status").json()["state"] == "ready"
    assert ask(presence, "GET", "/status", Host=f"localhost:{presence.port}").status_code == 200


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_without_the_token_nothing(presence: Presence, method: str, path: str) -> None:
    """Any other account of the machine could draw, and read what was drawn."""
    for authorization in ("", "Bearer", "Bearer wrong", presence.token, f"Basic {presence.token}"):
        assert ask(presence, method, path, Authorization=authorization).status_code == 401


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_foreign_host_is_refused_even_with_the_token(presence: Presence, method: str, path: str) -> None:
    """A page whose name points to 127.0.0.1 would be of the same origin as the engine."""
    for host in ("evil.example", f"evil.example:{presence.port}", "127.0.0.1", "127.0.0.1:1", ""):
        assert ask(presence, method, path, Host=host).status_code in (400, 403)


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_web_page_is_refused_even_with_the_token(presence: Presence, method: str, path: str) -> None:
    """The engine would speak to browsers."""
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{presence.port}"):
        assert ask(presence, method, path, Origin=origin).status_code == 403


@pytest.mark.parametrize(
    "path", ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/status/../state/engine.json", "/docs", "/redoc"]
)
def test_there_are_no_files_and_no_pages(presence: Presence, path: str) -> None:
    """The engine serves its routes and nothing from the disk, and no page: FastAPI's fetch scripts from elsewhere."""
    answer = ask(presence, "GET", path)
    assert answer.status_code == 404
    assert "root:" not in answer.text
    assert presence.token not in answer.text


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_the_token_is_for_this_account_alone(engine: Any) -> None:
    """Another account could read the token."""
    state = engine.workspace.state
    assert stat.S_IMODE((state / "engine.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(state.stat().st_mode) == 0o700


def test_orders_that_make_no_sense_are_told_so(presence: Presence) -> None:
    """A wrong order would be a traceback, or would be drawn as something else."""
    wrong: list[tuple[str, Any, str]] = [
        ("/generate", {}, "the order has no list of 1 to 1000 requests"),
        ("/generate", [], "the order is no JSON object"),
        ("/generate", {"requests": [{"prompt": "a cat", "stepz": 3}]}, "the request is damaged"),
        ("/generate", {"requests": [{"prompt": "a cat", "steps": 20.5}]}, "steps is 20.5; give a whole number"),
        ("/generate", {"requests": [{"prompt": 5}]}, "the request is damaged"),
        ("/generate", {"requests": [{"width": 100}]}, "the width is 100 px"),
        ("/cancel", {"id": 7}, "the order does not say which id"),
        ("/load", {}, "the order does not say which base"),
    ]
    headers = {"Authorization": f"Bearer {presence.token}"}
    with httpx.Client(trust_env=False, headers=headers, base_url=f"http://127.0.0.1:{presence.port}") as client:
        for path, body, sentence in wrong:
            answer = client.post(path, json=body)
            assert answer.status_code == 400
            assert answer.json()["text"].startswith(sentence)
        assert client.post("/load", content=b"{" * 5_000_000).status_code == 400
