"""For all tests: no network, cuda tests skip without a GPU, a real `diffusion-lora` process, a tiny real base."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Before any library reads it, and inherited by the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
# What is encoded here is not kept for the person at this machine, and nothing of theirs is used.
_CACHE = tempfile.TemporaryDirectory(prefix="diffusion-lora-cache-")
os.environ["DIFFUSION_LORA_CACHE"] = _CACHE.name

CHECKOUT = Path(__file__).resolve().parent.parent

CommandLine = Callable[..., "subprocess.CompletedProcess[str]"]


# Files go whole to one of the processes side by side: the long ones first, or the last of them keeps one core waiting.
_LONG = ("tests/ui/", "tests/judge/", "tests/cli/", "tests/train/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(_LONG))
    if any(item.get_closest_marker("cuda") for item in items):
        import torch

        if not torch.cuda.is_available():
            for item in items:
                if item.get_closest_marker("cuda"):
                    item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device"))


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the checkout."""
    return CHECKOUT


@pytest.fixture
def command_line(tmp_path: Path) -> CommandLine:
    """Run `diffusion-lora ARGUMENTS` as a process in an empty folder and give back status and output."""

    def call(*arguments: object, cwd: Path = tmp_path, **options: Any) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "diffusion_lora", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "COLUMNS": "200", "NO_COLOR": "1"}
        settings = {"capture_output": True, "text": True, "timeout": 300, "check": False, **options}
        return subprocess.run(command, cwd=cwd, env=environment, **settings)

    return call


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real Stable Diffusion of 64 px pictures with random weights, in diffusers' layout: 0.2 million parameters."""
    import torch

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
