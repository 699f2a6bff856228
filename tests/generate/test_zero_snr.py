"""A base whose schedule ends in pure noise is drawn by that schedule, whatever the sampler."""

import pytest
import torch

from diffusion_lora.diffusion.schedule import NoiseSchedule
from diffusion_lora.families.family import Model
from diffusion_lora.generate.passes import scheduler_of
from diffusion_lora.generate.samplers import SAMPLERS, sampler_named


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_has_the_bases_schedule(model: Model, sampler: str) -> None:
    """Some of diffusers' schedulers cannot rescale by themselves, and take no notice of being told to."""
    config = model.scheduler_config | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    wanted = NoiseSchedule.from_config(config).alphas_cumprod
    scheduler = scheduler_of(sampler_named(sampler), config, 10)
    torch.testing.assert_close(scheduler.alphas_cumprod, wanted, rtol=1e-3, atol=1e-6)
    plain = scheduler_of(sampler_named(sampler), model.scheduler_config, 10).alphas_cumprod
    assert plain[-1] > 100 * scheduler.alphas_cumprod[-1]
