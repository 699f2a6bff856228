"""Adapters alive in a real UNet and text encoder: coming, going, mixing, row by row."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from diffusion_lora.errors import AdapterFileError
from diffusion_lora.lora.adapter import Adapter, AdapterLayer
from diffusion_lora.lora.bank import AdapterBank
from diffusion_lora.lora.layer import LoraLayer

Components = dict[str, nn.Module]
MakeAdapter = Callable[..., Adapter]


def draw(components: Components, batch: int = 4) -> Tensor:
    """What the UNet predicts for `batch` prompts; a row's input does not depend on the batch's size."""
    generators = [torch.Generator().manual_seed(row) for row in range(batch)]
    latents = torch.cat([torch.randn(1, 4, 8, 8, generator=g) for g in generators])
    ids = torch.cat([torch.randint(0, 97, (1, 9), generator=g) for g in generators])
    with torch.no_grad():
        text = components["te"](ids).last_hidden_state
        return components["unet"](latents, torch.tensor([500] * batch), text).sample


@pytest.fixture
def bank(components: Components) -> AdapterBank:
    return AdapterBank(components, "tiny")


@pytest.fixture
def stocked(bank: AdapterBank, components: Components, make_adapter: MakeAdapter) -> AdapterBank:
    """Two adapters of different rank, alpha and targets: some layers carry both, some one, some none."""
    bank.load("style", make_adapter(components, rank=4, alpha=2.0, targets="wide", seed=1))
    bank.load("hero", make_adapter(components, rank=2, alpha=3.0, targets="qv", seed=2))
    return bank


def test_loading_changes_nothing_until_a_mix_opens_the_gates(
    bank: AdapterBank, components: Components, make_adapter: MakeAdapter
) -> None:
    base = draw(components)
    bank.load("style", make_adapter(components, targets="wide"))
    assert torch.equal(draw(components), base)
    for mix in ({}, {"style": 0.0}, [{}] * 4, [{"style": 0.0}] * 4):
        with bank.mix(mix):
            assert torch.equal(draw(components), base), mix
    with bank.mix({"style": 1.0}):
        assert not torch.allclose(draw(components), base, atol=1e-3)
    assert torch.equal(draw(components), base), "the gates close behind a mix"


def test_a_mixed_batch_is_row_by_row_the_single_pictures(stocked: AdapterBank, components: Components) -> None:
    """Otherwise a grid would show other pictures than the ones its labels promise."""
    mixes = [{}, {"style": 0.8}, {"hero": -0.5}, {"style": 0.3, "hero": 1.2}]
    with stocked.mix(mixes):
        together = draw(components)
    for row, mix in enumerate(mixes):
        with stocked.mix([{}] * row + [mix]):
            alone = draw(components, row + 1)[row]
        with stocked.mix(mix):
            stack = draw(components)[row]
        spread = alone.abs().max()
        assert (together[row] - alone).abs().max() < 1e-5 * spread
        assert (together[row] - stack).abs().max() < 1e-5 * spread
    assert torch.allclose(together[0], draw(components)[0], rtol=0, atol=1e-6)
    differences = [(together[row] - draw(components)[row]).abs().max() for row in (1, 2, 3)]
    assert min(differences) > 1e-2, "each mix acts"


def test_mixing_equals_adding_the_deltas_to_the_weights(
    stocked: AdapterBank, components: Components, make_adapter: MakeAdapter
) -> None:
    """strength x alpha / rank x up @ down, summed over adapters: what every other program computes."""
    mix = {"style": 0.8, "hero": -0.6}
    with stocked.mix(mix):
        mixed = draw(components)
    adapters = {name: stocked.export(name) for name in mix}
    for name in mix:
        stocked.unload(name)
    for name, strength in mix.items():
        for key, layer in adapters[name].layers.items():
            weight = stocked._sites[key].weight
            delta = layer.up.flatten(1) @ layer.down.flatten(1)
            weight.data += strength * layer.alpha / layer.rank * delta.view_as(weight)
    assert (draw(components) - mixed).abs().max() < 1e-4 * mixed.abs().max()


def test_a_component_can_have_its_own_mix(bank: AdapterBank, components: Components, make_adapter: MakeAdapter) -> None:
    """Users turn the text encoder's strength apart from the UNet's."""
    bank.load("style", make_adapter(components))
    ids = torch.arange(9)[None]
    plain_text = components["te"](ids).last_hidden_state
    with bank.mix({"style": 1.0}, component_rows={"te": {}}):
        assert torch.equal(components["te"](ids).last_hidden_state, plain_text)
        unet_only = draw(components)
    with bank.mix({"style": 1.0}):
        assert not torch.allclose(components["te"](ids).last_hidden_state, plain_text, atol=1e-3)
        assert not torch.allclose(draw(components), unet_only, atol=1e-3)
    with pytest.raises(KeyError, match="vae"), bank.mix({}, component_rows={"vae": {}}):
        pass


def test_mixes_nest_and_an_error_inside_closes_them(stocked: AdapterBank, components: Components) -> None:
    base = draw(components)
    with stocked.mix({"style": 1.0}):
        outer = draw(components)
        with stocked.mix({"hero": 1.0}):
            assert not torch.equal(draw(components), outer)
        assert torch.equal(draw(components), outer)
    with pytest.raises(RuntimeError, match="in between"), stocked.mix({"style": 1.0}):
        raise RuntimeError("in between")
    assert torch.equal(draw(components), base)


def test_adapters_that_come_or_go_inside_a_mix_leave_the_others_alone(
    stocked: AdapterBank, components: Components, make_adapter: MakeAdapter
) -> None:
    with stocked.mix({"style": 0.5}):
        before = draw(components)
        stocked.unload("hero")
        stocked.load("late", make_adapter(components, seed=9))
        assert torch.allclose(draw(components), before, atol=1e-6)


def test_a_hundred_turns_and_unloading_leave_the_very_same_model(
    bank: AdapterBank, components: Components, make_adapter: MakeAdapter
) -> None:
    """Weights may not drift, and the plain layers must come back."""
    base = draw(components)
    modules = {name: dict(root.named_modules()) for name, root in components.items()}
    weights = {name: {k: v.clone() for k, v in root.state_dict().items()} for name, root in components.items()}
    for turn in range(100):
        if turn % 10 == 0:
            bank.load("a", make_adapter(components, seed=turn, targets="wide"))
            bank.load("b", make_adapter(components, seed=turn + 1))
        with bank.mix({"a": turn / 50 - 1, "b": 1.3}):
            if turn % 25 == 0:
                draw(components)
        if turn % 10 == 9:
            bank.unload("a")
            bank.unload("b")
    assert bank.names == ()
    for name, root in components.items():
        assert dict(root.named_modules()) == modules[name]
        assert all(torch.equal(value, weights[name][key]) for key, value in root.state_dict().items())
    assert torch.equal(draw(components), base)


def test_layers_are_wrapped_only_where_an_adapter_acts(
    bank: AdapterBank, components: Components, make_adapter: MakeAdapter
) -> None:
    adapter = make_adapter(components, targets="qv")
    bank.load("hero", adapter)
    wrapped = sum(isinstance(m, LoraLayer) for root in components.values() for m in root.modules())
    assert wrapped == len(adapter.layers)


def test_ranks_and_alphas_may_differ_from_layer_to_layer(
    bank: AdapterBank, components: Components, make_adapter: MakeAdapter
) -> None:
    """Files cut down by kohya's dynamic resize have a rank and an alpha of their own in every layer."""
    full = make_adapter(components, rank=4, alpha=2.0)
    layers = {}
    for i, (key, layer) in enumerate(full.layers.items()):
        rank = 1 + i % 4
        padded_down, padded_up = layer.down.clone(), layer.up.clone()
        padded_down[rank:], padded_up[:, rank:] = 0, 0
        layers[key] = (AdapterLayer(layer.down[:rank], layer.up[:, :rank], 0.5 * rank), padded_down, padded_up)
    bank.load("cut", Adapter({key: layer for key, (layer, _, _) in layers.items()}, {}))
    with bank.mix({"cut": 0.9}):
        cut = draw(components)
    bank.unload("cut")
    bank.load("padded", Adapter({key: AdapterLayer(down, up, 2.0) for key, (_, down, up) in layers.items()}, {}))
    with bank.mix({"padded": 0.9}):
        assert (draw(components) - cut).abs().max() < 1e-5 * cut.abs().max()


