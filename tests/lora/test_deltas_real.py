"""A real LoKr file at its place in layers of Stable Diffusion 1.5's shapes."""

from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffusion_lora.lora.adapter import Adapter, read_adapter
from diffusion_lora.lora.bank import AdapterBank
from diffusion_lora.lora.deltas import fits, prepare
from diffusion_lora.lora.inject import find_sites
from diffusion_lora.lora.weights import LoKr


@pytest.fixture(scope="module")
def lokr(lora_data: Path) -> Adapter:
    return read_adapter(lora_data / "lycoris_smart_falcon_4_lokr.safetensors")


def test_every_layer_has_its_place_and_takes_far_less_than_its_matrix(lokr: Adapter) -> None:
    """All 350: kohya's LyCORIS changes convolutions, feed-forward, time embedding and text encoder too."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        text = CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
        )
        sites = find_sites({"unet": unet, "te": CLIPTextModel(text)})
    assert len(lokr.layers) == 350
    held, whole = 0, 0
    kinds: Counter[str] = Counter()
    for key, layer in lokr.layers.items():
        weight = sites[key].weight
        assert fits(layer, weight), key
        part = prepare(layer, torch.empty(weight.shape, device="meta"))
        kinds[type(part.rows).__name__] += 1
        if part.rows is not None:
            held += part.rows.down.numel() + part.rows.up.numel()
            whole += weight.numel()
    assert kinds["RankRows"] == 350
    assert held < 0.1 * whole


@pytest.mark.parametrize(
    "key",
    [
        "unet.up_blocks_3_resnets_0_conv2",
        "unet.up_blocks_3_attentions_0_proj_in",
        "unet.up_blocks_3_attentions_0_transformer_blocks_0_attn2_to_k",
        "te.encoder_layers_0_mlp_fc1",
    ],
)
def test_what_it_does_is_the_kronecker_product_of_its_formula(lokr: Adapter, key: str) -> None:
    """alpha / rank x kron(w1_a w1_b, w2_a w2_b), brought into the weight's shape."""
    layer = lokr.layers[key]
    assert isinstance(layer, LoKr)
    (w1_a, w1_b), (w2_a, w2_b) = ((a.double(), b.double()) for a, b in (layer.w1, layer.w2))
    matrix = torch.kron(w1_a @ w1_b, w2_a @ w2_b) * layer.alpha / w2_b.shape[0]
    torch.manual_seed(0)
    base: nn.Module
    if key.endswith("conv2"):
        base = nn.Conv2d(320, 320, 3, padding=1)
    elif key.endswith("proj_in"):
        base = nn.Conv2d(320, 320, 1)
    else:
        base = nn.Linear(matrix.shape[1], matrix.shape[0])
    delta = matrix.reshape(base.weight.shape)
    x = torch.randn(2, 320, 6, 6) if isinstance(base, nn.Conv2d) else torch.randn(2, 5, matrix.shape[1])
    bank = AdapterBank({key.split(".")[0]: nn.Sequential(base.requires_grad_(False))}, "one layer")
    bank.load("it", Adapter({f"{key.split('.')[0]}.0": layer}, {}))
    strengths = [0.7, -1.0]
    with bank.mix([{"it": strength} for strength in strengths]):
        added = next(iter(bank.components.values()))(x).double() - base(x).double()
    for row, strength in enumerate(strengths):
        if isinstance(base, nn.Conv2d):
            expected = strength * F.conv2d(x[row : row + 1].double(), delta, padding=base.padding)[0]
        else:
            expected = strength * F.linear(x[row].double(), delta)
        assert (added[row] - expected).abs().max() < 1e-5 * base(x)[row].abs().max()
        assert expected.abs().max() > 1e-4
