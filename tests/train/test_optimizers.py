"""Every optimizer learns at its segments' rates and goes on from a state bit for bit; a missing one is refused."""

import sys
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from diffusion_lora.config import OptimizerTable, parse_train_config
from diffusion_lora.errors import ConfigError
from diffusion_lora.train.optimizers import Optimizer, build_optimizer
from diffusion_lora.train.rates import rate_factor, rests

NAMES = get_args(OptimizerTable.model_fields["name"].annotation)


def table(name: str = "adamw8bit", **settings: Any) -> OptimizerTable:
    """One with which each of them moves by a visible amount."""
    given: dict[str, Any] = {"lr": 1e-2, "text_lr": 1e-3, "weight_decay": 0.0, "schedule": "constant"}
    if name == "prodigy":
        given |= {"lr": 1.0, "text_lr": 1.0}
    return OptimizerTable(name=name, **(given | settings))


class Bowl:
    """Two flat segments of two matrices each, and the gradient towards a point: a function of where they stand."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.segments = {name: nn.Parameter(torch.zeros(4096)) for name in ("unet", "te")}
        self.matrices: dict[str, tuple[Tensor, ...]] = {}
        self.goals = {name: torch.randn(4096, generator=generator) for name in self.segments}
        for name, segment in self.segments.items():
            segment.grad = torch.zeros_like(segment)
            halves = []
            for part in (slice(0, 2048), slice(2048, 4096)):
                half = segment.detach()[part].view(32, 64).requires_grad_()
                half.grad = segment.grad[part].view(32, 64)
                halves.append(half)
            self.matrices[name] = tuple(halves)

    def learn(self, optimizer: Optimizer, steps: range, of: int = 100) -> None:
        for step in steps:
            optimizer.set_rates(step, of)
            for name, segment in self.segments.items():
                assert segment.grad is not None
                segment.grad.copy_(segment.detach() - self.goals[name])
            optimizer.step()

    def built(self, settings: OptimizerTable) -> Optimizer:
        return build_optimizer(settings, self.segments, self.matrices)[0]


def test_the_rates_follow_their_schedules_after_the_warm_up() -> None:
    def course(steps: int = 100, **settings: Any) -> list[float]:
        return [rate_factor(OptimizerTable(**settings), step, steps) for step in range(steps)]

    cosine = course(104, schedule="cosine", warmup_steps=4)
    assert cosine[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert cosine[54] == pytest.approx(0.5)
    assert 0 < cosine[-1] < 0.001
    assert course(9, schedule="constant") == [1.0] * 9
    assert rate_factor(OptimizerTable(warmup_steps=50), 3, 4) == pytest.approx(4 / 51)

    restarts = course(schedule="cosine-restarts", cycles=4)
    assert [step for step in range(100) if restarts[step] == 1.0] == [0, 25, 50, 75]
    assert restarts[:25] == pytest.approx(restarts[75:])
    assert course(schedule="linear")[::25] == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert course(schedule="polynomial", power=3.0)[::25] == pytest.approx([1.0, 0.75**3, 0.5**3, 0.25**3])


@pytest.mark.parametrize("name", ["adamw8bit", "adamw", "lion8bit", "adafactor", "schedule-free"])
def test_each_component_moves_at_its_own_rate_and_not_at_all_at_zero(name: str) -> None:
    """Their first step is the rate itself, whatever the gradient."""
    bowl = Bowl()
    optimizer = bowl.built(table(name))
    optimizer.set_rates(0, 1)
    for group in optimizer.param_groups:
        group["lr"] *= 0.5
    for segment in bowl.segments.values():
        segment.grad.fill_(1.0)  # type: ignore[union-attr]
    optimizer.step()
    with optimizer.averaged():
        moved = {component: -segment.mean().item() for component, segment in bowl.segments.items()}
    assert moved == pytest.approx({"unet": 5e-3, "te": 5e-4}, rel=1e-2)

    frozen = Bowl()
    optimizer = frozen.built(table(name, text_lr=0.0))
    frozen.learn(optimizer, range(2))
    assert (frozen.segments["te"] == 0).all()
    assert (frozen.segments["unet"] != 0).any()


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_comes_near_and_goes_on_bit_for_bit(name: str) -> None:
    """5 + 5 steps, the second five from a saved state, are 10: moments, found rates, averages and all."""
    settings = table(name, ema_decay=0.5, warmup_steps=3, text_stop_step=7)
    whole = Bowl()
    optimizer = whole.built(settings)
    start = sum((segment.detach() - whole.goals[key]).norm().item() for key, segment in whole.segments.items())
    whole.learn(optimizer, range(10))
    end = sum((segment.detach() - whole.goals[key]).norm().item() for key, segment in whole.segments.items())
    assert end < start

    first, second = Bowl(), Bowl()
    early, late = first.built(settings), second.built(settings)
    first.learn(early, range(5))
    with early.averaged():  # a preview: it leaves no trace
        assert not torch.equal(first.segments["unet"], whole.segments["unet"])
    for key, segment in first.segments.items():
        second.segments[key].data.copy_(segment.data)
    late.load_state_dict(early.state_dict())
    second.learn(late, range(5, 10))
    for key, segment in whole.segments.items():
        assert torch.equal(second.segments[key], segment), key
    with optimizer.averaged(), late.averaged():
        assert torch.equal(second.segments["unet"], whole.segments["unet"])


def test_a_text_encoder_rests_from_its_stop_step_on_whatever_the_optimizer_would_still_do() -> None:
    """Momentum, weight decay and schedule-free's average would all move it at a rate of 0 or above."""
    assert not rests(OptimizerTable(), "te", 10**6)
    for name in NAMES:
        bowl = Bowl()
        optimizer = bowl.built(table(name, text_stop_step=3, weight_decay=0.1))
        bowl.learn(optimizer, range(3))
        kept = {key: segment.detach().clone() for key, segment in bowl.segments.items()}
        bowl.learn(optimizer, range(3, 5))
        assert torch.equal(bowl.segments["te"], kept["te"]), name
        assert not torch.equal(bowl.segments["unet"], kept["unet"]), name
        assert optimizer.rates()["te"] == 0, name