def test_a_matrix_may_be_written_as_a_1x1_convolution_and_the_other_way_round(
    bank: AdapterBank, components: Components, make_adapter: MakeAdapter
) -> None:
    adapter = make_adapter(components, targets="wide")

    def turned(layer: AdapterLayer) -> AdapterLayer:
        if layer.down.ndim == 2:
            return AdapterLayer(layer.down[:, :, None, None], layer.up[:, :, None, None], layer.alpha)
        if layer.down.shape[2:] == (1, 1):
            return AdapterLayer(layer.down[:, :, 0, 0], layer.up[:, :, 0, 0], layer.alpha)
        return layer

    other = replace(adapter, layers={key: turned(layer) for key, layer in adapter.layers.items()})
    bank.load("written so", adapter)
    bank.load("written thus", other)
    with bank.mix({"written so": 1.0}):
        expected = draw(components)
    with bank.mix({"written thus": 1.0}):
        assert torch.allclose(draw(components), expected, rtol=1e-5, atol=1e-5)


def test_a_half_precision_base_gets_half_precision_matrices(components: Components, make_adapter: MakeAdapter) -> None:
    adapter = make_adapter(components, size=0.1)
    half = {name: root.to(torch.bfloat16) for name, root in components.items()}
    bank = AdapterBank(half, "tiny")
    bank.load("style", adapter)
    with torch.no_grad(), bank.mix({"style": 0.7}):
        text = half["te"](torch.arange(9)[None]).last_hidden_state
        y = half["unet"](torch.randn(1, 4, 8, 8).bfloat16(), torch.tensor([5]), text).sample
    assert y.dtype == torch.bfloat16
    assert torch.isfinite(y).all()


