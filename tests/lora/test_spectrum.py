"""Singular values and the rank that would have been enough, against numpy-style decompositions of the whole delta."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from diffusion_lora.lora.adapter import Adapter, read_adapter
from diffusion_lora.lora.algebra import resize
from diffusion_lora.lora.blocks import block_of
from diffusion_lora.lora.plain import Cut
from diffusion_lora.lora.spectrum import SHARES, smallest_rank, spectrum, uniform_rank
from diffusion_lora.lora.weights import LoKr, LowRank

MakeAdapter = Callable[..., Adapter]


@pytest.fixture
def adapter(components: dict[str, nn.Module], make_adapter: MakeAdapter) -> Adapter:
    return make_adapter(components, rank=6, targets="wide")


def test_the_values_are_those_of_the_whole_delta(adapter: Adapter) -> None:
    """From matrices of the size of the rank; the delta, which is not formed, must have the same."""
    found = spectrum(adapter)
    assert [layer.key for layer in found.layers] == list(adapter.layers)
    for layer in found.layers:
        delta = adapter.layers[layer.key].delta().flatten(1)
        expected = torch.linalg.svdvals(delta)[: len(layer.values)]
        torch.testing.assert_close(torch.tensor(layer.values), expected, rtol=1e-4, atol=1e-6)
        assert layer.norm == pytest.approx(float(delta.norm()), rel=1e-5)
        assert layer.rank == 6
        assert 1 <= layer.stable_rank <= 6
    assert found.norm == pytest.approx(float(torch.stack([v.delta().norm() for v in adapter.layers.values()]).norm()))


@pytest.mark.parametrize("share", SHARES)
def test_the_advised_rank_is_the_smallest_that_keeps_the_share(adapter: Adapter, share: float) -> None:
    """Resizing to it must keep the share, and one less must not: advice that costs quality, or size, for nothing."""
    found = spectrum(adapter)
    rank = found.rank_for(share)
    assert found.kept_by(rank) >= share > found.kept_by(rank - 1)
    resized = resize(adapter, Cut(rank=rank), torch.float32)
    assert 1 - resized.error**2 == pytest.approx(found.kept_by(rank), abs=1e-5)
    assert resized.adapter.parameters == found.size_at(rank)
    for layer in found.layers:
        kept = [sum(value**2 for value in layer.values[:k]) / layer.energy for k in range(len(layer.values) + 1)]
        assert kept[layer.rank_for(share)] >= share > kept[layer.rank_for(share) - 1]


@pytest.mark.parametrize(
    ("values", "share", "rank"),
    [([3.0, 4.0 / 2, 0.0], 0.5, 1), ([2.0, 1.0], 0.8, 1), ([2.0, 1.0], 0.81, 2), ([1.0] * 4, 1.0, 4), ([0.0], 0.9, 1)],
)
def test_ranks_by_hand(values: list[float], share: float, rank: int) -> None:
    assert smallest_rank(torch.tensor(values), share) == rank


def test_one_rank_for_all_weighs_layers_by_their_energy() -> None:
    """A weak layer of high rank must not drive the rank of the file."""
    assert uniform_rank([torch.tensor([10.0]), torch.full((8,), 0.1)], 0.95) == 1
    assert uniform_rank([], 0.95) == 1


def test_a_layer_of_zeros_has_no_values_and_breaks_nothing() -> None:
    found = spectrum(Adapter({"unet.a": LowRank(torch.ones(2, 3), torch.zeros(4, 2), 2.0)}, {}))
    assert found.layers[0].values == ()
    assert (found.norm, found.layers[0].stable_rank, found.rank_for(0.95), found.kept_by(1)) == (0.0, 0.0, 1, 1.0)


def test_dora_is_spoken_of() -> None:
    layer = LowRank(torch.ones(1, 3), torch.ones(4, 1), 1.0, magnitude=torch.ones(4, 1))
    assert "DoRA" in spectrum(Adapter({"unet.a": layer}, {})).notes[0]


def test_it_is_json_and_by_block(adapter: Adapter) -> None:
    found = spectrum(adapter)
    told = json.loads(json.dumps(found.as_dict()))
    assert told["rank_for"]["0.95"] == found.rank_for(0.95)
    assert len(told["layers"]) == len(adapter.layers)
    blocks = found.by_block()
    assert set(blocks) == {"unet", "down 0", "down 1", "mid", "up 0", "up 1", "text"}
    assert sum(block.energy for block in blocks.values()) == pytest.approx(found.energy)


@pytest.mark.parametrize(
    ("key", "block"),
    [
        ("unet.down_blocks_1_attentions_0_proj_in", "down 1"),
        ("unet.mid_block_resnets_0_conv1", "mid"),
        ("unet.conv_in", "unet"),
        ("te.encoder_layers_0_mlp_fc1", "text"),
        ("te2.text_projection", "text 2"),
    ],
)
def test_blocks(key: str, block: str) -> None:
    assert block_of(key) == block


def test_the_real_lora_has_its_documented_norm(lora_data: Path) -> None:
    found = spectrum(read_adapter(lora_data / "derived" / "weapon_v15_rank4_kohya.safetensors"))
    assert found.norm == pytest.approx(4.730204, abs=1e-6)  # documented as 4.7301: torch sums squares in fp32
    assert len(found.layers) == 128
    assert found.rank_for(0.99) <= 4


def test_the_real_lokr_has_the_values_of_its_kronecker_product(lora_data: Path) -> None:
    """The values are products of those of two small matrices; the whole of two small layers is decomposed beside."""
    adapter = read_adapter(lora_data / "lycoris_smart_falcon_4_lokr.safetensors")
    found = {layer.key: layer for layer in spectrum(adapter).layers}
    assert len(found) == 350
    for key in list(found)[::25]:
        assert found[key].norm == pytest.approx(float(adapter.layers[key].delta().double().norm()), rel=1e-5)
        assert len(found[key].values) <= 16
    for key in [key for key, layer in adapter.layers.items() if layer.shape == (320, 320)][:2]:
        layer = adapter.layers[key]
        assert isinstance(layer, LoKr)
        expected = torch.linalg.svdvals(layer.delta().double())[: len(found[key].values)]
        torch.testing.assert_close(torch.tensor(found[key].values, dtype=torch.float64), expected, rtol=1e-3, atol=1e-7)
