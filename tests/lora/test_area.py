"""Strengths by block and in areas: a layer lets through what its place in the picture, or its word, has a share in."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from diffusion_lora.lora.adapter import Adapter
from diffusion_lora.lora.area import Area, Setting
from diffusion_lora.lora.bank import AdapterBank
from tests.lora.test_bank import Components, MakeAdapter, draw

MASK = torch.tensor([[1.0, 1.0, 0.5, 0.0]] * 6 + [[0.25, 0.0, 0.0, 0.0]] * 2)


class Places(nn.Module):
    """One layer of each sight, by the paths a UNet gives them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down_blocks = nn.ModuleDict({"0": nn.ModuleDict({"attentions": nn.ModuleDict({"0": nn.ModuleDict({
            "attn1": nn.ModuleDict({"to_q": nn.Linear(6, 6)}), "attn2": nn.ModuleDict({"to_k": nn.Linear(6, 6)})
        })}), "resnets": nn.ModuleDict({"0": nn.ModuleDict({
            "conv1": nn.Conv2d(6, 6, 3, padding=1), "time_emb_proj": nn.Linear(6, 6)
        })})})})  # fmt: skip


def run(module: nn.Module, path: str, x: Tensor) -> Tensor:
    with torch.no_grad():
        return module.get_submodule(path)(x)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_every_sight_follows_its_mask(kind: str) -> None:
    """Between the base's output and the adapter's lies, place by place, what the mask says: a layer is linear in it."""
    from diffusion_lora.lora.adapter import AdapterLayer
    from diffusion_lora.lora.weights import Full

    unet = Places()
    generator = torch.Generator().manual_seed(1)
    bank = AdapterBank({"unet": unet}, "tiny")
    layers = {}
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            key = "unet." + name.replace(".", "_")
            shape = module.weight.shape
            if kind == "full":
                layers[key] = Full(torch.randn(shape, generator=generator))
            else:
                layers[key] = AdapterLayer(
                    torch.randn(2, *shape[1:], generator=generator),
                    torch.randn(6, 2, *(1 for _ in shape[2:]), generator=generator),
                    1.0,
                )
    bank.load("a", Adapter(layers, {}))
    words = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.5])
    area = Area(MASK, words)
    inputs = {
        "down_blocks.0.attentions.0.attn1.to_q": torch.randn(2, 32, 6, generator=generator),
        "down_blocks.0.attentions.0.attn2.to_k": torch.randn(2, 5, 6, generator=generator),
        "down_blocks.0.resnets.0.conv1": torch.randn(2, 6, 8, 4, generator=generator),
        "down_blocks.0.resnets.0.time_emb_proj": torch.randn(2, 6, generator=generator),
    }
    shares = {
        "to_q": MASK.flatten()[None, :, None], "to_k": words[None, :, None], "conv1": MASK[None, None],
        "time_emb_proj": MASK.mean(),
    }  # fmt: skip
    for path, x in inputs.items():
        base = run(unet, path, x)
        with bank.mix({"a": 1.0}):
            whole = run(unet, path, x)
        with bank.mix([{"a": (Setting(0.7, (), area), Setting(0.1))}, {}]):
            mixed = run(unet, path, x)
        share = shares[path.rpartition(".")[2]]
        expected = base + (0.7 * share + 0.1) * (whole - base)
        assert torch.allclose(mixed[0], expected[0], atol=1e-5), path
        assert torch.allclose(mixed[1], base[1], atol=1e-6), "the other row is the base"


def test_areas_reach_every_halving_of_a_real_unet(components: Components, make_adapter: MakeAdapter) -> None:
    """An area of the whole picture is no area, an empty one is the base; 64 places are 8 x 8, 16 are 4 x 4."""
    bank = AdapterBank(components, "tiny")
    bank.load("a", make_adapter(components, rank=4, targets="wide", seed=1))
    base = draw(components, 2)
    with bank.mix({"a": 0.8}, {"te": {}}):
        whole = draw(components, 2)
    for value, expected in ((0.0, base), (1.0, whole)):
        area = Area(torch.full((8, 8), value), torch.full((9,), value))
        with bank.mix([{"a": (Setting(0.8, (), area),)}] * 2, {"te": {}}):
            assert torch.allclose(draw(components, 2), expected, atol=1e-5)


def test_blocks_weigh_and_equal_an_adapter_without_the_rest(components: Components, make_adapter: MakeAdapter) -> None:
    bank = AdapterBank(components, "tiny")
    every = make_adapter(components, rank=4, targets="wide", seed=1)
    whole = replace(every, layers={key: layer for key, layer in every.layers.items() if "time_embedding" not in key})
    part = replace(whole, layers={key: layer for key, layer in whole.layers.items() if "mid_block" in key})
    assert 0 < len(part.layers) < len(whole.layers)
    bank.load("whole", whole)
    bank.load("part", part)
    others = tuple((block, 0.0) for block in bank.block_names if block != "MID")
    with bank.mix({"whole": (Setting(2.0, (*others, ("MID", 0.4))),)}, {"te": {}}):
        by_blocks = draw(components, 2)
    with bank.mix({"part": 0.8}, {"te": {}}):
        by_part = draw(components, 2)
    assert torch.allclose(by_blocks, by_part, atol=1e-5)
    assert not torch.allclose(by_blocks, draw(components, 2), atol=1e-3)


def test_blocks_fold_and_areas_cannot(components: Components, make_adapter: MakeAdapter) -> None:
    bank = AdapterBank(components, "tiny")
    bank.load("a", make_adapter(components, rank=4, targets="wide", seed=1))
    base, mix = draw(components, 2), {"a": (Setting(0.8, (("MID", 0.0), ("IN01", -1.0))),)}
    with bank.mix(mix, {"te": {}}):
        gated = draw(components, 2)
    bank.fold(mix, {"te": {}})
    assert torch.allclose(draw(components, 2), gated, atol=1e-5)
    bank.restore()
    assert torch.equal(draw(components, 2), base)
    with pytest.raises(ValueError, match="area"):
        bank.fold({"a": (Setting(1.0, (), Area(torch.ones(8, 8), torch.ones(9))),)})
