"""kohya's names, the only ones every program reads: `lora_unet_<path with underscores>.lora_down.weight`.

    lora_unet_mid_block_attentions_0_proj_in.lora_down.weight          unet.mid_block_attentions_0_proj_in, down
    lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha         te.encoder_layers_0_self_attn_q_proj, alpha

Key logic only: what belongs together and what a name means. Shapes and tensors are `adapter`'s, legacy block names
(`input_blocks_...`) are not known yet.
"""

from __future__ import annotations

from collections.abc import Iterable

# SDXL's two text encoders say te1 and te2; the single one of SD 1 and 2 says te.
_PREFIXES = {
    "lora_unet_": "unet.",
    "lora_te_text_model_": "te.",
    "lora_te1_text_model_": "te1.",
    "lora_te2_text_model_": "te2.",
}
_SUFFIXES = {".lora_down.weight": "down", ".lora_up.weight": "up", ".alpha": "alpha"}


def parse(name: str) -> tuple[str, str] | None:
    """(layer key, "down" | "up" | "alpha") of a tensor's name, or None when it is not one of kohya's."""
    for suffix, part in _SUFFIXES.items():
        for prefix, component in _PREFIXES.items():
            if name.startswith(prefix) and name.endswith(suffix):
                path = name[len(prefix) : -len(suffix)]
                return (component + path, part) if path and "." not in path else None
    return None


def module_name(layer_key: str) -> str:
    """`unet.conv_in` -> `lora_unet_conv_in`; ValueError for a component kohya's format has no prefix for."""
    component, path = layer_key.split(".", 1)
    for prefix, start in _PREFIXES.items():
        if start == component + ".":
            return prefix + path
    raise ValueError(f"kohya's format has no name for the component {component!r} of {layer_key!r}")


def tensor_name(layer_key: str, part: str) -> str:
    """The inverse of `parse`; ValueError as in `module_name`."""
    return module_name(layer_key) + next(suffix for suffix, known in _SUFFIXES.items() if known == part)


def group(names: Iterable[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Tensor names by layer key and part, and the names that are not kohya's."""
    layers: dict[str, dict[str, str]] = {}
    unknown = []
    for name in names:
        match parse(name):
            case key, part:
                layers.setdefault(key, {})[part] = name
            case None:
                unknown.append(name)
    return layers, unknown
