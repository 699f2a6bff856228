"""Rates follow their course, each component its own, and a missing bitsandbytes is told and replaced."""

import sys

import pytest
import torch
from torch import nn

from diffusion_lora.config import OptimizerTable
from diffusion_lora.train.optimizers import build_optimizer, rate_factor, set_rates


def segments() -> dict[str, nn.Parameter]:
    parameters = {name: nn.Parameter(torch.ones(4096)) for name in ("unet", "te")}
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    return parameters


def test_rates_warm_up_then_fall_by_half_a_cosine_or_stay() -> None:
    cosine = OptimizerTable(schedule="cosine", warmup_steps=4)
    factors = [rate_factor(cosine, step, 104) for step in range(104)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[54] == pytest.approx(0.5)
    assert 0 < factors[-1] < 0.001
    assert [rate_factor(OptimizerTable(schedule="constant"), step, 9) for step in range(9)] == [1.0] * 9
    assert rate_factor(OptimizerTable(warmup_steps=50), 3, 4) == pytest.approx(4 / 51)


@pytest.mark.parametrize("name", ["adamw8bit", "adamw"])
def test_each_component_moves_at_its_own_rate_and_not_at_all_at_zero(name: str) -> None:
    """Adam's first step is the rate itself, whatever the gradient."""
    table = OptimizerTable(name=name, lr=1e-2, text_lr=1e-3, weight_decay=0.0)
    parameters = segments()
    optimizer, note = build_optimizer(table, parameters)
    assert note is None
    set_rates(optimizer, 0.5)
    optimizer.step()
    moved = {component: 1 - parameter.mean().item() for component, parameter in parameters.items()}
    assert moved == pytest.approx({"unet": 5e-3, "te": 5e-4}, rel=1e-2)

    frozen = segments()
    optimizer, _ = build_optimizer(OptimizerTable(name=name, text_lr=0.0), frozen)
    optimizer.step()
    assert (frozen["te"] == 1).all()
    assert (frozen["unet"] < 1).all()


def test_without_bitsandbytes_adamw_takes_over_and_says_so_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "bitsandbytes"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    optimizer, note = build_optimizer(OptimizerTable(), segments())
    assert type(optimizer) is torch.optim.AdamW
    assert note is not None
    assert note.startswith("bitsandbytes does not serve here (")
    assert note.endswith("AdamW with 32-bit state takes over from 8-bit AdamW")
    assert "\n" not in note
