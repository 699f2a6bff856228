"""webuiapi, a published client of AUTOMATIC1111's API that knows nothing of us, gets pictures from the engine."""

import threading
import time
from typing import Any

import pytest
import webuiapi  # type: ignore[import-untyped]
from PIL import Image

from diffusion_lora.processes import read

SMALL = {"width": 64, "height": 64, "cfg_scale": 3, "sampler_name": "Euler a"}
PATIENCE_S = 600


@pytest.fixture(scope="module")
def client(engine: Any) -> Any:
    presence = read(engine.workspace, "engine")
    assert presence is not None
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("NO_PROXY", "*")
        yield webuiapi.WebUIApi(port=presence.port, username="anybody", password=presence.token)


def test_it_draws_from_text_and_from_a_picture_and_reads_the_settings_back(client: Any) -> None:
    drawn = client.txt2img(prompt="a red cat <lora:style:0.5>", seed=7, steps=2, batch_size=2, **SMALL)
    assert [image.size for image in drawn.images] == [(64, 64)] * 2
    assert drawn.info["all_seeds"] == [7, 8]
    assert client.png_info(drawn.image).info == drawn.info["infotexts"][0]

    other = client.img2img(images=[drawn.image], prompt="a blue cat", seed=7, steps=4, denoising_strength=0.5, **SMALL)
    assert other.image.size == (64, 64)
    assert other.image.tobytes() != drawn.image.tobytes()

    half = Image.new("L", (64, 64))
    half.paste(255, (0, 0, 32, 64))
    inpainted = client.img2img(
        images=[drawn.image], mask_image=half, mask_blur=0, inpaint_full_res=False, prompt="a blue dog", seed=9,
        steps=4, denoising_strength=1.0, **SMALL,
    )  # fmt: skip
    right = (32, 0, 64, 64)
    assert inpainted.image.convert("RGB").crop(right).tobytes() == drawn.image.convert("RGB").crop(right).tobytes()


def test_it_finds_what_there_is(client: Any) -> None:
    assert [lora["name"] for lora in client.get_loras()] == ["hero", "style"]
    assert "DPM++ 2M" in client.util_get_sampler_names()
    assert {"automatic", "karras", "sgm_uniform"} <= set(client.util_get_scheduler_names())
    assert client.util_get_current_model() in client.util_get_model_names()


def test_it_follows_a_drawing_and_interrupts_it(client: Any) -> None:
    """A button "interrupt" would do nothing, or a bar stand still; the call in the making would be left hanging."""
    answers: list[Any] = []

    def draw() -> None:
        answers.append(client.txt2img(prompt="a red cat", seed=1, steps=900, **SMALL))

    thread = threading.Thread(target=draw)
    thread.start()
    end = time.monotonic() + PATIENCE_S
    while not (told := client.get_progress())["progress"]:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert told["state"]["job_count"] == 1
    assert told["state"]["sampling_steps"] == 900
    client.interrupt()
    thread.join(PATIENCE_S)
    assert answers[0].images == []
    assert answers[0].info["interrupted"]
    client.util_wait_for_ready(check_interval=0.1)


def test_what_cannot_be_drawn_reaches_the_caller_in_words(client: Any) -> None:
    with pytest.raises(RuntimeError, match=r"gone.*LoRA"):
        client.txt2img(prompt="<lora:gone:1>", steps=1, **SMALL)
