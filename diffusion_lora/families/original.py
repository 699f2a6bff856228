"""Single checkpoint files in the original naming: which family one is, from its header alone. No torch.

    model.diffusion_model....                        the UNet
    first_stage_model....                            the autoencoder
    cond_stage_model.transformer....                 Stable Diffusion 1: CLIP, as transformers names it
    cond_stage_model.model....                       Stable Diffusion 2: OpenCLIP, in its own names
    conditioner.embedders.0.transformer...., .1.model....    XL: both

A family is what parts there are; sizes (widths, depths, channels) are read off the shapes, and what no shape tells
(heads, activations, the noise schedule) comes from the family's published configuration in `layouts`. Everything else
is refused by name. Reading the weights is `single_file`'s.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_lora.errors import AdapterFileError, BaseModelError
from diffusion_lora.layouts.configs import configs_of
from diffusion_lora.layouts.layout import Architecture
from diffusion_lora.lora.header import Header, read_header, shown

UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT: Mapping[str, Mapping[str, str]] = {
    "sd15": {"te": "cond_stage_model.transformer."},
    "sd2": {"te": "cond_stage_model.model."},
    "sdxl": {"te1": "conditioner.embedders.0.transformer.", "te2": "conditioner.embedders.1.model."},
}
"""Where each family keeps its text encoders; those in `.model.` have OpenCLIP's names."""

Config = dict[str, Any]
_FIRST = UNET + "input_blocks.0.0.weight"
_FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
_CHANNELS = {
    9: "an inpainting checkpoint, whose UNet also reads a mask",
    8: "an editing checkpoint (InstructPix2Pix), whose UNet also reads the picture to edit",
    5: "a depth checkpoint, whose UNet also reads a depth map",
    7: "an upscaler, whose UNet also reads the small picture",
}
# (what stands in a tensor's name, what the file is); the first that is found counts.
_OTHERS = (
    (r"^control_model\.|^controlnet_", "a ControlNet"),
    (r"joint_blocks\.", "Stable Diffusion 3"),
    (r"double_blocks\.|single_transformer_blocks\.", "Flux, or a model built like it"),
    (r"\.time_stack\.|\.time_mixer", "Stable Video Diffusion"),
    (r"^(effnet|backbone|down_blocks\.\d+\.\d+\.)", "Stable Cascade"),
    (r"lora_(down|up|A|B)\b|^lora_(unet|te)|\.hada_w1|\.lokr_w", "a LoRA, which is drawn with by --lora"),
    (r"^(emb_params|string_to_param|clip_[lg])$", "a textual inversion"),
    (r"^down_blocks\.0\.|^unet\.", "a UNet in diffusers' names: give the diffusers folder it belongs to"),
    (r"^(first_stage_model\.|vae\.)?(encoder|decoder)\.", "an autoencoder alone, which goes into model.vae (--vae)"),
    (r"text_model\.|resblocks\.", "a text encoder alone"),
)


@dataclass(frozen=True)
class Recognised:
    """What a checkpoint is: its layout's name, and the configuration of every part with its own sizes.

    `configs` has "unet", the text encoders, "scheduler", and "vae" unless the file holds none; `pad_tokens` is by text
    encoder. `prediction_is_told`: the file itself says what it predicts.
    """

    path: Path
    header: Header
    layout_name: str
    architecture: Architecture
    configs: Mapping[str, Config]
    pad_tokens: Mapping[str, str]
    prediction_is_told: bool
    text_prefixes: Mapping[str, str] = field(default_factory=dict)


def recognise(path: Path) -> Recognised:
    """The family of a checkpoint and the sizes of its parts. Raises BaseModelError for whatever is not served."""
    return recognise_header(header_of(path, "the base"))


def header_of(path: Path, what: str) -> Header:
    """The header of a checkpoint. Raises BaseModelError, beginning with `what`, for a pickle or a damaged file."""
    try:
        return read_header(path)
    except AdapterFileError as error:
        raise BaseModelError(f"{what} {error}") from None


