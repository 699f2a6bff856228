"""Tiny real models of the kind that adapters touch, adapters that fit them, and the folder of real LoRA files."""

import os
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from diffusion_lora.lora.adapter import Adapter, AdapterLayer
from diffusion_lora.lora.inject import select_layers

TEXT_WIDTH = 16


@cache
def tiny_unet(text_width: int = TEXT_WIDTH) -> nn.Module:
    """A UNet with attention on both levels and resamplers between them; random weights, eval mode."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=text_width,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )
    return unet.eval()


@cache
def tiny_text_encoder() -> nn.Module:
    """A CLIP text encoder of two layers; random weights, eval mode."""
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=99,
        hidden_size=TEXT_WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=97,
        eos_token_id=98,
        pad_token_id=98,
    )
    return CLIPTextModel(config).eval()


@pytest.fixture
def components() -> dict[str, nn.Module]:
    return {"unet": deepcopy(tiny_unet()), "te": deepcopy(tiny_text_encoder())}


@pytest.fixture
def other_family() -> dict[str, nn.Module]:
    """The same architecture, but its cross-attention reads a text of another width."""
    return {"unet": deepcopy(tiny_unet(text_width=24))}


@pytest.fixture
def make_adapter() -> Callable[..., Adapter]:
    """Makes adapters that fit given components, both matrices non-zero, so that every layer has an effect."""

    def make(
        components: dict[str, nn.Module],
        *,
        rank: int = 4,
        alpha: float = 2.0,
        targets: str = "attention",
        seed: int = 0,
        size: float = 0.3,
    ) -> Adapter:
        generator = torch.Generator().manual_seed(seed)
        layers = {}
        for key, site in select_layers(components, targets).items():
            out, kernel = site.weight.shape[0], site.weight.shape[2:]
            down = torch.randn(rank, *site.weight.shape[1:], generator=generator) * size
            up = torch.randn(out, rank, *(1 for _ in kernel), generator=generator) * size
            layers[key] = AdapterLayer(down, up, alpha)
        return Adapter(layers, {})

    return make


@pytest.fixture(scope="session")
def lora_data() -> Path:
    """The folder `loras` of the real test data; tests that need it are skipped where it is absent."""
    default = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("LORA_TEST_DATA", default)) / "loras"
    if not folder.is_dir():
        pytest.skip(f"no real LoRA files in {folder}; LORA_TEST_DATA names the data folder")
    return folder
