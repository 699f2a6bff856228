"""Each family at full size, without a weight: the names of its layers, to and fro, and a checkpoint by its header.

The oracle is a table of all names of a real checkpoint beside diffusers' names for them, in the test data.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from diffusion_lora.families.original import recognise_header
from diffusion_lora.layouts.configs import CONFIGURED, configs_of
from diffusion_lora.lora.formats import kohya, paths, peft
from diffusion_lora.lora.formats.names import parse
from diffusion_lora.lora.header import Header, TensorInfo
from diffusion_lora.lora.inject import find_sites, layer_key

KEYMAPS = {"sd15": "sd1", "sd2": "sd2", "sdxl": "sdxl"}


@pytest.fixture(scope="module", params=CONFIGURED)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def models(family: str) -> dict[str, nn.Module]:
    """UNet, text encoders and autoencoder of the published configuration, on the meta device."""
    from diffusion_lora.families.quiet import quiet

    quiet()
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    configs = configs_of(family)
    with torch.device("meta"):
        models: dict[str, nn.Module] = {
            "unet": UNet2DConditionModel(**configs["unet"]),
            "vae": AutoencoderKL(**configs["vae"]),
        }
        for part in configs["pad_tokens"]:
            kind = CLIPTextModelWithProjection if part == "te2" else CLIPTextModel
            models[part] = kind(CLIPTextConfig(**configs[part]))
    return models


@pytest.fixture(scope="module")
def keymap(family: str) -> Mapping[str, str]:
    """Names of a real checkpoint of the family -> diffusers' names."""
    data = Path(os.environ.get("LORA_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
    file = data / "configs" / "keymaps" / f"stable_diffusion_{KEYMAPS[family]}.json"
    if not file.is_file():
        pytest.skip(f"there is no {file}; LORA_TEST_DATA names the data folder")
    return json.loads(file.read_text(encoding="utf-8"))["ldm_diffusers_keymap"]


def without_autoencoder(models: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    return {part: model for part, model in models.items() if part != "vae"}


def test_every_layers_key_maps_both_ways_in_both_formats(models: dict[str, nn.Module]) -> None:
    sites = find_sites(without_autoencoder(models))
    spelled: set[str] = set()
    for key, site in sites.items():
        component = "te" if key.startswith("te1.") else site.component  # diffusers numbers the second one only
        flat, dotted = kohya.module_name(key), peft.module_name(key)
        back = parse(f"{flat}.lora_down.weight")
        assert back is not None
        assert back.key == key
        back = parse(f"{dotted}.lora_A.weight")
        assert back is not None
        assert back.key == key.replace(site.component, component, 1)
        plain = site.path.removeprefix("text_model.")
        assert dotted.split(".", 1)[1].removeprefix("text_model.") == plain, "the very path in the model"
        assert paths.dotted(key.split(".", 1)[1], text=site.component != "unet") == plain
        spelled |= {flat, dotted}
    assert len(spelled) == 2 * len(sites), "no two layers share a name"
    assert len(sites) > 300


def test_a_checkpoints_names_are_those_layers(models: dict[str, nn.Module], keymap: Mapping[str, str]) -> None:
    """sgm names of LoRA files (`input_blocks_4_1_...`) lead to the same keys as diffusers' names."""
    sites = find_sites({"unet": models["unet"]})
    found = set()
    for original, theirs in keymap.items():
        module, _, kind = original.rpartition(".")
        if not original.startswith("model.diffusion_model.") or kind != "weight":
            continue
        flat = module.removeprefix("model.diffusion_model.").replace(".", "_")
        expected = layer_key("unet", theirs.removeprefix("unet_").removesuffix(".weight"))
        assert f"unet.{paths.from_original(flat)}" == expected
        if expected in sites:
            found.add(expected)
    assert found == set(sites)


def shapes(models: Mapping[str, nn.Module], keymap: Mapping[str, str]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a real checkpoint's tensors: the table's names, the published configuration's shapes."""
    prefixes = {"unet_": "unet", "vae_": "vae", "te_": "te", "te0_": "te1", "te1_": "te2"}
    tensors = {
        f"{part}.{name.removeprefix('text_model.')}": tuple(tensor.shape)
        for part, model in models.items()
        for name, tensor in model.state_dict().items()
    }
    for original, theirs in keymap.items():
        prefix = next(prefix for prefix in prefixes if theirs.startswith(prefix))
        name = f"{prefixes[prefix]}.{theirs.removeprefix(prefix).removeprefix('text_model.')}"
        if (shape := tensors.get(name)) is not None:
            yield original, shape[::-1] if original.endswith("text_projection") else shape


def test_a_real_checkpoints_header_gives_the_published_configuration(
    family: str, models: dict[str, nn.Module], keymap: Mapping[str, str]
) -> None:
    tensors = {name: TensorInfo("F16", shape, 0, 0) for name, shape in shapes(models, keymap)}
    if family == "sd2":  # the checkpoint has one layer more than is read
        last = "cond_stage_model.model.transformer.resblocks."
        tensors |= {
            name.replace(f"{last}22.", f"{last}23."): info for name, info in tensors.items() if f"{last}22." in name
        }
    found = recognise_header(Header(Path("checkpoint.safetensors"), tensors, {}, 0))
    published = configs_of(family)
    published.pop("pad_tokens")
    assert found.layout_name == family
    for part, config in published.items():
        mine = dict(found.configs[part])
        if part == "unet":
            depths = mine.pop("transformer_layers_per_block")
            assert depths == config.pop("transformer_layers_per_block", [1, 1, 1, 1])
            assert mine.pop("use_linear_projection") == config.pop("use_linear_projection", False)
        assert mine == config