def test_an_adapter_of_another_family_is_refused_and_both_are_named(
    bank: AdapterBank, components: Components, other_family: Components, make_adapter: MakeAdapter
) -> None:
    """SD 2 files on SD 1 go unnoticed elsewhere: shapes differ only in the cross-attention."""
    base = draw(components)
    foreign = make_adapter({"unet": other_family["unet"], "te": components["te"]})
    with pytest.raises(AdapterFileError) as caught:
        bank.load("alien.safetensors", foreign)
    for word in ("alien.safetensors", "width 24", "tiny", "16 wide"):
        assert word in str(caught.value)
    assert bank.names == ()
    assert torch.equal(draw(components), base)


def test_unknown_layers_and_wrong_shapes_are_refused_with_what_the_metadata_says(
    bank: AdapterBank, components: Components, make_adapter: MakeAdapter
) -> None:
    adapter = make_adapter(components)
    layer = next(iter(adapter.layers.values()))
    origin = {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}
    with pytest.raises(AdapterFileError, match=r"tiny \(its metadata says stable-diffusion-xl.*te1\.encoder"):
        bank.load("xl", Adapter({"te1.encoder_layers_0_self_attn_q_proj": layer}, origin))
    wrong = AdapterLayer(torch.ones(4, 5), torch.ones(32, 4), 4)
    with pytest.raises(AdapterFileError, match=r"attn1_to_q is 32 x 5 there and 32 x 32 here"):
        bank.load("odd", Adapter({"unet.down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": wrong}, {}))


def test_another_checkpoint_of_the_family_is_only_a_note(components: Components, make_adapter: MakeAdapter) -> None:
    adapter = make_adapter(components)
    made_on = {"ss_new_sd_model_hash": "aa" * 32, "ss_sd_model_name": "somemodel"}
    bank = AdapterBank(components, "tiny", base_hash="bb" * 32)
    assert bank.load("plain", adapter) == ()
    (note,) = bank.load("made elsewhere", replace(adapter, metadata=made_on))
    assert "somemodel" in note
    assert "tiny" in note


def test_names_are_unique_and_must_be_known(stocked: AdapterBank, components: Components) -> None:
    with pytest.raises(ValueError, match="style is already in the bank"):
        stocked.load("style", stocked.export("hero"))
    with pytest.raises(KeyError, match=r"stile is not loaded; loaded: style, hero"), stocked.mix({"stile": 1.0}):
        pass
    with pytest.raises(ValueError, match="not a finite number"), stocked.mix({"style": float("nan")}):
        pass
    with pytest.raises(KeyError):
        stocked.unload("stile")
    with pytest.raises(ValueError, match="another bank"):
        AdapterBank(components, "tiny")
