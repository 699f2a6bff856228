"""Our kohya file under the naming rule of every loader: each finds each layer, none drops or refuses the file.

The rules are those of the loaders' sources, written out here; how strong each then finds the layers is tested beside
the formats (`test_formats_files`).
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from diffusion_lora.lora.adapter import Adapter, LowRank, write_adapter
from diffusion_lora.lora.header import read_header

UNET = (
    "down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k",
    "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0",
    "down_blocks_1_attentions_0_transformer_blocks_0_ff_net_0_proj",
    "mid_block_attentions_0_proj_in",
    "up_blocks_0_resnets_2_conv1",
    "down_blocks_0_downsamplers_0_conv",
)
TEXT = ("encoder_layers_3_self_attn_q_proj", "encoder_layers_3_mlp_fc1")
FAMILIES = {"SD 1": (768, ("te",)), "SD 2": (1024, ("te",)), "SD XL": (2048, ("te1", "te2"))}

_SUFFIX = re.compile(r"\.(lora_down\.weight|lora_up\.weight|alpha)$")
_DIFFUSERS_UNET = re.compile(
    r"lora_unet_(down_blocks_\d+|mid_block|up_blocks_\d+)_"
    r"(attentions_\d+_(proj_in|proj_out|transformer_blocks_\d+_(attn[12]_to_(q|k|v|out_0)|ff_net_(0_proj|2)))"
    r"|resnets_\d+_(conv1|conv2|conv_shortcut|time_emb_proj)|(down|up)samplers_0_conv)"
)
_CLIP = r"text_model_encoder_layers_\d+_(self_attn_(q|k|v|out)_proj|mlp_fc[12])"


def modules(names: list[str]) -> set[str]:
    """What is left of each name when a suffix that all know is taken off."""
    assert all(_SUFFIX.search(name) for name in names)
    return {_SUFFIX.sub("", name) for name in names}


def a1111(names: list[str], family: str) -> int:
    """Splits at the first dot; the rest must be a suffix, the module one of its own map."""
    assert all(name.partition(".")[2] in ("lora_down.weight", "lora_up.weight", "alpha") for name in names)
    return comfy(names, family)


def comfy(names: list[str], family: str) -> int:
    """ComfyUI's and Forge's key map: diffusers names in the UNet, one CLIP as lora_te_, two as lora_te1_, lora_te2_."""
    text = r"lora_te[12]_" if family == "SD XL" else r"lora_te_"
    known = [_DIFFUSERS_UNET, re.compile(text + _CLIP)]
    return sum(not any(pattern.fullmatch(module) for pattern in known) for module in modules(names))


def forge(names: list[str], family: str) -> int:
    """Drops the whole file when more than 12 names are unknown: none may be."""
    return comfy(names, family)


def invoke(names: list[str], family: str) -> int:
    """SDXL: any other prefix raises. SD: the text encoder is lora_te_ and nothing else."""
    prefixes = ("lora_unet_", "lora_te1_", "lora_te2_") if family == "SD XL" else ("lora_unet_", "lora_te_")
    return sum(not name.startswith(prefixes) for name in names)


def kohya(names: list[str], family: str) -> int:
    """The names of its own modules, and an alpha for each."""
    found = modules(names)
    assert all(f"{module}.alpha" in names for module in found)
    return comfy(names, family)


LOADERS: Mapping[str, Callable[[list[str], str], int]] = {
    "A1111": a1111, "Forge": forge, "ComfyUI": comfy, "InvokeAI": invoke, "sd-scripts": kohya,
}  # fmt: skip


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_is_found(family: str, loader: str, tmp_path: Path) -> None:
    """A name that one of them does not know is a layer lost in silence, or a LoRA that is refused there."""
    width, text = FAMILIES[family]
    layers = {}
    for path in UNET:
        kernel = (3, 3) if "conv" in path else ()
        inputs = width if path.endswith("attn2_to_k") else 8
        down, up = torch.randn(2, inputs, *kernel), torch.randn(12, 2, *(1 for _ in kernel))
        layers[f"unet.{path}"] = LowRank(down, up, 1.0)
    layers |= {f"{part}.{path}": LowRank(torch.randn(2, 8), torch.randn(8, 2), 1.0) for part in text for path in TEXT}
    write_adapter(Adapter(layers, {}), tmp_path / "a.safetensors")
    header = read_header(tmp_path / "a.safetensors")
    assert len(header.tensors) == 3 * len(layers)
    assert LOADERS[loader](list(header.tensors), family) == 0
    assert header.metadata["ss_base_model_version"].startswith("sdxl_") == (family == "SD XL")
