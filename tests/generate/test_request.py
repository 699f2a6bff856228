"""Requests are checked where they are made, in sentences; the command line's LoRA argument is read on every system."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from diffusion_lora.errors import PromptError
from diffusion_lora.generate.request import LoraUse, Request, parse_lora_argument


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"width": 100}, r"width is 100 px; give a multiple of 8 .* \(96 or 104 is near\)"),
        ({"height": 8}, "height is 8 px"),
        ({"height": 8192}, "height is 8192 px"),
        ({"width": -128}, "width is -128 px"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1001}, "steps is 1001"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"guidance_scale": 0.5}, "guidance scale is 0.5"),
        ({"guidance_scale": math.nan}, "guidance scale is nan"),
        ({"sampler": "eular"}, "sampler 'eular' is unknown; say one of ddim, .*euler,"),
        ({"prompt": "a cat <lora:style:0.8>"}, r"<lora:style:0\.8> in a prompt is not read; .*--lora"),
    ],
)
def test_what_cannot_be_drawn_is_told_in_a_sentence(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PromptError, match=sentence):
        Request(**wrong)


@pytest.mark.parametrize(
    ("text", "path", "name", "strength", "text_strength"),
    [
        ("style.safetensors", "style.safetensors", "style", 1.0, None),
        ("style.safetensors:0.8", "style.safetensors", "style", 0.8, None),
        ("a/b/style.safetensors:-.5", "a/b/style.safetensors", "style", -0.5, None),
        ("style.safetensors:1:0", "style.safetensors", "style", 1.0, 0.0),
        ("style.safetensors:1e-1", "style.safetensors", "style", 0.1, None),
        (r"C:\x.safetensors", r"C:\x.safetensors", "x", 1.0, None),
        (r"C:\x.safetensors:0.8", r"C:\x.safetensors", "x", 0.8, None),
        (r"C:\loras\x.v1.safetensors:0.8:0.5", r"C:\loras\x.v1.safetensors", "x.v1", 0.8, 0.5),
        ("D:/x.safetensors:2", "D:/x.safetensors", "x", 2.0, None),
    ],
)
def test_a_lora_argument_is_a_file_and_its_strengths(
    text: str, path: str, name: str, strength: float, text_strength: float | None
) -> None:
    assert parse_lora_argument(text) == LoraUse(name, Path(path), strength, text_strength)


@pytest.mark.parametrize("text", ["", ":0.8", "style.safetensors:strong", "style.safetensors:", "x:nan", "x:inf"])
def test_a_lora_argument_that_is_none_is_told(text: str) -> None:
    with pytest.raises(PromptError, match="is not understood; give FILE"):
        parse_lora_argument(text)


@pytest.mark.parametrize("strength", [math.nan, math.inf])
def test_a_strength_is_finite(strength: float) -> None:
    with pytest.raises(PromptError, match="the strength of the LoRA x is"):
        LoraUse("x", Path("x"), strength)


def test_requests_infotext_and_sheets_need_no_torch() -> None:
    """The command line and the page read requests and pictures without waiting for torch."""
    modules = ("request", "infotext", "samplers", "picture", "sheet", "grid")
    code = "; ".join(f"import diffusion_lora.generate.{module}" for module in modules)
    code += "; import sys; print(sorted({'torch', 'diffusers', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("name", "value"), [("steps", 20.0), ("seed", "7"), ("width", 128.0), ("height", None)])
def test_counts_and_sizes_are_whole_numbers(name: str, value: object) -> None:
    """A form or a JSON that says 20.0 would fail somewhere in the sampler."""
    with pytest.raises(PromptError, match=f"{name} is .*; give a whole number"):
        Request(**{name: value})  # type: ignore[arg-type]
