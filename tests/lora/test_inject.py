"""Which layers the presets and patterns choose, on a real UNet and text encoder."""

import pytest
from torch import nn

from diffusion_lora.errors import ConfigError
from diffusion_lora.lora.inject import find_sites, layer_key, select_layers


def test_keys_are_flat_paths_and_leave_out_the_text_model_level() -> None:
    """transformers nests CLIP in a `text_model` in some versions only: a key must not depend on it."""
    assert layer_key("unet", "down_blocks.0.attentions.0.proj_in") == "unet.down_blocks_0_attentions_0_proj_in"
    flat = "te.encoder_layers_0_self_attn_q_proj"
    assert layer_key("te", "text_model.encoder.layers.0.self_attn.q_proj") == flat
    assert layer_key("te", "encoder.layers.0.self_attn.q_proj") == flat


def test_attention_is_all_eight_projections_of_every_block_and_four_in_the_text_encoder(
    components: dict[str, nn.Module],
) -> None:
    keys = list(select_layers(components))
    blocks = [name for name, _ in components["unet"].named_modules() if name.endswith("transformer_blocks.0")]
    assert sum(key.startswith("unet.") for key in keys) == 8 * len(blocks)
    assert sum(key.startswith("te.") for key in keys) == 4 * 2
    assert "unet.down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0" in keys
    assert "te.encoder_layers_1_self_attn_out_proj" in keys


def test_qv_is_two_projections_of_each_attention_in_the_unet(components: dict[str, nn.Module]) -> None:
    keys = list(select_layers(components, "qv", "none"))
    assert len(keys) * 2 == len(select_layers(components, "attention", "none"))
    assert all(key.endswith(("to_q", "to_v")) for key in keys)


def test_wide_adds_everything_between_the_first_and_the_last_convolution(components: dict[str, nn.Module]) -> None:
    wide = set(select_layers(components, "wide", "none"))
    everything = {key for key in find_sites(components) if key.startswith("unet.")}
    assert everything - wide == {"unet.conv_in", "unet.conv_out"}


def test_no_text_targets_leave_the_text_encoder_alone(components: dict[str, nn.Module]) -> None:
    assert all(key.startswith("unet.") for key in select_layers(components, "attention", "none"))


def test_own_patterns_choose_layers_of_the_unet(components: dict[str, nn.Module]) -> None:
    keys = list(select_layers(components, [r"mid_block.*attn2\.to_[kv]$", r"^conv_in$"], "none"))
    assert keys == [
        "unet.conv_in",
        "unet.mid_block_attentions_0_transformer_blocks_0_attn2_to_k",
        "unet.mid_block_attentions_0_transformer_blocks_0_attn2_to_v",
    ]


@pytest.mark.parametrize(
    ("targets", "text_targets", "words"),
    [
        ("atention", "attention", ["lora.targets", "atention", '"wide"']),
        ("attention", "all", ["lora.text_targets", "all", '"none"']),
        ([r"to_q$", r"to_w$"], "attention", ["to_w$", "matches no layer", "whose layers read"]),
        (["(to_q"], "attention", ["(to_q", "not a regular expression"]),
        ([], "attention", ["empty"]),
    ],
)
def test_wrong_targets_are_one_sentence_with_the_value(
    components: dict[str, nn.Module], targets: str | list[str], text_targets: str, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        select_layers(components, targets, text_targets)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_preset_that_finds_nothing_is_an_error() -> None:
    with pytest.raises(ConfigError, match="matches no layer of this base"):
        select_layers({"unet": nn.Sequential(nn.Linear(2, 2))}, "attention", "none")
