"""kohya's names, the only ones every program reads: `lora_unet_<path with underscores>.lora_down.weight`.

    unet.mid_block_attentions_0_proj_in       lora_unet_mid_block_attentions_0_proj_in
    te.encoder_layers_0_self_attn_q_proj      lora_te_text_model_encoder_layers_0_self_attn_q_proj
    te2.text_projection                       lora_te2_text_projection

For writing; every spelling is read in `names`. Blocks are named as diffusers names them, which the loaders of SDXL
files accept beside the original names.
"""

from __future__ import annotations

# SDXL's two text encoders say te1 and te2; the single one of SD 1 and 2 says te, or InvokeAI skips its layers.
_PREFIXES = {"unet": "lora_unet_", "te": "lora_te_", "te1": "lora_te1_", "te2": "lora_te2_"}


def module_name(layer_key: str) -> str:
    """`unet.conv_in` -> `lora_unet_conv_in`; ValueError for a component kohya's format has no prefix for."""
    component, path = layer_key.split(".", 1)
    if component not in _PREFIXES:
        raise ValueError(f"kohya's format has no name for the component {component!r} of {layer_key!r}")
    nested = "" if component == "unet" or path == "text_projection" else "text_model_"
    return f"{_PREFIXES[component]}{nested}{path}"
