"""Our engine and diffusers' own pipeline draw the same picture, from the same folder and from the same adapter file."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_lora.families.family import Model, encode_image
from diffusion_lora.generate.engine import Engine
from diffusion_lora.generate.request import LoraUse, Request
from diffusion_lora.generate.samplers import SAMPLERS, sampler_named
from diffusion_lora.generate.start import Start

PROMPT, NEGATIVE = "a red cat on a sky background", "a blue car"
STEPS, SEED, GUIDANCE = 4, 7, 5.0


@pytest.fixture(scope="module")
def pipe(model: Model) -> Any:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(model.folder, dtype=torch.float32, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw_with_diffusers(pipe: Any, scheduler_config: Mapping[str, Any], sampler: str, side: int = 128) -> np.ndarray:
    import diffusers

    row = sampler_named(sampler)
    pipe.scheduler = getattr(diffusers, row.scheduler_class).from_config(scheduler_config, **row.options)
    if hasattr(pipe.scheduler, "noise_sampler_seed"):
        pipe.scheduler.noise_sampler_seed = SEED
    out = pipe(
        PROMPT,
        negative_prompt=NEGATIVE,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        width=side,
        height=side,
        generator=torch.Generator("cpu").manual_seed(SEED),
    )
    return np.asarray(out.images[0]).astype(int)


def own_config(model: Model) -> Mapping[str, Any]:
    """The base's noise schedule as diffusers itself reads it."""
    import diffusers

    return diffusers.DDIMScheduler.from_pretrained(model.folder, subfolder="scheduler").config


def request(sampler: str, *loras: LoraUse) -> Request:
    return Request(PROMPT, NEGATIVE, SEED, STEPS, GUIDANCE, sampler=sampler, loras=loras)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_base_alone_draws_the_same_picture(pipe: Any, model: Model, engine: Engine, sampler: str) -> None:
    """The mean must stay below one of 255 steps; it is a hundredth of that, so that more would be a change."""
    theirs = draw_with_diffusers(pipe, own_config(model), sampler, side=64)
    ours = np.asarray(engine.draw([replace(request(sampler), width=64, height=64)])[0].image).astype(int)
    assert ours.shape == theirs.shape == (64, 64, 3)
    assert np.abs(ours - theirs).mean() < 0.01
    assert np.abs(ours - theirs).max() <= 2


@pytest.mark.parametrize("sampler", ["ddim", "euler", "euler_a", "dpm++_2m", "dpm++_2m_sde", "heun", "unipc"])
def test_a_picture_to_start_from_gives_what_their_pipeline_gives(
    pipe: Any, model: Model, engine: Engine, sampler: str, tmp_path: Path
) -> None:
    """Their pipeline draws its latents from the encoder's distribution; given the mean, as ours has it, they agree."""
    import diffusers

    path = tmp_path / "start.png"
    (drawn,) = engine.draw([Request("a yellow star", seed=5, steps=4, width=64, height=64)])
    drawn.image.save(path)
    x_HWC = torch.from_numpy(np.asarray(drawn.image, np.float32) / 127.5 - 1)
    mean, _ = encode_image(model, x_HWC.permute(2, 0, 1)[None])
    row = sampler_named(sampler)
    theirs = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = getattr(diffusers, row.scheduler_class).from_config(own_config(model), **row.options)
    out = theirs(
        PROMPT, image=mean, strength=0.5, negative_prompt=NEGATIVE, num_inference_steps=6, guidance_scale=GUIDANCE,
        generator=torch.Generator("cpu").manual_seed(SEED),
    )  # fmt: skip
    ours = engine.draw([replace(request(sampler), steps=6, width=64, height=64, start=Start(path, 0.5))])[0].image
    assert np.abs(np.asarray(ours).astype(int) - np.asarray(out.images[0]).astype(int)).mean() < 0.05


def test_diffusers_own_size_is_ours(pipe: Any, model: Model, engine: Engine) -> None:
    ours = np.asarray(engine.draw([request("ddim")])[0].image).astype(int)
    assert np.abs(ours - draw_with_diffusers(pipe, own_config(model), "ddim")).max() <= 2


def test_a_base_that_predicts_velocity_draws_the_same_picture(pipe: Any, model: Model, engine: Engine) -> None:
    """Stable Diffusion 2's 768 px base: its scheduler config alone says how the prediction is meant."""
    import diffusers

    engine.close()
    config = model.scheduler_config | {"prediction_type": "v_prediction"}
    other = Engine(replace(model, scheduler_config=config))
    ours = np.asarray(other.draw([request("euler")])[0].image).astype(int)
    theirs = draw_with_diffusers(pipe, diffusers.DDIMScheduler.from_config(config).config, "euler")
    assert np.abs(ours - theirs).max() <= 2


def test_our_adapter_file_loaded_by_diffusers_draws_the_same_picture(
    pipe: Any, model: Model, engine: Engine, style: LoraUse
) -> None:
    pytest.importorskip("peft")
    base = draw_with_diffusers(pipe, own_config(model), "ddim")
    pipe.load_lora_weights(style.path, adapter_name="style")
    assert pipe.get_list_adapters() == {"unet": ["style"], "text_encoder": ["style"]}
    for strength in (1.0, 0.6):
        pipe.set_adapters(["style"], [strength])
        theirs = draw_with_diffusers(pipe, own_config(model), "ddim")
        ours = np.asarray(engine.draw([request("ddim", style.at(strength))])[0].image).astype(int)
        change = np.abs(theirs - base).mean()
        assert change > 1, "the adapter does change the picture"
        assert np.abs(ours - theirs).mean() < min(1, change / 20)
    pipe.unload_lora_weights()


def test_the_pipeline_knows_the_folder_without_us(pipe: Any, model: Model) -> None:
    assert pipe.vae_scale_factor == model.vae_factor
    assert pipe.unet.config.sample_size * pipe.vae_scale_factor == model.size_px
