"""Our engine and diffusers' own pipelines draw the same pictures: every family, alone and with our LoRA files.

One picture is compared for many reasons: text encoding, sizes, empty prompts, prediction, schedule, every LoRA key.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_lora.families.family import Model, load_base
from diffusion_lora.generate.engine import Engine
from diffusion_lora.generate.request import LoraUse, Request
from diffusion_lora.generate.samplers import sampler_named
from diffusion_lora.lora.adapter import Adapter, AdapterLayer, write_adapter
from diffusion_lora.lora.bank import AdapterBank

PROMPT, STEPS, SEED, GUIDANCE = "a red cat", 3, 7, 3.0
KINDS = ("sd15", "sd2", "sd2-v", "sdxl", "sdxl-v")


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, miniature: Callable[[str], Path]) -> Path:
    return miniature(request.param)


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load_base(str(folder), device="cpu")


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Any:
    from diffusers import DiffusionPipeline

    options = {"add_watermarker": False} if "sdxl" in folder.name else {"safety_checker": None}
    pipe: Any = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def theirs(pipe: Any, sampler: str, negative: str | None = None) -> np.ndarray:
    import diffusers

    row = sampler_named(sampler)
    pipe.scheduler = getattr(diffusers, row.scheduler_class).from_config(pipe.scheduler.config, **row.options)
    out = pipe(
        PROMPT,
        negative_prompt=negative,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator("cpu").manual_seed(SEED),
    )
    return np.asarray(out.images[0]).astype(int)


def ours(model: Model, sampler: str, negative: str = "", *loras: LoraUse) -> np.ndarray:
    engine = Engine(model)
    drawn = engine.draw([Request(PROMPT, negative, SEED, STEPS, GUIDANCE, sampler=sampler, loras=loras)])
    engine.close()
    return np.asarray(drawn[0].image).astype(int)


@pytest.mark.parametrize("folder", KINDS, indirect=True)
@pytest.mark.parametrize(("sampler", "negative"), [("ddim", ""), ("euler", "blue")])
def test_every_base_alone(model: Model, pipe: Any, sampler: str, negative: str) -> None:
    expected = theirs(pipe, sampler, negative or None)
    assert expected.std() > 20, "there is a picture to compare"
    difference = np.abs(ours(model, sampler, negative) - expected)
    assert difference.mean() < 0.05
    assert difference.max() <= 2


def mixed_adapter(base: Path) -> Adapter:
    """On every layer of the UNet and of all text encoders; rank and alpha differ from layer to layer."""
    model = load_base(str(base), device="cpu")
    bank = AdapterBank(model.components, model.layout.title)
    bank.add_trainable("new", 4, 4.0, "everything", "attention+mlp")
    generator = torch.Generator().manual_seed(3)
    layers = {}
    for number, (key, layer) in enumerate(bank.export("new").layers.items()):
        assert isinstance(layer, AdapterLayer)
        rank, alpha = 1 + number % 4, (0.5, 2.0, 4.0, 8.0, 1.0)[number % 5]
        up = torch.randn(layer.up[:, :rank].shape, generator=generator) * 0.1 / alpha
        layers[key] = AdapterLayer(layer.down[:rank].clone(), up, alpha)
    return Adapter(layers, {})


@pytest.mark.parametrize("folder", ["sd15", "sd2", "sdxl"], indirect=True)
def test_our_files_in_diffusers(
    folder: Path, model: Model, pipe: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Mixed ranks and alphas, text encoders included, in both of our formats."""
    pytest.importorskip("peft")
    base, adapter = theirs(pipe, "ddim"), mixed_adapter(folder)
    encoders = [name for name in ("text_encoder", "text_encoder_2") if getattr(pipe, name, None) is not None]
    for form, strength in (("kohya", 1.0), ("peft", 0.6)):
        path = tmp_path / f"{form}.safetensors"
        write_adapter(adapter, path, "fp32", form)  # type: ignore[arg-type]
        pipe.load_lora_weights(path, adapter_name=form)
        assert pipe.get_list_adapters() == {part: [form] for part in ("unet", *encoders)}
        pipe.set_adapters([form], [strength])
        expected = theirs(pipe, "ddim")
        assert np.abs(expected - base).mean() > 3, "the adapter changes the picture"
        drawn = ours(model, "ddim", "", LoraUse(form, path, strength))
        difference = np.abs(drawn - expected).mean()
        assert difference < 1, form
        silent = ours(model, "ddim", "", LoraUse(form, path, strength, text_strength=0.0))
        assert np.abs(silent - expected).mean() > 2, "the text encoders' part tells"
        pipe.unload_lora_weights()
    assert not [record for record in caplog.records if "keys" in record.getMessage()]