def recognise_header(header: Header) -> Recognised:
    """`recognise` for a header that was read."""
    path = header.path
    name = _family(path, header)
    _refuse_quantised(path, header)
    tables = configs_of(name)
    pad_tokens = tables.pop("pad_tokens")
    try:
        tables["unet"] |= unet_sizes(header, tables["unet"])
        if any(tensor.startswith(VAE + "decoder.") for tensor in header.tensors):
            tables["vae"] |= vae_sizes(header, VAE)
        else:
            del tables["vae"]
        for part, prefix in TEXT[name].items():
            sizes = clip_sizes if prefix.endswith("transformer.") else open_clip_sizes
            tables[part] |= sizes(header, prefix, tables[part])
        if name == "sdxl":
            _match_sizes_of_ids(tables)
    except (KeyError, IndexError, ValueError) as error:
        raise BaseModelError(
            f"the base {path} begins like {name} and is not built like it ({error} is missing or of another shape): "
            "it is cut down or merged from unlike parts; give a diffusers folder instead"
        ) from None
    told = _tell_prediction(header, tables["scheduler"])
    side = re.fullmatch(r"(\d+)x(\d+)", header.metadata.get("modelspec.resolution", ""))
    if side:
        tables["unet"]["sample_size"] = max(int(side[1]), int(side[2])) // 8
    elif name == "sd2" and tables["scheduler"]["prediction_type"] == "v_prediction":
        tables["unet"]["sample_size"] = 96  # those that predict velocity are of 768 px
    architecture: Architecture = "sdxl" if name == "sdxl" else "sd"
    return Recognised(path, header, name, architecture, tables, pad_tokens, told, TEXT[name])


def vae_sizes(header: Header, prefix: str) -> Config:
    """The sizes of an autoencoder in original names. KeyError when it is none."""
    levels = _count(header, prefix + r"decoder\.up\.(\d+)\.")
    channels = [_shape(header, f"{prefix}encoder.down.{i}.block.0.conv2.weight")[0] for i in range(levels)]
    if not channels:
        raise KeyError(prefix + "decoder.up.0")
    return {
        "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": _count(header, prefix + r"encoder\.down\.0\.block\.(\d+)\."),
        "latent_channels": _shape(header, prefix + "decoder.conv_in.weight")[1],
    }


