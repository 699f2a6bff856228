"""Whole UNets shaped like Stable Diffusion 1, 2 and XL, adapters in every layer: outputs and gradients equal peft's."""

from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_lora.lora.bank import AdapterBank
from diffusion_lora.lora.trainable import Recipe, TrainedLayer

# Small, for a well-conditioned net. With alpha 6 and a spread of 0.2, rsLoRA's fp32 gradients are up to 1.3e-4 (ours)
# and 4e-5 (peft's) from those in fp64, and two roundings cannot be compared to 1e-5.
RANK, ALPHA, SPREAD = 4, 3.0, 0.1
EVERYTHING = r"(.*\.)?(to_[qkv]|to_out\.0|proj_in|proj_out|net\.0\.proj|net\.2|conv1|conv2|conv_shortcut|conv|linear_1)"

FAMILIES: Mapping[str, dict[str, Any]] = {
    "SD 1": {
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    },
    "SD 2": {
        "cross_attention_dim": 24,
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    },
    "SD XL": {
        "cross_attention_dim": 40,
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 2),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 24,
    },
}
FORMS: Mapping[str, tuple[Recipe, dict[str, Any]]] = {
    "LoRA": (Recipe(), {}),
    "rsLoRA": (Recipe(rs=True), {"use_rslora": True}),
    "DoRA": (Recipe(dora="output"), {"use_dora": True}),
    "patterns": (
        Recipe(ranks={"attn2": 2}, alphas={"mid_block": 1.0}),
        {"rank_pattern": {r".*attn2.*": 2}, "alpha_pattern": {r"mid_block.*": 1.0}},
    ),
}


@cache
def miniature(family: str) -> nn.Module:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1}
    return UNet2DConditionModel(**sizes, norm_num_groups=8, **FAMILIES[family]).eval().requires_grad_(False)


def loss_of(unet: nn.Module) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    width, batch = unet.config.cross_attention_dim, 2
    extra = {}
    if unet.config.addition_embed_type:
        ids = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * batch)
        extra = {"added_cond_kwargs": {"text_embeds": torch.randn(batch, 24, generator=generator), "time_ids": ids}}
    noisy = torch.randn(batch, 4, 8, 8, generator=generator)
    text = torch.randn(batch, 7, width, generator=generator)
    y = unet(noisy, torch.tensor([300, 700]), text, **extra).sample
    return y, (y * torch.randn(y.shape, generator=generator)).mean()


def adapters_of(unet: nn.Module, options: dict[str, Any]) -> nn.Module:
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=RANK, lora_alpha=ALPHA, **{"target_modules": EVERYTHING, **options})
    return inject_adapter_in_model(config, deepcopy(unet))


def give_numbers(layer: TrainedLayer, theirs: nn.Module, generator: torch.Generator) -> None:
    """The same ones to both; none is zero, so that every gradient is there."""
    for mine, other in ((layer.down, theirs.lora_A), (layer.up, theirs.lora_B)):
        numbers = torch.randn(mine.shape, generator=generator) * SPREAD
        mine.data.copy_(numbers)
        other["default"].weight.data.copy_(numbers)
    if layer.magnitude is not None:
        shift = torch.randn(layer.magnitude.offset.shape, generator=generator) * 0.1
        layer.magnitude.offset.data.copy_(shift)
        their_magnitude = theirs.lora_magnitude_vector["default"].weight
        their_magnitude.data += shift.view(their_magnitude.shape)


def gradients(layer: TrainedLayer, theirs: nn.Module) -> list[tuple[Tensor, Tensor]]:
    pairs = [
        (layer.down.grad, theirs.lora_A["default"].weight.grad),
        (layer.up.grad, theirs.lora_B["default"].weight.grad),
    ]
    if layer.magnitude is not None:
        their_magnitude = theirs.lora_magnitude_vector["default"].weight.grad
        pairs.append((layer.magnitude.offset.grad, their_magnitude.flatten()))
    return pairs


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_output_and_every_gradient_equal_peft(family: str, form: str) -> None:
    """Otherwise a LoRA trained here would be another one elsewhere, and settings would not carry over."""
    recipe, options = FORMS[form]
    theirs = adapters_of(miniature(family), options)
    ours = deepcopy(miniature(family))
    trained = AdapterBank({"unet": ours}, family).add_trainable(
        "a", RANK, ALPHA, [rf"^{EVERYTHING}$"], "none", recipe=recipe
    )
    their_layers = {
        "unet." + path.replace(".", "_"): module for path, module in theirs.named_modules() if hasattr(module, "lora_A")
    }
    assert their_layers.keys() == trained.layers.keys()
    assert any(layer.down.ndim == 4 and layer.down.shape[2] == 3 for layer in trained.layers.values())
    generator = torch.Generator().manual_seed(1)
    for key, layer in trained.layers.items():
        give_numbers(layer, their_layers[key], generator)
    y, loss = loss_of(ours)
    expected, their_loss = loss_of(theirs)
    base, _ = loss_of(miniature(family))
    assert (base - expected).abs().max() > 0.1 * base.abs().max(), "the adapters act"
    assert (y - expected).abs().max() < 1e-5 * expected.abs().max()
    loss.backward()
    their_loss.backward()
    for key, layer in trained.layers.items():
        for mine, other in gradients(layer, their_layers[key]):
            assert (mine - other).abs().max() < 1e-5 * other.abs().max() + 1e-9, key


def test_pissa_takes_the_same_part_of_the_base_as_peft() -> None:
    """Signs are free, so what is left of the base is compared; near-equal singular values mix in fp32, its norm not."""
    theirs = adapters_of(miniature("SD 2"), {"init_lora_weights": "pissa", "target_modules": r".*to_[qkv]"})
    ours = deepcopy(miniature("SD 2"))
    bank = AdapterBank({"unet": ours}, "SD 2")
    trained = bank.add_trainable("a", RANK, ALPHA, [r"to_[qkv]$"], "none", recipe=Recipe(initial="pissa"))
    for path, module in theirs.named_modules():
        if hasattr(module, "lora_A"):
            layer = trained.layers["unet." + path.replace(".", "_")]
            left = module.base_layer.weight  # what peft keeps frozen
            mine = bank.components["unet"].get_submodule(path).weight - layer.scale * layer.up @ layer.down
            assert mine.norm().item() == pytest.approx(left.norm().item(), rel=1e-5)
            assert (mine - left).norm() < 1e-3 * left.norm()
    y, _ = loss_of(ours)
    expected, _ = loss_of(theirs)
    assert (y - expected).abs().max() < 1e-5 * expected.abs().max()
