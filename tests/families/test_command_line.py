"""Bases at the command line: a single file is drawn with and named; what is not served is one sentence and status 2."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from diffusion_lora.generate.reading import read_request

CommandLine = Callable[..., "subprocess.CompletedProcess[str]"]


def test_a_single_file_is_drawn_with_another_autoencoder_and_its_family_is_shown(
    command_line: CommandLine, checkpoint: Callable[[str], Path], miniature: Callable[[str], Path], tmp_path: Path
) -> None:
    base, vae = checkpoint("sdxl-v"), miniature("sdxl") / "vae"
    done = command_line("generate", "a cat", "--base", base, "--vae", vae, "--steps", 2, "--seed", 1, "--out", "drawn")
    assert (done.returncode, done.stderr) == (0, "")
    shown, picture = done.stdout.splitlines()
    assert shown == "base: sdxl-v, a Stable Diffusion XL of width 80, v-prediction, zero terminal SNR"
    assert read_request(tmp_path / picture).base == str(base)


def test_what_is_not_served_is_one_sentence(command_line: CommandLine, tmp_path: Path) -> None:
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1, 9, 1, 1)}, tmp_path / "fill.safetensors")
    done = command_line("generate", "a cat", "--base", "fill.safetensors")
    assert done.returncode == 2
    assert done.stderr == (
        "error: the base fill.safetensors is an inpainting checkpoint, whose UNet also reads a mask, "
        "which is not served\n"
    )
