"""Ranks cut while training: to where they are needed, within the budget, and the same when a training goes on."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffusion_lora.lora.adapter import read_adapter, write_adapter
from diffusion_lora.lora.adaptive import Span, _importance
from diffusion_lora.lora.bank import AdapterBank
from diffusion_lora.lora.trainable import Recipe, TrainableAdapter

WIDTH, STEPS = 32, 200
NEEDED = {"down_blocks.0.attentions.0.proj_in": 1, "mid_block.attentions.0.proj_in": 6}
"""The rank of what each layer has to learn; the energy of both is the same."""


class Net(nn.Module):
    """Two layers where a UNet has them, and what they ought to be."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.wanted: dict[str, Tensor] = {}
        for path, rank in NEEDED.items():
            parent: nn.Module = self
            *names, last = path.split(".")
            for name in names:
                if name not in dict(parent.named_children()):
                    parent.add_module(name, nn.Module())
                parent = parent.get_submodule(name)
            layer = nn.Linear(WIDTH, WIDTH, bias=False)
            parent.add_module(last, layer)
            layer.weight.data = torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5
            bases = [torch.linalg.qr(torch.randn(WIDTH, rank, generator=generator))[0] for _ in range(2)]
            self.wanted[path] = layer.weight.data + 2.0 / rank**0.5 * bases[0] @ bases[1].T

    def loss(self, step: int) -> Tensor:
        x = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(100 + step))
        return sum(
            ((self.get_submodule(path)(x) - x @ wanted.T).square().mean() for path, wanted in self.wanted.items()),
            start=torch.zeros(()),
        )


def start(**options: object) -> tuple[Net, AdapterBank, TrainableAdapter, torch.optim.Optimizer]:
    net = Net()
    bank = AdapterBank({"unet": net}, "a net")
    recipe = Recipe(**{"adaptive_rank": 8, "span": Span(0.2, 0.7)} | options)  # type: ignore[arg-type]
    trained = bank.add_trainable("a", 4, 4.0, [""], "none", recipe=recipe)
    return net, bank, trained, torch.optim.Adam(trained.segments.values(), lr=1e-2)


def train(
    net: Net, trained: TrainableAdapter, optimizer: torch.optim.Optimizer, begin: int = 0, end: int = STEPS
) -> list[int]:
    totals = []
    for step in range(begin, end):
        trained.zero_grad()
        net.loss(step).backward()
        if cut := trained.adapt(step, STEPS):
            totals.append(cut["total"])
        optimizer.step()
    return totals


@pytest.mark.parametrize("rs", [False, True])
def test_the_budget_goes_where_rank_is_needed_into_an_ordinary_file(tmp_path: Path, rs: bool) -> None:
    """A rank the same everywhere would leave two thirds of the second layer's need unmet, at the same size."""
    net, bank, trained, optimizer = start(rs=rs)
    before = net.loss(0).item()
    totals = train(net, trained, optimizer)
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] == 8
    after = net.loss(0).item()
    assert after < 0.02 * before
    layers = bank.export("a").layers
    ranks = {path: layers["unet." + path.replace(".", "_")].rank for path in NEEDED}
    assert ranks == {path: pytest.approx(rank, abs=1) for path, rank in NEEDED.items()}

    write_adapter(bank.export("a"), tmp_path / "a.safetensors", "fp32")
    read = read_adapter(tmp_path / "a.safetensors")
    assert {layer.rank for layer in read.layers.values()} == set(ranks.values())
    other = Net()
    loaded = AdapterBank({"unet": other}, "a net")
    loaded.load("a", read)
    with loaded.mix({"a": 1.0}):
        assert other.loss(0).item() == pytest.approx(after, rel=1e-3)


def test_until_the_first_cut_it_is_the_plain_lora_of_the_higher_rank() -> None:
    """At the scale of the rank in the end: the option must not be another learning rate."""
    net, _, trained, optimizer = start()
    train(net, trained, optimizer, end=40)
    plain_net = Net()
    plain = AdapterBank({"unet": plain_net}, "a net").add_trainable("a", 8, 8.0, [""], "none")
    plain_optimizer = torch.optim.Adam(plain.segments.values(), lr=1e-2)
    train(plain_net, plain, plain_optimizer, end=40)
    assert torch.equal(trained.segments["unet"], plain.segments["unet"])
    assert {layer.scale for layer in trained.layers.values()} == {1.0}


@pytest.mark.parametrize("pause", [30, 80, 150], ids=lambda step: f"after {step}")
def test_going_on_gives_the_numbers_of_an_undisturbed_training(pause: int, tmp_path: Path) -> None:
    """Also from within the steps that a cut listens to, whose gradients are nowhere else."""
    net, bank, trained, optimizer = start()
    train(net, trained, optimizer)
    first_net, _, first, first_optimizer = start()
    train(first_net, first, first_optimizer, end=pause)
    torch.save(
        {"ranks": first.state(), "segment": first.segments["unet"].detach(), "adam": first_optimizer.state_dict()},
        tmp_path / "state.pt",
    )

    second_net, second_bank, second, second_optimizer = start()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    second.segments["unet"].data.copy_(state["segment"])
    second_optimizer.load_state_dict(state["adam"])
    second.load_state(state["ranks"])
    train(second_net, second, second_optimizer, begin=pause)
    assert torch.equal(second.segments["unet"], trained.segments["unet"])
    assert second_bank.export("a").allclose(bank.export("a"))


def test_the_gradient_of_a_singular_value_comes_from_the_small_matrices() -> None:
    """Importance by formulas of the rank's size; here by the whole gradient and the singular vectors themselves."""
    from diffusion_lora.lora.adaptive import _decompose

    net, _, trained, optimizer = start(span=Span(0.9, 0.95))
    train(net, trained, optimizer, end=20)
    path = "mid_block.attentions.0.proj_in"
    layer = trained.layers["unet." + path.replace(".", "_")]
    weight = net.get_submodule(path).weight
    weight.requires_grad_()
    trained.zero_grad()
    net.loss(20).backward()
    assert trained.budget is not None
    adaptive = trained.budget.layers["unet." + path.replace(".", "_")]
    part = _decompose(adaptive, [layer.up.T @ layer.up.grad])  # type: ignore[list-item]
    assert weight.grad is not None
    u, s, v = torch.linalg.svd((layer.up @ layer.down).detach().double(), full_matrices=False)
    by_hand = (s[:8] * torch.einsum("ok,on,kn->k", u[:, :8], weight.grad.double(), v[:8])).abs() * layer.scale
    mean = 0.15 * by_hand
    assert torch.allclose(part.importance, mean * 0.15 * (by_hand - mean), rtol=1e-4)


def test_importance_is_sensitivity_times_uncertainty() -> None:
    """AdaLoRA's equations 4 to 6, step by step for one direction."""
    mean = spread = 0.0
    steps = [1.0, 3.0, 2.0]
    for now in steps:
        mean = 0.85 * mean + 0.15 * now
        spread = 0.85 * spread + 0.15 * abs(now - mean)
    assert float(_importance(torch.tensor(steps)[:, None])) == pytest.approx(mean * spread)


@pytest.mark.parametrize("steps", [1, 2, 5, 100])
def test_the_last_cut_comes_before_the_end_and_leaves_the_budget(steps: int) -> None:
    cuts = Span(0.1, 0.6).cuts(steps, start=800, budget=300)
    assert cuts[max(cuts)] == 300
    assert max(cuts) < max(steps, 2)
    assert list(cuts.values()) == sorted(cuts.values(), reverse=True)


def test_a_cut_that_was_missed_is_made_up_for() -> None:
    """An fp16 step whose gradient overflowed shows the budget nothing: the file would stay too large."""
    net, _, trained, optimizer = start()
    last = next(step for step, left in Span(0.2, 0.7).cuts(STEPS, 16, 8).items() if left == 8)
    for step in range(last + 3):
        trained.zero_grad()
        net.loss(step).backward()
        cut = None if step == last else trained.adapt(step, STEPS)
        assert (cut is not None and cut["total"] == 8) == (step == last + 1)
        optimizer.step()


def test_what_excludes_it_is_refused() -> None:
    for recipe in ({"dora": "output"}, {"initial": "pissa"}):
        with pytest.raises(ValueError, match="adapted"):
            start(**deepcopy(recipe))
