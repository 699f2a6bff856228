"""The team that trains pocket: how many processes it has, or where it was stopped, must not change what it computes."""

from pathlib import Path

import torch
from torch import Tensor, nn

from recipes.pocket import team


class LineTask:
    """Fit y = 3x - 1 with one hidden layer; batch n depends on n alone."""

    outer = ("out",)
    frozen: tuple[str, ...] = ("still",)

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module: nn.Module = nn.ModuleDict(
            {"still": nn.Linear(4, 4), "hidden": nn.Linear(1, 8), "out": nn.Linear(8, 1)}
        )

    def loss(self, step: int, rank: int, size: int) -> Tensor:
        x = torch.randn(32, 1, generator=torch.Generator().manual_seed(step))[rank::size]
        guess = self.module["out"](torch.tanh(self.module["hidden"](x)))  # type: ignore[index]
        return (guess - (3 * x - 1)).square().mean()

    def report(self, average: nn.Module, step: int) -> None:
        pass

    def extra(self) -> dict[str, float]:
        return {"scaling_factor": 0.5}


def flat_lr(step: int, steps: int) -> float:
    return 0.02


def plan(state: Path, steps: int, size: int = 1) -> team.Plan:
    return team.Plan(state, steps, flat_lr, 0.9, size, "cpu")


def state(folder: Path) -> dict[str, Tensor]:
    saved = torch.load(folder / "state.pt", weights_only=True)
    return {name: saved[name] for name in ("weights", "average", "first", "second")}


def test_a_team_stopped_and_gone_on_with_equals_one_that_never_stopped(tmp_path: Path) -> None:
    team.train(LineTask, plan(tmp_path / "whole", 6))
    team.train(LineTask, plan(tmp_path / "parts", 2))
    team.train(LineTask, plan(tmp_path / "parts", 6))
    for name, tensor in state(tmp_path / "whole").items():
        assert torch.equal(tensor, state(tmp_path / "parts")[name]), name


def test_two_processes_compute_what_one_computes(tmp_path: Path) -> None:
    team.train(LineTask, plan(tmp_path / "one", 4))
    team.train(LineTask, plan(tmp_path / "two", 4, size=2))
    one, two = state(tmp_path / "one")["weights"], state(tmp_path / "two")["weights"]
    torch.testing.assert_close(two, one, atol=1e-3, rtol=0)


def test_a_team_learns_and_leaves_frozen_parts_alone(tmp_path: Path) -> None:
    fresh = LineTask()
    team.train(LineTask, plan(tmp_path, 150))
    trained = LineTask()
    assert team.load_average(trained.module, tmp_path) == {"scaling_factor": 0.5}
    assert trained.loss(1000, 0, 1).item() < 0.1 * fresh.loss(1000, 0, 1).item()
    for before, after in zip(fresh.module["still"].parameters(), trained.module["still"].parameters()):  # type: ignore[index]
        assert torch.equal(before, after)


def test_orthogonalise_makes_singular_values_alike() -> None:
    matrix = torch.randn(12, 40, generator=torch.Generator().manual_seed(1)) @ torch.diag(torch.logspace(-1, 1, 40))
    values = torch.linalg.svdvals(team.orthogonalise(matrix))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_convolution_weights_keep_their_values_and_lie_channels_last(tmp_path: Path) -> None:
    module = nn.Conv2d(3, 5, 3)
    kept = module.weight.detach().clone()
    (weight, bias), flat = team.slots_of(module), torch.zeros(5 * 27 + 5)
    weight.of(flat).copy_(kept)
    bias.of(flat).copy_(module.bias.detach())
    team.tied(module, [weight, bias], flat)
    assert torch.equal(module.weight, kept)
    assert module.weight.is_contiguous(memory_format=torch.channels_last)
