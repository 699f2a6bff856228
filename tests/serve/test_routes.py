"""The engine's own routes over HTTP, as a program without our client finds them: described, and doing what is said."""

import base64
import io
import json
from typing import Any

import httpx
import pytest
from PIL import Image

from diffusion_lora.generate.reading import read_request
from diffusion_lora.processes import read

TINY = {"prompt": "a red cat", "seed": 7, "steps": 2, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def http(engine: Any) -> Any:
    presence = read(engine.workspace, "engine")
    assert presence is not None
    headers = {"authorization": f"Bearer {presence.token}"}
    with httpx.Client(
        base_url=f"http://127.0.0.1:{presence.port}", headers=headers, trust_env=False, timeout=600
    ) as client:
        yield client


def told(http: httpx.Client, route: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = http.post(route, json=body)
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def test_every_route_is_described(http: httpx.Client) -> None:
    """A program written against the document would find nothing, or other fields than are read."""
    document = http.get("/openapi.json").json()
    routes = {(path, method) for path, of_path in document["paths"].items() for method in of_path}
    assert {("/generate", "post"), ("/img2img", "post"), ("/grid", "post"), ("/adapters", "get"), ("/bases", "get"),
            ("/cancel", "post"), ("/unload", "post"), ("/sdapi/v1/txt2img", "post")} <= routes  # fmt: skip
    schemas = document["components"]["schemas"]
    for path, method in routes:
        route = document["paths"][path][method]
        assert set(route["responses"]) >= {"200", "400", "401"}, path
        assert ("requestBody" in route) == (method == "post" and path not in ("/unload", "/sdapi/v1/interrupt")), path
    assert {"prompt", "seed", "loras", "regions", "start"} <= set(schemas["Request"]["properties"])
    assert {"strength", "steps", "blocks", "region"} <= set(schemas["LoraUse"]["properties"])
    assert len(schemas["Event"]["oneOf"]) == 10
    for found in json.dumps(document).split('"#/components/schemas/')[1:]:
        assert found.partition('"')[0] in schemas
    assert httpx.get(http.base_url.join("/openapi.json"), trust_env=False).status_code == 401


def test_a_picture_is_drawn_from_a_picture(http: httpx.Client, engine: Any) -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, format="PNG")
    events = told(http, "/img2img", {
        "requests": [TINY], "image": base64.b64encode(file.getvalue()).decode(), "strength": 0.5, "previews": False,
    })  # fmt: skip
    (drawn,) = [event for event in events if event["kind"] == "picture"]
    request = read_request(engine.workspace.root / drawn["path"])
    assert request.start is not None
    assert request.start.strength == 0.5
    assert request.start.image.read_bytes() == file.getvalue()


def test_a_grid_is_drawn_with_its_sheet(http: httpx.Client, engine: Any) -> None:
    """A grid would have to be drawn cell by cell, or come without its labels."""
    request = {**TINY, "loras": [{"name": "style", "path": "style"}]}
    events = told(http, "/grid", {"request": request, "rows": "seed=7,8", "columns": "strength:style=0.5,1",
                                  "baseline": True})  # fmt: skip
    drawn = [event for event in events if event["kind"] == "picture"]
    assert [event["index"] for event in drawn] == list(range(6))
    assert [(event["request"]["seed"], len(event["request"]["loras"])) for event in drawn[:4]] == [
        (7, 0), (7, 1), (7, 1), (8, 0),
    ]  # fmt: skip
    assert [event["kind"] for event in events[-2:]] == ["sheet", "end"]
    with Image.open(engine.workspace.root / events[-2]["path"]) as sheet:
        assert sheet.width > sheet.height > 128


def test_what_there_is_to_load(http: httpx.Client) -> None:
    assert {"name": "pocket", "path": "pocket"} in http.get("/bases").json()["bases"]


@pytest.mark.parametrize(
    ("route", "body", "words"),
    [
        ("/generate", {}, "no list of 1 to 1000"),
        ("/generate", {"requests": [TINY], "preview": True}, "'preview', which is not read"),
        ("/generate", {"requests": [7]}, "no JSON object"),
        ("/grid", {"request": TINY, "rows": "seed=1"}, "which columns"),
        ("/grid", {"request": TINY, "rows": "seed=1", "columns": "hue=1,2"}, "'hue' is unknown"),
        ("/img2img", {"requests": [TINY], "image": "no picture!"}, "not in base64"),
        ("/cancel", {}, "which id"),
        ("/load", {"base": 7}, "which base"),
    ],
)
def test_what_is_not_understood_is_told(http: httpx.Client, route: str, body: dict[str, Any], words: str) -> None:
    answer = http.post(route, json=body)
    assert answer.status_code == 400
    assert words in answer.json()["text"]
