"""Real, tiny Stable Diffusion folders with random weights, as diffusers itself saves them."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

# Before the hub library is imported: no test asks the network, whatever the machine allows.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a miniature of a family ("sd15", "sd2-v", ...), made when first asked for."""
    from diffusion_lora.families.quiet import quiet
    from tests.families.miniatures import write_folder

    parent = tmp_path_factory.mktemp("miniatures")
    quiet()
    return cache(lambda kind: write_folder(parent, kind))


@pytest.fixture(scope="session")
def checkpoint(miniature: Callable[[str], Path]) -> Callable[[str], Path]:
    """The same miniature as a single file in the original naming, a tokenizer beside it."""
    from tests.families.miniatures import write_checkpoint

    def write(kind: str) -> Path:
        folder = miniature(kind)
        return write_checkpoint(folder, folder.parent / "files" / f"{kind}.safetensors")

    return cache(write)


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion of 64 px pictures and cross-attention width 32, written by `save_pretrained`."""
    from diffusion_lora.families.quiet import quiet

    quiet()
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    letters = "abcdefghijklmnopqrstuvwxyz,."
    names = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[], model_max_length=77)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(names),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=len(names) - 2,
            eos_token_id=len(names) - 1,
            pad_token_id=len(names) - 1,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        sample_size=64,
    )
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    folder = tmp_path_factory.mktemp("bases") / "tiny-sd"
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder
