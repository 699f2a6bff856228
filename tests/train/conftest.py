"""A tiny real Stable Diffusion with random weights, a small set of pictures, and the configuration that joins them."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lora.config import TrainConfig, parse_train_config

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion of 64 px pictures, saved in diffusers' layout: 0.2 million parameters."""
    from diffusion_lora.families.quiet import quiet

    quiet()
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    end = len(names) - 1
    text = CLIPTextConfig(
        vocab_size=len(names),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
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
    folder = tmp_path_factory.mktemp("bases") / "tiny-sd"
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[], model_max_length=77),
        unet=unet,
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six pictures of noise in six captions."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, word in enumerate(("red", "blue", "green", "grey", "pink", "gold")):
        pixels = np.random.default_rng(i).integers(0, 255, (70, 64 + i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{word}.jpg", quality=95)
        (folder / f"{word}.txt").write_text(f"a {word} thing", encoding="utf-8")
    return folder


@pytest.fixture
def config(base: Path, pictures: Path) -> TrainConfig:
    """Three steps on the CPU with one thread; tests change what they are about by `with_settings`."""
    return parse_train_config(config_text(base, pictures), source="test")


def config_text(base: Path, pictures: Path) -> str:
    return f"""
        [model]
        base = '{base}'
        [dataset]
        path = '{pictures}'
        caption_dropout = 0.2
        [lora]
        rank = 4
        alpha = 4.0
        [train]
        steps = 3
        batch_size = 2
        device = "cpu"
        threads = 1
        [optimizer]
        lr = 1e-2
        text_lr = 1e-3
        warmup_steps = 2
    """
