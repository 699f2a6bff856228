"""What an adapter can be made of beyond rank and alpha: each changes nothing at the start and is what it says after."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lora.errors import ConfigError
from diffusion_lora.lora.bank import AdapterBank
from diffusion_lora.lora.dropout import DropoutRates
from diffusion_lora.lora.trainable import Recipe, TrainableAdapter

Components = dict[str, nn.Module]

ALL_DROPOUT = DropoutRates(network=0.2, rank=0.3, module=0.2)
RECIPES = {
    "rsLoRA": Recipe(rs=True),
    "DoRA of outputs": Recipe(dora="output"),
    "DoRA of inputs": Recipe(dora="input"),
    "orthogonal": Recipe(initial="orthogonal"),
    "PiSSA": Recipe(initial="pissa"),
    "PiSSA, rsLoRA": Recipe(initial="pissa", rs=True),
    "ranks": Recipe(conv_rank=2, conv_alpha=1.0, ranks={"attn2": 3}, alphas={"mid_block": 0.5}),
    "dropout": Recipe(dropout=ALL_DROPOUT),
    "DoRA with dropout": Recipe(dora="output", dropout=ALL_DROPOUT),
    "up apart": Recipe(up_apart=True),
    "adapted": Recipe(adaptive_rank=8),
    "adapted, rsLoRA and ranks": Recipe(rs=True, adaptive_rank=6, ranks={"attn2": 3}),
}


def loss_of(components: Components) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    ids = torch.randint(0, 97, (2, 9), generator=generator)
    target = torch.randn(2, 4, 8, 8, generator=generator)
    text = components["te"](ids).last_hidden_state
    return F.mse_loss(components["unet"](latents, torch.tensor([300, 700]), text).sample, target)


def step_of(trained: TrainableAdapter, components: Components, optimizer: torch.optim.Optimizer) -> float:
    trained.zero_grad()
    trained.begin_pass()
    loss = loss_of(components)
    loss.backward()
    optimizer.step()
    return loss.item()


def adamw(trained: TrainableAdapter) -> torch.optim.Optimizer:
    return torch.optim.AdamW(list(trained.segments.values()), lr=1e-2)


@pytest.fixture
def bank(components: Components) -> AdapterBank:
    return AdapterBank(components, "tiny")


@pytest.fixture
def make(bank: AdapterBank) -> Callable[..., TrainableAdapter]:
    def made(recipe: Recipe, targets: str = "wide", seed: int = 7) -> TrainableAdapter:
        return bank.add_trainable("new", 4, 2.0, targets, seed=seed, recipe=recipe)

    return made


@pytest.mark.parametrize("name", RECIPES)
def test_it_starts_as_the_base_bit_for_bit_learns_and_draws_the_same_when_loaded(
    name: str, bank: AdapterBank, components: Components, make: Callable[..., TrainableAdapter]
) -> None:
    with torch.no_grad():
        base = loss_of(components).item()
    trained = make(RECIPES[name])
    with torch.no_grad():
        assert loss_of(components).item() == base
    optimizer = adamw(trained)
    for _ in range(6):
        step_of(trained, components, optimizer)
    if not RECIPES[name].dropout:
        assert all(leaf.grad.any() for layer in trained.layers.values() for leaf in layer.trained)
    with torch.no_grad():
        learned = loss_of(components).item()
        assert learned < 0.97 * base
        adapter = bank.export("new")
        for key, layer in trained.layers.items():
            written = adapter.layers[key]
            assert (layer.facts.rank, layer.facts.alpha) == (written.rank, pytest.approx(written.alpha))
            assert layer.facts.is_conv == (written.down.shape[2:] == (3, 3))
        bank.unload("new")
        assert loss_of(components).item() == base
        bank.load("again", adapter)
        with bank.mix({"again": 1.0}):
            assert loss_of(components).item() == pytest.approx(learned, rel=1e-5)


def test_ranks_and_alphas_are_those_of_the_first_pattern_found(make: Callable[..., TrainableAdapter]) -> None:
    recipe = Recipe(conv_rank=2, conv_alpha=1.0, ranks={r"attn2\.to_k$": 8, "attn2": 3}, alphas={"mid_block": 0.5})
    layers = make(recipe).layers
    for key, layer in layers.items():
        rank = 8 if key.endswith("attn2_to_k") else 3 if "attn2" in key else 2 if layer.down.shape[2:] == (3, 3) else 4
        alpha = 0.5 if "mid_block" in key else 1.0 if layer.down.shape[2:] == (3, 3) else 2.0
        assert (len(layer.down), layer.alpha, layer.scale) == (rank, alpha, alpha / rank), key


def test_rank_stabilised_scale_is_alpha_over_the_root_of_the_rank(make: Callable[..., TrainableAdapter]) -> None:
    trained = make(Recipe(rs=True))
    assert all(layer.scale == 2.0 / math.sqrt(4) for layer in trained.layers.values())
    assert all(layer.scale == 2.0 / math.sqrt(4) for layer in trained.adapter().layers.values())


@pytest.mark.parametrize("setting", ["ranks", "alphas"])
def test_a_pattern_that_is_broken_or_matches_nothing_is_an_error(
    setting: str, make: Callable[..., TrainableAdapter]
) -> None:
    with pytest.raises(ConfigError, match=rf'lora\.{setting[:-1]}_patterns: "attn9" matches none of the \d+ layers'):
        make(Recipe(**{setting: {"attn9": 2}}))
    with pytest.raises(ConfigError, match="is not a regular expression"):
        make(Recipe(**{setting: {"(attn": 2}}))


def test_orthogonal_rows_are_as_long_as_gaussian_ones_on_average(make: Callable[..., TrainableAdapter]) -> None:
    for layer in make(Recipe(initial="orthogonal")).layers.values():
        rows = layer.down.detach().flatten(1)
        torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), rtol=0, atol=1e-5)


def test_pissa_starts_with_the_main_part_and_is_saved_at_twice_the_rank(make: Callable[..., TrainableAdapter]) -> None:
    """The base a file is used on has that part still in it, so the file must take it off."""
    trained = make(Recipe(initial="pissa"), targets="attention")
    for layer in trained.layers.values():
        assert layer.up.any()
        assert layer.weights().rank == 2 * len(layer.down)
        assert layer.weights().delta().abs().max() < 1e-6
    with pytest.raises(ValueError, match="PiSSA"):
        Recipe(initial="pissa", dora="output")


def test_weight_decay_pulls_magnitudes_to_the_base_and_not_to_zero(make: Callable[..., TrainableAdapter]) -> None:
    """A decay of the magnitudes themselves would shrink the base's own weights, step by step."""
    trained = make(Recipe(dora="output"))
    before = {key: layer.magnitude.values().clone() for key, layer in trained.layers.items()}
    optimizer = torch.optim.AdamW(list(trained.segments.values()), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        trained.zero_grad()
        optimizer.step()
    assert all(torch.equal(layer.magnitude.values(), before[key]) for key, layer in trained.layers.items())


def test_segments_apart_train_the_same_numbers(components: Components, bank: AdapterBank) -> None:
    """LoRA+ only changes a rate: at the same rate the division must not show, 8-bit state included."""
    import bitsandbytes

    results = []
    for apart in (False, True):
        trained = bank.add_trainable("new", 4, 4.0, seed=3, recipe=Recipe(up_apart=apart))
        assert set(trained.segments) == ({"unet", "te", "unet.up", "te.up"} if apart else {"unet", "te"})
        optimizer = bitsandbytes.optim.AdamW8bit(list(trained.segments.values()), lr=1e-2)
        for _ in range(3):
            step_of(trained, components, optimizer)
        results.append(bank.export("new"))
        bank.unload("new")
    assert results[0].allclose(results[1])


# --- dropout ----------------------------------------------------------------------------------------------------------


def test_dropout_is_a_function_of_seed_step_and_pass(components: Components, bank: AdapterBank) -> None:
    """Resume recomputes nothing but counters: whatever was drawn before must not matter."""

    def losses(seed: int, steps: range, passes: int = 2) -> list[float]:
        trained = bank.add_trainable("new", 4, 4.0, seed=seed, recipe=Recipe(dropout=ALL_DROPOUT))
        for layer in trained.layers.values():
            layer.up.data.fill_(0.1)
        trained.go_on_from(steps.start)
        found = []
        for _ in steps:
            trained.zero_grad()
            for _ in range(passes):
                trained.begin_pass()
                found.append(loss_of(components).item())
        bank.unload("new")
        return found

    whole = losses(1, range(4))
    assert len(set(whole)) == len(whole), "every pass draws anew"
    assert losses(1, range(2, 4)) == whole[4:]
    assert losses(1, range(4), passes=1) == whole[::2]
    assert not set(losses(2, range(4))) & set(whole)


def test_dropout_leaves_previews_alone(components: Components, make: Callable[..., TrainableAdapter]) -> None:
    trained = make(Recipe(dropout=ALL_DROPOUT))
    for layer in trained.layers.values():
        layer.up.data.fill_(0.1)
    trained.zero_grad()
    with torch.no_grad():
        first = loss_of(components)
        trained.begin_pass()
        assert torch.equal(loss_of(components), first)
    assert not torch.equal(loss_of(components), first)


@pytest.mark.parametrize(
    ("rates", "axes"), [(DropoutRates(network=0.25), 3), (DropoutRates(rank=0.25), 2), (DropoutRates(module=0.25), 1)]
)
def test_each_kind_drops_its_share_of_what_it_is_about(rates: DropoutRates, axes: int) -> None:
    """Single numbers, ranks of a picture, pictures; the first two keep the mean."""
    from diffusion_lora.lora.dropout import Clock, LayerDropout

    dropout = LayerDropout(rates, Clock(), 0, "unet.x")
    hidden = torch.ones(64, 16, 32, requires_grad=True)
    linear = dropout.on_change(dropout.on_hidden(hidden, -1))
    conv = dropout.on_change(dropout.on_hidden(hidden.mT[..., None], 1))
    if not rates.network:
        assert torch.equal(linear, conv[..., 0].mT)
    dropped = {3: linear == 0, 2: (linear == 0).all(1), 1: (linear == 0).all(2).all(1)}[axes]
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.15 if axes == 1 else 0.03)
    assert linear.unique().tolist() == pytest.approx([0, 1 if rates.module else 1 / 0.75])


def test_a_gradient_checkpoint_computes_with_the_same_masks(
    components: Components, make: Callable[..., TrainableAdapter]
) -> None:
    trained = make(Recipe(dropout=ALL_DROPOUT))
    for layer in trained.layers.values():
        layer.up.data.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    trained.zero_grad()
    loss_of(components).backward()
    plain = trained.segments["unet"].grad.clone()
    trained.segments["unet"].grad.zero_()
    components["unet"].train()  # diffusers checkpoints in training mode only
    components["unet"].enable_gradient_checkpointing()
    loss_of(components).backward()
    torch.testing.assert_close(trained.segments["unet"].grad, plain, rtol=1e-5, atol=1e-8)
