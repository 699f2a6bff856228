"""Blocks of a UNet by the names people use, on the full layouts of the real models, and as a filter for training."""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from diffusion_lora.errors import ConfigError
from diffusion_lora.lora.inject import find_sites, select_layers
from diffusion_lora.lora.unet_blocks import BASE, block_names, chosen_blocks

SD1: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8}
SDXL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "transformer_layers_per_block": (1, 2, 10),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@cache
def paths_of(name: str) -> list[str]:
    """Dotted paths of all layers of the full-size UNet, which takes no memory on the meta device."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**{"SD 1": SD1, "SD XL": SDXL}[name])
    return [site.path for site in find_sites({"unet": unet}).values()]


@pytest.mark.parametrize(
    ("name", "file", "carrying", "count"),
    [("SD 1", "sd1", "IN01 IN02 IN04 IN05 IN07 IN08 MID OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11", 26),
     ("SD XL", "sdxl", "IN04 IN05 IN07 IN08 MID OUT00 OUT01 OUT02 OUT03 OUT04 OUT05", 20)],
)  # fmt: skip
def test_names_are_those_of_the_original_blocks(name: str, file: str, carrying: str, count: int) -> None:
    """A list of 17 or 12 numbers means these blocks in every program that takes one."""
    names = block_names(paths_of(name))
    assert len(dict.fromkeys(names.values())) == count - 1
    with_attention = dict.fromkeys(block for path, block in names.items() if ".attn1." in path)
    assert list(with_attention) == carrying.split()
    folder = Path(os.environ.get("LORA_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "configs/keymaps"
    maps = sorted(folder.glob(f"*{file}*.json"))
    if not maps:
        pytest.skip(f"no key maps in {folder}")
    pairs = json.loads(maps[0].read_text())
    pairs = pairs.get("ldm_diffusers_keymap", pairs)
    checked = 0
    for original, path in pairs.items():
        if "diffusion_model." not in original or not original.endswith(".weight"):
            continue
        path = path.removeprefix("unet_").removeprefix("unet.").removesuffix(".weight")
        parts = original.split("diffusion_model.", 1)[1].split(".")
        expected = {"input_blocks": "IN", "output_blocks": "OUT", "middle_block": "MID"}.get(parts[0])
        if path in names and expected:
            assert names[path] == (expected if expected == "MID" else f"{expected}{int(parts[1]):02d}")
            checked += 1
    assert checked == len(names)


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        (["mid"], {BASE, "MID"}),
        (["DOWN", "out03"], {BASE, *(f"IN{i:02d}" for i in range(12)), "OUT03"}),
        ([1, *[0] * 15, 1], {BASE, "OUT11"}),
        ([0, 1, *[0] * 15], {"IN01"}),
        ([0, 1, *[0] * 24], {"IN00"}),
    ],
)
def test_words_names_and_lists_choose_blocks(blocks: list[Any], expected: set[str]) -> None:
    assert chosen_blocks(block_names(paths_of("SD 1")), blocks) == expected


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        (["middle"], ["lora.blocks", '"middle"', "down, mid, up, IN00"]),
        ([1] * 12, ["12 numbers", "this base takes 17 or 26", "BASE, IN01, IN02, IN04"]),
        ([0] * 17, ["leaves none of the"]),
    ],
)
def test_a_wrong_filter_is_one_sentence_that_says_what_there_is(blocks: list[Any], words: list[str]) -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD1)
    with pytest.raises(ConfigError) as caught:
        select_layers({"unet": unet}, blocks=blocks)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_filter_narrows_what_the_targets_choose(components: dict[str, nn.Module]) -> None:
    everything = select_layers(components, "everything")
    mid = select_layers(components, "everything", blocks=["mid"])
    assert set(mid) == {key for key in everything if key.startswith(("unet.mid_block", "te."))}
    carrying = len({block for path, block in block_names(_paths(components)).items() if ".attn1." in path})
    assert set(select_layers(components, blocks=[1] * (1 + carrying))) == set(select_layers(components))
    no_text = select_layers(components, blocks=[0, *[1] * carrying])
    assert set(no_text) == set(select_layers(components, "attention", "none"))


def test_the_wider_presets_are_what_they_say(components: dict[str, nn.Module]) -> None:
    sites = find_sites(components)
    attention = set(select_layers(components))
    with_mlp = set(select_layers(components, "attention+mlp", "attention+mlp"))
    assert with_mlp - attention == {key for key in sites if "_ff_net_" in key or "_mlp_fc" in key}
    assert set(select_layers(components, "everything", "none")) == {key for key in sites if key.startswith("unet.")}
    linear = select_layers(components, "linear", "none")
    assert all(site.weight.shape[2:] in ((), (1, 1)) for site in linear.values())
    assert "unet.time_embedding_linear_1" in linear


def _paths(components: dict[str, nn.Module]) -> list[str]:
    return [site.path for site in find_sites(components).values() if site.component == "unet"]
