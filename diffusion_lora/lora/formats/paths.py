"""Paths of layers inside Stable Diffusion: original block names to today's, flat names to dotted ones. No torch.

    input_blocks_4_1_transformer_blocks_0_attn1_to_q      down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q
    down_blocks_1_attentions_0_proj_in                    down_blocks.1.attentions.0.proj_in

Flat to dotted is ambiguous for models in general and not for these: their modules have few names, all listed here.
Which part of a model a path lies in is said by whoever asks; a path that is not Stable Diffusion's gives None.
"""

from __future__ import annotations

import re

_UNET_SEGMENTS = (
    r"down_blocks|up_blocks|mid_block|attentions|resnets|transformer_blocks|downsamplers|upsamplers|attn[12]"
    r"|to_q|to_k|to_v|to_out|ff|net|proj_in|proj_out|proj|conv_shortcut|time_emb_proj|conv_norm_out|conv_in|conv_out"
    r"|conv[12]|conv|time_embedding|add_embedding|linear_[12]|norm[123]|norm|\d+"
)
_TEXT_SEGMENTS = (
    r"encoder|layers|self_attn|[qkv]_proj|out_proj|mlp|fc[12]|layer_norm[12]|final_layer_norm|embeddings"
    r"|token_embedding|position_embedding|text_projection|\d+"
)
_UNET = re.compile(rf"(?:{_UNET_SEGMENTS})(?:_(?:{_UNET_SEGMENTS}))*")
_TEXT = re.compile(rf"(?:{_TEXT_SEGMENTS})(?:_(?:{_TEXT_SEGMENTS}))*")
_UNET_SEGMENT = re.compile(rf"(?:{_UNET_SEGMENTS})(?=_|$)")
_TEXT_SEGMENT = re.compile(rf"(?:{_TEXT_SEGMENTS})(?=_|$)")
_LONGEST = 200

_RESNET = {
    "in_layers_0": "norm1",
    "in_layers_2": "conv1",
    "out_layers_0": "norm2",
    "out_layers_3": "conv2",
    "emb_layers_1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
_WHOLE = {
    "input_blocks_0_0": "conv_in",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
    "out_0": "conv_norm_out",
    "out_2": "conv_out",
}
_MIDDLE = {"0": "mid_block_resnets_0", "1": "mid_block_attentions_0", "2": "mid_block_resnets_1"}
_ORIGINAL_BLOCK = re.compile(r"(input|output)_blocks_(\d{1,2})_([012])_(\w+)|middle_block_([012])_(\w+)")


def from_original(path: str) -> str | None:
    """Today's flat path of an original UNet path; None when it is not an original one.

    Level i of the UNet has the blocks 3i + 1 (3i when going up) onwards, two on the way down and three on the way up.
    """
    if path in _WHOLE:
        return _WHOLE[path]
    match = _ORIGINAL_BLOCK.fullmatch(path)
    if match is None:
        return None
    way, number, part, rest, middle_part, middle_rest = match.groups()
    if middle_part is not None:
        return f"{_MIDDLE[middle_part]}_{_RESNET.get(middle_rest, middle_rest)}"
    block = int(number)
    if way == "input":
        if part == "0" and rest == "op":
            return f"down_blocks_{block // 3 - 1}_downsamplers_0_conv"
        level, place = divmod(block - 1, 3)
        start = f"down_blocks_{level}"
    else:
        if part in "12" and rest == "conv":
            return f"up_blocks_{block // 3}_upsamplers_0_conv"
        level, place = divmod(block, 3)
        start = f"up_blocks_{level}"
    if part == "2":
        return None
    return f"{start}_{'resnets' if part == '0' else 'attentions'}_{place}_{_RESNET.get(rest, rest)}"


def is_unet_path(path: str) -> bool:
    """Whether a flat path is one of Stable Diffusion's UNet, as far as names can tell."""
    return len(path) < _LONGEST and _UNET.fullmatch(path) is not None


def is_text_path(path: str) -> bool:
    """Whether a flat path, `text_model` left out, is one of a CLIP text encoder."""
    return len(path) < _LONGEST and _TEXT.fullmatch(path) is not None


def dotted(path: str, *, text: bool) -> str:
    """`mid_block_attentions_0_proj_in` -> `mid_block.attentions.0.proj_in`; ValueError when it is no such path."""
    if not (is_text_path(path) if text else is_unet_path(path)):
        raise ValueError(f"{path} is no path of a {'CLIP text encoder' if text else 'Stable Diffusion UNet'}")
    return ".".join((_TEXT_SEGMENT if text else _UNET_SEGMENT).findall(path))


def kernel_of(path: str) -> int:
    """Side of the convolution kernel that a UNet layer of this flat path has: 3, or 1 for 1 x 1 and linear layers."""
    return 3 if re.search(r"(_conv[12]?|^conv_in|^conv_out)$", path) else 1
