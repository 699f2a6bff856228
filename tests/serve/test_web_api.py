"""What a client of AUTOMATIC1111's API sends and gets: pictures, their infotexts, and refusals in words."""

import base64
import io
import json
from typing import Any

import httpx
import pytest
from PIL import Image

from diffusion_lora.generate.infotext import parse_infotext
from diffusion_lora.processes import read


@pytest.fixture(scope="module")
def client(engine: Any) -> Any:
    presence = read(engine.workspace, "engine")
    assert presence is not None
    base = f"http://127.0.0.1:{presence.port}/sdapi/v1/"
    with httpx.Client(base_url=base, auth=("anybody", presence.token), trust_env=False, timeout=600) as client:
        yield client


def pictures(answer: httpx.Response) -> list[Image.Image]:
    assert answer.status_code == 200, answer.text
    return [Image.open(io.BytesIO(base64.b64decode(image))) for image in answer.json()["images"]]


def test_text_and_pictures_become_pictures(client: httpx.Client) -> None:
    asked = {"prompt": "a red cat <lora:style:0.5>", "negative_prompt": "dog", "steps": 2, "seed": 7, "width": 64,
             "height": 64, "cfg_scale": 3, "sampler_name": "Euler a", "batch_size": 2}  # fmt: skip
    answer = client.post("txt2img", json=asked)
    first, second = pictures(answer)
    info = json.loads(answer.json()["info"])
    assert info["all_seeds"] == [7, 8]
    assert first.tobytes() != second.tobytes()
    read_back = parse_infotext(info["infotexts"][0])
    assert (read_back.prompt, read_back.parameters["Sampler"]) == ("a red cat <lora:style:0.5>", "Euler a")
    told = client.post("png-info", json={"image": answer.json()["images"][0]}).json()
    assert told["info"] == info["infotexts"][0]

    (other,) = pictures(client.post("img2img", json={
        **asked, "batch_size": 1, "init_images": answer.json()["images"][:1], "denoising_strength": 0.5,
    }))  # fmt: skip
    assert other.size == (64, 64)
    assert other.tobytes() != first.tobytes()


def test_what_there_is(client: httpx.Client) -> None:
    assert [lora["name"] for lora in client.get("loras").json()] == ["hero", "style"]
    assert "DPM++ 2M" in [sampler["name"] for sampler in client.get("samplers").json()]
    assert client.get("progress").json()["progress"] == 0
    assert client.post("interrupt").status_code == 200


@pytest.mark.parametrize(
    "asked", [{"prompt": "<lora:gone:1>"}, {"sampler_name": "Restart"}, {"styles": ["x"]}, {"steps": "many"},
              {"prompt": "a AND b"}, {"batch_size": 100}, {"width": 65}]
)  # fmt: skip
def test_what_cannot_be_drawn_is_told(client: httpx.Client, asked: dict[str, Any]) -> None:
    answer = client.post("txt2img", json={"steps": 1, "width": 64, "height": 64, **asked})
    assert answer.status_code == 400
    assert answer.json()["text"]


def test_a_wrong_password_is_refused(client: httpx.Client) -> None:
    for auth in (("anybody", "wrong"), ("anybody", "")):
        assert client.get("loras", auth=auth).status_code == 401
