"""Schedule, objective and preview sampler against diffusers' own, and against what the papers promise."""

import pytest
import torch
from torch import Tensor

from diffusion_lora.diffusion.objective import denoising_loss, min_snr_weights, stratified_timesteps, target
from diffusion_lora.diffusion.sampler import ddim
from diffusion_lora.diffusion.schedule import NoiseSchedule
from diffusion_lora.errors import BaseModelError

CONFIGS = [
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "epsilon"},
    {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, "prediction_type": "v_prediction"},
    {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 100, "prediction_type": "epsilon"},
    {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
    },
    {"trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3, "prediction_type": "epsilon"},
]


@pytest.mark.parametrize("config", CONFIGS)
def test_noise_and_target_are_those_of_diffusers(config: dict) -> None:
    from diffusers import DDPMScheduler

    theirs, ours = DDPMScheduler(**config), NoiseSchedule.from_config(config)
    x0_BCHW, noise_BCHW = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    timesteps_B = torch.tensor([0, ours.timesteps // 2, ours.timesteps - 1])
    assert torch.allclose(ours.alphas_cumprod, theirs.alphas_cumprod, atol=1e-6)
    assert torch.allclose(
        ours.add_noise(x0_BCHW, noise_BCHW, timesteps_B), theirs.add_noise(x0_BCHW, noise_BCHW, timesteps_B), atol=1e-5
    )
    velocity = theirs.get_velocity(x0_BCHW, noise_BCHW, timesteps_B)
    wanted = velocity if ours.prediction == "v_prediction" else noise_BCHW
    assert torch.allclose(target(ours, x0_BCHW, noise_BCHW, timesteps_B), wanted, atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS)
def test_min_snr_weights_the_same_error_of_x0_alike_in_both_predictions(config: dict) -> None:
    """Hang et al.: in terms of x0 the weight is min(SNR, gamma); the predictions differ by SNR and SNR + 1."""
    schedule = NoiseSchedule.from_config(config)
    timesteps_B = torch.arange(schedule.timesteps)
    snr = schedule.snr(timesteps_B)
    weights = min_snr_weights(schedule, timesteps_B, 5.0)
    per_x0 = weights * (snr if schedule.prediction == "epsilon" else snr + 1)
    assert weights.isfinite().all()
    assert torch.allclose(per_x0, snr.clamp(max=5.0), rtol=1e-4)


def test_an_unknown_schedule_or_prediction_is_told() -> None:
    with pytest.raises(BaseModelError, match="beta_schedule 'sigmoid' is not known"):
        NoiseSchedule.from_config({"beta_schedule": "sigmoid"})
    with pytest.raises(BaseModelError, match="predicts 'sample'"):
        NoiseSchedule.from_config({"prediction_type": "sample"})


def test_the_loss_is_the_weighted_mean_over_pictures_in_fp32() -> None:
    prediction = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 4, 3, 3)
    wanted = torch.zeros(2, 4, 3, 3)
    assert denoising_loss(prediction, wanted).item() == 0.5
    assert denoising_loss(prediction.bfloat16(), wanted, torch.tensor([1.0, 0.5])).dtype == torch.float32
    assert denoising_loss(prediction, wanted, torch.tensor([1.0, 0.5])).item() == 0.25


def test_stratified_timesteps_cover_the_range_in_every_batch_and_each_is_uniform() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = torch.stack([stratified_timesteps(8, 1000, generator) for _ in range(2000)])
    assert ((batches >= 0) & (batches < 1000)).all()
    gaps = batches.sort(dim=1).values.diff(dim=1)
    assert gaps.min() >= 124
    assert gaps.max() <= 126
    first = batches[:, 0].float()
    assert abs(first.mean() - 499.5) < 20
    assert abs(first.std() - 288.7) < 10


@pytest.mark.parametrize("config", CONFIGS[:2] + CONFIGS[3:4])
def test_ddim_follows_a_perfect_predictor_to_the_picture(config: dict) -> None:
    """Whatever the number of steps: with the true answer at every step, x0 comes out."""
    schedule = NoiseSchedule.from_config(config)
    x0_BCHW, noise_BCHW = torch.randn(2, 2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    seen: list[int] = []

    def perfect(x_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        seen.append(int(timesteps_B[0]))
        signal, sigma = schedule.coefficients(timesteps_B)
        noise = (x_BCHW - signal * x0_BCHW) / sigma
        return target(schedule, x0_BCHW, noise, timesteps_B)

    start = schedule.add_noise(x0_BCHW, noise_BCHW, torch.full((2,), schedule.timesteps - 1))
    drawn = ddim(perfect, start, schedule, 7)
    assert seen[0] == schedule.timesteps - 1
    assert len(seen) == 7
    assert torch.allclose(drawn, x0_BCHW, atol=1e-3)
