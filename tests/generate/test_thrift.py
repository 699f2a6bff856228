"""Small cards: what rests in main memory is told and changes no picture; and what an absent extra says."""

from importlib.util import find_spec

import numpy as np
import pytest

from diffusion_lora.errors import PromptError
from diffusion_lora.families.family import Model, load_base
from diffusion_lora.generate.engine import Engine
from diffusion_lora.generate.request import LoraUse, Request
from diffusion_lora.generate.start import Hires
from diffusion_lora.generate.thrift import Thrift, plan, plan_for


def test_little_free_memory_is_told_and_much_changes_nothing(model: Model) -> None:
    thrifty = plan_for(model, 1 << 30)
    assert thrifty.offload
    assert thrifty.slicing
    assert "1.0 GiB are free beside pocket" in thrifty.note
    assert plan_for(model, 16 << 30) == Thrift() == plan(model), "on the CPU all of it is main memory"


def test_pictures_are_the_same_and_the_first_tells(engine: Engine, style: LoraUse) -> None:
    """Parts that come and go would be missing where they are needed, or adapters be made for the wrong place."""
    requests = [Request("a red cat", seed=seed, steps=2, loras=(style.at(0.7),)) for seed in (1, 2)]
    thrifty = Engine(load_base("pocket", device="cpu"), thrift=Thrift(True, True, "parts rest"))
    mine, plain = thrifty.draw(requests), engine.draw(requests)
    for one, other in zip(mine, plain, strict=True):  # decoded one by one they round otherwise
        assert np.abs(np.asarray(one.image, dtype=int) - np.asarray(other.image, dtype=int)).max() <= 1
    assert mine[0].company is not None
    assert mine[0].company.decoded == 1
    assert "parts rest" in mine[0].notes
    assert "parts rest" not in thrifty.draw(requests[:1])[0].notes


@pytest.mark.skipif(find_spec("spandrel") is not None, reason="spandrel is here")
def test_an_upscaler_model_without_its_extra_is_refused_before_anything_is_drawn(engine: Engine) -> None:
    request = Request("a cat", hires=Hires(upscaler="models/x4.safetensors"))
    with pytest.raises(PromptError, match=r"spandrel.*diffusion-lora\[upscale\].*latent or lanczos"):
        engine.resolved(request)
    with pytest.raises(PromptError, match="'ESRGAN' is unknown; say latent or lanczos, or name a model's"):
        Hires(upscaler="ESRGAN")
