"""Schedule, objective and preview sampler against diffusers' own, and against what the papers promise."""

import pytest
import torch
from torch import Tensor

from diffusion_lora.config import LossTable
from diffusion_lora.diffusion.objective import debiased_weights, min_snr_weights, picture_losses, target
from diffusion_lora.diffusion.sampler import ddim
from diffusion_lora.diffusion.schedule import NoiseSchedule
from diffusion_lora.errors import BaseModelError, ConfigError

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


@pytest.mark.parametrize("config", CONFIGS)
def test_debiased_estimation_weighs_the_same_error_of_x0_alike_in_both_predictions(config: dict) -> None:
    """Yu et al.: 1 / sqrt(SNR) on epsilon, which is sqrt(SNR) in terms of x0; SNR counts at most as 1000."""
    schedule = NoiseSchedule.from_config(config)
    timesteps_B = torch.arange(schedule.timesteps)[schedule.snr(torch.arange(schedule.timesteps)) < 1000]
    snr = schedule.snr(timesteps_B).clamp(min=1e-8)
    weights = debiased_weights(schedule, timesteps_B)
    per_x0 = weights * (snr if schedule.prediction == "epsilon" else snr + 1)
    assert debiased_weights(schedule, torch.arange(schedule.timesteps)).isfinite().all()
    assert torch.allclose(per_x0, snr.sqrt(), rtol=1e-4)


def test_zero_terminal_snr_ends_in_noise_and_is_refused_where_epsilon_is_predicted() -> None:
    from diffusers import DDPMScheduler

    epsilon, velocity = (NoiseSchedule.from_config(config) for config in CONFIGS[:2])
    ours = velocity.ending_in_noise()
    theirs = DDPMScheduler(**CONFIGS[1], rescale_betas_zero_snr=True)
    assert ours.snr(torch.tensor([999])) == 0
    assert velocity.snr(torch.tensor([999])) > 0
    assert torch.allclose(ours.alphas_cumprod, theirs.alphas_cumprod, atol=1e-6)
    with pytest.raises(ConfigError, match=r"loss\.zero_terminal_snr needs a base that predicts v"):
        epsilon.ending_in_noise()


def test_an_unknown_schedule_or_prediction_is_told() -> None:
    with pytest.raises(BaseModelError, match="beta_schedule 'sigmoid' is not known"):
        NoiseSchedule.from_config({"beta_schedule": "sigmoid"})
    with pytest.raises(BaseModelError, match="predicts 'sample'"):
        NoiseSchedule.from_config({"prediction_type": "sample"})


def losses_of(errors: Tensor, timesteps: list[int], **settings: object) -> Tensor:
    """The losses of predictions of epsilon that are wrong by these numbers, a picture each."""
    schedule = NoiseSchedule.from_config(CONFIGS[0])
    noise = torch.randn(len(errors), 4, 3, 3, generator=torch.Generator().manual_seed(0))
    off = errors.view(-1, 1, 1, 1).expand_as(noise)
    table = LossTable(**({"min_snr_gamma": 0.0} | settings))
    return picture_losses(table, schedule, noise + off, torch.zeros_like(noise), noise, torch.tensor(timesteps))


def test_the_loss_is_the_weighted_mean_of_squares_of_each_picture_in_fp32() -> None:
    schedule = NoiseSchedule.from_config(CONFIGS[0])
    errors, timesteps = torch.tensor([0.0, 1.0, 2.0]), [10, 500, 990]
    plain = losses_of(errors, timesteps)
    torch.testing.assert_close(plain, torch.tensor([0.0, 1.0, 4.0]))
    weights = min_snr_weights(schedule, torch.tensor(timesteps), 5.0)
    torch.testing.assert_close(losses_of(errors, timesteps, min_snr_gamma=5.0), plain * weights)
    weights = debiased_weights(schedule, torch.tensor(timesteps))
    torch.testing.assert_close(losses_of(errors, timesteps, debiased=True), plain * weights)

    noise = torch.randn(2, 4, 3, 3)
    half = picture_losses(LossTable(), schedule, noise.bfloat16(), noise, noise, torch.tensor([1, 2]))
    assert half.dtype == torch.float32


def test_huber_is_the_square_of_small_errors_and_the_size_of_large_ones() -> None:
    """The width of the change falls from 1 at the picture to `huber_c` at noise, unless it is constant."""
    small, large = losses_of(torch.tensor([1e-3, 100.0]), [500, 500], kind="huber", huber_schedule="constant").tolist()
    assert small == pytest.approx(1e-6, rel=1e-3)
    assert large == pytest.approx(2 * 0.1 * 100, rel=1e-2)
    for schedule, late in (("snr", 0.104), ("exponential", 0.1)):
        ends = losses_of(torch.tensor([100.0, 100.0]), [0, 999], kind="huber", huber_schedule=schedule)
        assert ends.tolist() == pytest.approx([2 * 100, 2 * late * 100], rel=0.06), schedule


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