def unet_sizes(header: Header, published: Config) -> Config:
    """The sizes of a UNet in original names. KeyError or ValueError when it is not built as such UNets are."""
    blocks = _count(header, re.escape(UNET) + r"input_blocks\.(\d+)\.")
    levels: list[list[int]] = [[]]
    for block in range(1, blocks):
        if f"{UNET}input_blocks.{block}.0.op.weight" in header.tensors:
            levels.append([])
        else:
            levels[-1].append(block)
    if len({len(level) for level in levels}) != 1:
        raise ValueError("input_blocks")
    channels = [_shape(header, f"{UNET}input_blocks.{level[0]}.0.in_layers.2.weight")[0] for level in levels]
    depths = [
        _count(header, re.escape(f"{UNET}input_blocks.{level[0]}.1.") + r"transformer_blocks\.(\d+)\.")
        for level in levels
    ]
    middle = _count(header, re.escape(UNET) + r"middle_block\.1\.transformer_blocks\.(\d+)\.")
    start = f"{UNET}middle_block.1."
    sizes: Config = {
        "in_channels": _shape(header, _FIRST)[1],
        "out_channels": _shape(header, UNET + "out.2.weight")[0],
        "block_out_channels": channels,
        "layers_per_block": len(levels[0]),
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        "cross_attention_dim": _shape(header, start + "transformer_blocks.0.attn2.to_k.weight")[1],
        "use_linear_projection": len(_shape(header, start + "proj_in.weight")) == 2,
        # Levels without attention are counted as 1, as the published configurations do; the last one is the middle's.
        "transformer_layers_per_block": [depth or 1 for depth in depths[:-1]] + [middle],
    }
    if isinstance(published["attention_head_dim"], list):  # heads a level, all of one width
        width = published["block_out_channels"][0] // published["attention_head_dim"][0]
        sizes["attention_head_dim"] = [max(1, channel // width) for channel in channels]
    if "addition_embed_type" in published:
        sizes["projection_class_embeddings_input_dim"] = _shape(header, UNET + "label_emb.0.0.weight")[1]
    return sizes


def clip_sizes(header: Header, prefix: str, published: Config) -> Config:
    """The sizes of a CLIP text encoder as transformers names it."""
    start = prefix + ("text_model." if any(n.startswith(prefix + "text_model.") for n in header.tensors) else "")
    return _text_sizes(
        published,
        _shape(header, start + "embeddings.token_embedding.weight"),
        _shape(header, start + "embeddings.position_embedding.weight"),
        _shape(header, start + "encoder.layers.0.mlp.fc1.weight"),
        _count(header, re.escape(start) + r"encoder\.layers\.(\d+)\."),
    )


def open_clip_sizes(header: Header, prefix: str, published: Config) -> Config:
    """The sizes of an OpenCLIP text encoder.

    Of Stable Diffusion 2's the last layer is left out: it was trained on the one before, with the final norm.
    """
    sizes = _text_sizes(
        published,
        _shape(header, prefix + "token_embedding.weight"),
        _shape(header, prefix + "positional_embedding"),
        _shape(header, prefix + "transformer.resblocks.0.mlp.c_fc.weight"),
        _count(header, re.escape(prefix) + r"transformer\.resblocks\.(\d+)\."),
    )
    if prefix == TEXT["sd2"]["te"]:
        sizes["num_hidden_layers"] -= 1
    elif (name := prefix + "text_projection") in header.tensors:
        sizes["projection_dim"] = _shape(header, name)[1]
    return sizes


def _text_sizes(
    published: Config, tokens: tuple[int, ...], places: tuple[int, ...], inner: tuple[int, ...], layers: int
) -> Config:
    head_width = published["hidden_size"] // published["num_attention_heads"]
    return {
        "vocab_size": tokens[0],
        "hidden_size": tokens[1],
        "max_position_embeddings": places[0],
        "intermediate_size": inner[0],
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, tokens[1] // head_width),
    }


def _match_sizes_of_ids(tables: Mapping[str, Config]) -> None:
    """The six numbers of size and crop share what the pooled text leaves of the added embedding's input."""
    unet = tables["unet"]
    rest = unet["projection_class_embeddings_input_dim"] - tables["te2"]["projection_dim"]
    if rest <= 0 or rest % 6:
        raise ValueError("label_emb.0.0.weight")
    unet["addition_time_embed_dim"] = rest // 6


def _family(path: Path, header: Header) -> str:
    """The layout's name. Raises BaseModelError, saying what the file is instead."""
    names = header.tensors
    for pattern, what in _OTHERS[:5]:
        if any(re.search(pattern, name) for name in names):
            raise BaseModelError(f"the base {path} is {what}, which is not served")
    if _FIRST not in names:
        for pattern, what in _OTHERS[5:]:
            if any(re.search(pattern, name) for name in names):
                raise BaseModelError(f"the base {path} is {what}")
        first = shown(next(iter(names))) if names else "nothing"
        raise BaseModelError(f"the base {path} is no checkpoint of Stable Diffusion: its first tensor is {first}")
    channels = _shape(header, _FIRST)[1:2]
    if channels != (4,):
        count = channels[0] if channels else 0
        what = _CHANNELS.get(count, f"a checkpoint whose UNet reads {count} channels")
        raise BaseModelError(f"the base {path} is {what}, which is not served")
    known = [prefix for parts in TEXT.values() for prefix in parts.values()]
    starts = {prefix for prefix in known if any(name.startswith(prefix) for name in names)}
    if any(name.startswith("conditioner.embedders.0.model.") for name in names):
        raise BaseModelError(
            f"the base {path} is the refiner of Stable Diffusion XL, which does not draw by itself: give the XL base"
        )
    has_ids = UNET + "label_emb.0.0.weight" in names
    for name, parts in TEXT.items():
        if starts >= set(parts.values()) and has_ids == (name == "sdxl"):
            return name
    if starts and has_ids and _is_unclip(names):
        raise BaseModelError(f"the base {path} is Stable Diffusion 2's unCLIP, which reads pictures; it is not served")
    kind = "XL's two text encoders" if has_ids else "its text encoder"
    raise BaseModelError(f"the base {path} lacks {kind}: it holds a UNet alone; give a whole checkpoint")


def _is_unclip(names: Mapping[str, object]) -> bool:
    """Whether these are the tensors of an unCLIP model, which conditions on an embedded picture."""
    return any(name.startswith(("noise_augmentor.", "embedder.")) for name in names)


def _refuse_quantised(path: Path, header: Header) -> None:
    for name, info in header.tensors.items():
        odd = name.startswith((UNET, VAE)) and info.dtype not in _FLOATS
        if odd or name.endswith((".scale_weight", "scaled_fp8")):
            raise BaseModelError(
                f"the base {path} is quantised ({shown(name)} is {info.dtype}), which is not served: "
                "take the fp16, bf16 or fp32 file"
            )


def _tell_prediction(header: Header, scheduler: Config) -> bool:
    """Set what the file says of its prediction; whether it says anything.

    Empty tensors named `v_pred` and `ztsnr` are how trainers of XL mark velocity and a schedule that ends in pure noise
    (Lin et al. 2023); modelspec says "v". A schedule that ends in pure noise is drawn from its very end.
    """
    said = header.metadata.get("modelspec.prediction_type", "").lower()
    v_pred = "v_pred" in header.tensors or said in ("v", "v_prediction")
    if v_pred:
        scheduler["prediction_type"] = "v_prediction"
    if "ztsnr" in header.tensors:
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return v_pred or said in ("epsilon", "eps")


def _shape(header: Header, name: str) -> tuple[int, ...]:
    return header.tensors[name].shape


def _count(header: Header, pattern: str) -> int:
    """One more than the highest number that the pattern finds at the start of a name; 0 where there is none."""
    compiled = re.compile(pattern)
    return max((int(found[1]) + 1 for name in header.tensors if (found := compiled.match(name))), default=0)
