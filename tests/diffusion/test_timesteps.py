"""Timesteps come from the range and the distribution that were asked for, and stay spread evenly within a step."""

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lora.config import LossTable
from diffusion_lora.diffusion.timesteps import draw_timesteps
from diffusion_lora.errors import ConfigError


def drawn(count: int = 8, steps: int = 2000, **settings: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    table = LossTable(**settings)
    return torch.stack([draw_timesteps(table, count, 1000, generator) for _ in range(steps)])


def test_uniform_ones_cover_the_range_in_every_batch_and_each_is_uniform() -> None:
    batches = drawn()
    assert ((batches >= 0) & (batches < 1000)).all()
    gaps = batches.sort(dim=1).values.diff(dim=1)
    assert gaps.min() >= 124
    assert gaps.max() <= 126
    first = batches[:, 0].float()
    assert abs(first.mean() - 499.5) < 20
    assert abs(first.std() - 288.7) < 10


@pytest.mark.parametrize("kind", ["uniform", "logit-normal", "early", "late"])
def test_a_range_holds_for_every_distribution_and_is_used_to_its_ends(kind: str) -> None:
    seen = drawn(timesteps=kind, min_timestep=200, max_timestep=300)
    assert seen.min() == (204 if kind == "logit-normal" else 200) or seen.min() < 210
    assert seen.min() >= 200
    assert 290 <= seen.max() < 300


def test_the_distributions_are_what_they_say() -> None:
    """Against their means and quantiles in closed form."""
    late, early = (drawn(timesteps=kind).float() / 1000 for kind in ("late", "early"))
    assert late.mean().item() == pytest.approx(2 / 3, abs=0.01)
    assert early.mean().item() == pytest.approx(1 / 3, abs=0.01)
    assert (drawn(timesteps="late", timestep_bias=4.0).float() / 1000).mean().item() == pytest.approx(5 / 6, abs=0.01)
    normal = torch.logit((drawn(timesteps="logit-normal", logit_mean=0.5, logit_std=0.8).double() + 0.5) / 1000)
    assert normal.mean().item() == pytest.approx(0.5, abs=0.02)
    assert normal.std().item() == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("settings", [{"min_timestep": 300, "max_timestep": 300}, {"max_timestep": 1001}])
def test_a_range_without_timesteps_is_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="leave no timestep: the base has 0 to 999"):
        drawn(steps=1, **settings)