def test_the_moving_average_is_shown_and_taken_away_again() -> None:
    bowl = Bowl()
    optimizer = bowl.built(table("adamw", ema_decay=0.5))
    bowl.learn(optimizer, range(1))
    one = bowl.segments["unet"].detach().clone()
    bowl.learn(optimizer, range(1, 2))
    two = bowl.segments["unet"].detach().clone()
    with optimizer.averaged():
        first = one * (1 - 2 / 11)
        torch.testing.assert_close(bowl.segments["unet"].detach(), first * 0.25 + two * 0.75)
    assert torch.equal(bowl.segments["unet"], two)


def test_schedule_free_keeps_its_average_and_trains_on_elsewhere() -> None:
    bowl = Bowl()
    optimizer = bowl.built(table("schedule-free"))
    bowl.learn(optimizer, range(6))
    here = bowl.segments["unet"].detach().clone()
    with optimizer.averaged():
        assert not torch.equal(bowl.segments["unet"], here)
    assert torch.equal(bowl.segments["unet"], here)


def test_adafactor_keeps_rows_and_columns_of_the_matrices_only() -> None:
    bowl = Bowl()
    optimizer = bowl.built(table("adafactor"))
    bowl.learn(optimizer, range(1))
    states = [values for part in optimizer.parts.values() for values in part.state.values()]
    numbers = sum(entry.numel() for values in states for entry in values.values() if isinstance(entry, Tensor))
    assert 4 * (32 + 64) <= numbers < 500  # of 8192


def test_prodigy_finds_a_rate_for_each_segment() -> None:
    bowl = Bowl()
    bowl.goals["te"] = bowl.goals["te"] * 100
    optimizer = bowl.built(table("prodigy"))
    bowl.learn(optimizer, range(100))
    rates = optimizer.rates()
    assert rates["unet"] > 1e-4
    assert rates["te"] > 3 * rates["unet"]


def test_paged_state_is_the_same_as_8_bit_state_where_nothing_can_be_paged() -> None:
    ours, theirs = Bowl(), Bowl()
    optimizer, note = build_optimizer(table("paged-adamw8bit"), ours.segments)
    assert note == "paged memory is CUDA's: on cpu paged-adamw8bit is adamw8bit"
    ours.learn(optimizer, range(3))
    theirs.learn(theirs.built(table("adamw8bit")), range(3))
    assert torch.equal(ours.segments["unet"], theirs.segments["unet"])


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)


def test_without_bitsandbytes_adamw_takes_over_and_says_so_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "bitsandbytes")
    optimizer, note = build_optimizer(OptimizerTable(), Bowl().segments)
    assert optimizer.name == "torch.optim.adamw.AdamW"
    assert note is not None
    assert note.startswith("bitsandbytes does not serve here (")
    assert note.endswith("AdamW with 32-bit state takes over from 8-bit AdamW")
    assert "\n" not in note


@pytest.mark.parametrize(
    ("name", "package"), [("lion8bit", "bitsandbytes"), ("prodigy", "prodigyopt"), ("schedule-free", "schedulefree")]
)
def test_a_missing_library_is_named_with_the_command_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    without(monkeypatch, package)
    with pytest.raises(ConfigError, match=f"pip install {package}"):
        build_optimizer(table(name), Bowl().segments)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (("name=prodigy",), "optimizer.lr = 0.0001 is a factor for prodigy, which finds the rate itself"),
        (("name=prodigy", "lr=1"), "optimizer.text_lr = 5e-05 is a factor"),
        (("name=prodigy", "lr=1", "text_lr=0", "lora_plus=4"), "set optimizer.lora_plus = 1"),
        (("name=schedule-free",), 'takes the place of optimizer.schedule = "cosine": set it to "constant"'),
        (("name=schedule-free", "schedule=constant", "betas=[0, 0.9]"), "set the first above 0"),
    ],
)
def test_settings_that_an_optimizer_cannot_follow_are_refused(settings: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_train_config(
            "[dataset]\npath = 'x'", source="my.toml", overrides=[f"optimizer.{setting}" for setting in settings]
        )
    assert sentence in str(caught.value)
