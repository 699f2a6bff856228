"""Names of files and canonical layer keys, both ways."""

import pytest

from diffusion_lora.lora.formats import foreign, kohya


@pytest.mark.parametrize(
    ("name", "key", "part"),
    [
        ("lora_unet_conv_in.lora_down.weight", "unet.conv_in", "down"),
        ("lora_unet_up_blocks_1_upsamplers_0_conv.lora_up.weight", "unet.up_blocks_1_upsamplers_0_conv", "up"),
        ("lora_te_text_model_encoder_layers_9_mlp_fc1.alpha", "te.encoder_layers_9_mlp_fc1", "alpha"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc2.alpha", "te1.encoder_layers_0_mlp_fc2", "alpha"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc2.alpha", "te2.encoder_layers_0_mlp_fc2", "alpha"),
    ],
)
def test_kohyas_names_and_keys_are_each_others_inverse(name: str, key: str, part: str) -> None:
    assert kohya.parse(name) == (key, part)
    assert kohya.tensor_name(key, part) == name


@pytest.mark.parametrize(
    "name",
    [
        "lora_unet_.alpha",
        "lora_unet_conv_in.weight",
        "lora_unet_conv_in.lora_mid.weight",
        "unet.conv_in.lora_A.weight",
        "lora_unet_unet_down_blocks_0_to_k_lora_down.weight",  # a real bad conversion: no dot before lora_down
        "lora_unet_conv.in.alpha",
    ],
)
def test_what_is_not_kohyas_is_not_guessed(name: str) -> None:
    assert kohya.parse(name) is None


def test_a_component_without_a_prefix_cannot_be_named() -> None:
    with pytest.raises(ValueError, match="vae"):
        kohya.tensor_name("vae.conv_in", "down")


def test_groups_keep_strangers_apart() -> None:
    layers, unknown = kohya.group(
        ["lora_unet_a.alpha", "lora_unet_a.lora_up.weight", "b", "lora_te_text_model_c.alpha"]
    )
    assert layers == {
        "unet.a": {"alpha": "lora_unet_a.alpha", "up": "lora_unet_a.lora_up.weight"},
        "te.c": {"alpha": "lora_te_text_model_c.alpha"},
    }
    assert unknown == ["b"]


def test_unknown_names_are_not_called_anything() -> None:
    assert foreign.describe(["a", "b"]) is None
    assert foreign.describe([]) is None
