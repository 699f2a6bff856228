"""Adapters folded into the base and taken out again, and switched a hundred times: not a bit of the base changes."""

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from diffusion_lora.lora.adapter import Adapter
from diffusion_lora.lora.bank import AdapterBank
from diffusion_lora.lora.inject import find_sites
from diffusion_lora.lora.weights import Full, LoHa, LoKr, LowRank, Weights

Components = dict[str, nn.Module]
MakeAdapter = Callable[..., Adapter]


def every_form(components: Components, seed: int = 0) -> Adapter:
    """A form for every second layer of both components, in turn: LoRA, DoRA, LoHa, LoKr, full."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.1

    layers: dict[str, Weights] = {}
    for number, (key, site) in enumerate(list(find_sites(components).items())[::2]):
        out, inputs, kernel = site.weight.shape[0], site.weight.shape[1], tuple(site.weight.shape[2:])
        flat = site.weight[0].numel()
        down, up = normal(2, inputs, *kernel), normal(out, 2, *(1 for _ in kernel))
        layers[key] = (
            LowRank(down, up, 1.0),
            LowRank(down, up, 1.0, magnitude=normal(out, *(1 for _ in site.weight.shape[1:])).abs() + 0.5),
            LoHa(normal(out, 2), normal(2, flat), normal(out, 2), normal(2, flat), 2.0),
            LoKr(normal(2, 2), normal(out // 2, inputs // 2, *kernel), 1.0),
            Full(normal(*site.weight.shape)),
        )[number % 5]
    return Adapter(layers, {})


def draw(components: Components, rows: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        text = components["te"](torch.randint(0, 97, (rows, 9), generator=generator)).last_hidden_state
        latents = torch.randn(rows, 4, 8, 8, generator=generator)
        return components["unet"](latents, torch.tensor([500] * rows), text).sample


def state(components: Components) -> dict[str, Tensor]:
    return {
        f"{name} {key}": value.clone() for name, root in components.items() for key, value in root.state_dict().items()
    }


@pytest.fixture
def bank(components: Components, make_adapter: MakeAdapter) -> AdapterBank:
    bank = AdapterBank(components, "tiny")
    bank.load("all", every_form(components))
    bank.load("style", make_adapter(components, targets="wide", size=0.1))
    return bank


def test_a_folded_mix_draws_what_the_mix_draws_and_restoring_gives_the_base_back_bit_for_bit(
    bank: AdapterBank, components: Components
) -> None:
    """Subtracting what was added leaves a residue: after a hundred turns a base would be another one."""
    before, base = state(components), draw(components)
    pointers = [parameter.data_ptr() for root in components.values() for parameter in root.parameters()]
    mix, text_mix = {"all": 0.6, "style": -0.4}, {"all": 0.3}
    with bank.mix(mix, {"te": text_mix}):
        mixed = draw(components)
    bank.fold(mix, {"te": text_mix})
    assert bank.folded
    assert (draw(components) - mixed).abs().max() < 1e-5 * mixed.abs().max()
    bank.restore()
    assert not bank.folded
    after = state(components)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert pointers == [parameter.data_ptr() for root in components.values() for parameter in root.parameters()]
    assert torch.equal(draw(components), base)
    with bank.mix(mix, {"te": text_mix}):
        assert torch.equal(draw(components), mixed)


def test_a_half_precision_base_is_rounded_once_and_keeps_its_layout(components: Components) -> None:
    unet = components["unet"].to(torch.bfloat16, memory_format=torch.channels_last)
    bank = AdapterBank({"unet": unet}, "tiny")
    adapter = every_form({"unet": unet})
    sites = find_sites({"unet": unet})
    before = {key: site.weight.clone() for key, site in sites.items()}
    exact = {key: before[key].float() + 0.5 * layer.delta(before[key]) for key, layer in adapter.layers.items()}
    bank.load("a", adapter)
    bank.fold({"a": 0.5})
    for key, weight in exact.items():
        assert torch.equal(sites[key].weight, weight.bfloat16())
        assert sites[key].weight.stride() == before[key].stride()
    bank.restore()
    assert all(torch.equal(site.weight, before[key]) for key, site in sites.items())


def test_while_a_mix_is_folded_in_nothing_else_can_be_done(
    bank: AdapterBank, components: Components, make_adapter: MakeAdapter
) -> None:
    """A second application would double the strength, silently."""
    bank.fold({"style": 1.0})
    attempts: list[Callable[[], object]] = [
        lambda: bank.fold({"style": 1.0}),
        lambda: bank.mix({"style": 1.0}).__enter__(),
        lambda: bank.load("more", make_adapter(components)),
        lambda: bank.unload("style"),
        lambda: bank.add_trainable("new", 2, 2.0),
    ]
    for attempt in attempts:
        with pytest.raises(RuntimeError, match=r"restore\(\) them first"):
            attempt()
    bank.restore()
    with pytest.raises(KeyError, match="stile is not loaded"):
        bank.fold({"stile": 1.0})
    assert not bank.folded


def test_a_hundred_loads_turns_folds_and_unloads_leave_no_trace(components: Components) -> None:
    """Base weights bit-identical, the plain modules back, memory flat within one percent."""
    bank = AdapterBank(components, "tiny")
    before, base = state(components), draw(components)
    modules = {name: dict(root.named_modules()) for name, root in components.items()}
    adapters = [every_form(components, seed) for seed in range(2)]

    def turn(number: int) -> None:
        bank.load("a", adapters[number % 2])
        bank.load("b", adapters[(number + 1) % 2])
        with bank.mix([{"a": 0.1}, {"b": number / 100}]):
            pass
        bank.unload("a")
        bank.fold({"b": 0.7})
        bank.restore()
        bank.unload("b")

    def alive() -> tuple[int, int, int]:
        """Objects, tensors and their bytes."""
        gc.collect()
        objects = gc.get_objects()
        tensors = [thing for thing in objects if isinstance(thing, Tensor)]
        return len(objects), len(tensors), sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    turn(0)
    objects, count, size = alive()
    for number in range(100):
        turn(number)
    now = alive()
    assert now[1:] == (count, size)
    assert now[0] <= 1.01 * objects
    after = state(components)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert {name: dict(root.named_modules()) for name, root in components.items()} == modules
    assert torch.equal(draw(components), base)
