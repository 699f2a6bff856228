"""Miniatures of every served family: real models with the full-size ones' key names, small widths and random weights.

    folder = write_folder(tmp, "sdxl")                      as diffusers itself saves it
    write_checkpoint(folder, tmp / "sdxl.safetensors")      the same weights in a single file, in the original naming

The way back to the original names stands here on its own, apart from the code that reads them.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffusion_lora.layouts.configs import configs_of

SIDE_PX = 64
KINDS = ("sd15", "sd2", "sd2-v", "sdxl", "sdxl-v")
"""`-v`: predicts velocity; XL's then also ends in pure noise, marked as trainers of single files mark it."""


@dataclass(frozen=True)
class Widths:
    """What is small: the UNet's channels, the same on every level, and the widths of the text encoders."""

    unet: int
    text: Mapping[str, int]


WIDTHS = {
    "sd15": Widths(32, {"te": 32}),
    "sd2": Widths(32, {"te": 48}),
    "sdxl": Widths(32, {"te1": 32, "te2": 48}),
}


def family_of(kind: str) -> str:
    """`sd2-v` -> `sd2`."""
    return kind.removesuffix("-v")


@cache
def vocabulary() -> tuple[str, ...]:
    """Letters, XL's padding sign, and the two marks."""
    letters = "abcdefghijklmnopqrstuvwxyz,.!"
    return (*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>")


def write_folder(parent: Path, kind: str, side_px: int = SIDE_PX) -> Path:
    """A base in diffusers' layout, saved by diffusers: `parent/kind`."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    folder = parent / kind
    scheduler: dict[str, Any] = configs_of("sd15")["scheduler"]
    if kind.endswith("-v"):
        scheduler["prediction_type"] = "v_prediction"
    if kind == "sdxl-v":
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    models = make_models(family_of(kind), side_px)
    rest: dict[str, Any] = {"scheduler": DDIMScheduler(**scheduler), "unet": models["unet"], "vae": models["vae"]}
    if family_of(kind) == "sdxl":
        StableDiffusionXLPipeline(
            **rest,
            text_encoder=models["te1"],
            text_encoder_2=models["te2"],
            tokenizer=tokenizer(),
            tokenizer_2=tokenizer("!"),
            add_watermarker=False,
        ).save_pretrained(folder)
    else:
        StableDiffusionPipeline(
            **rest,
            text_encoder=models["te"],
            tokenizer=tokenizer("!" if family_of(kind) == "sd2" else "<|endoftext|>"),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(folder)
    return folder


def make_models(family: str, side_px: int = SIDE_PX) -> dict[str, nn.Module]:
    """UNet, autoencoder and text encoders with random weights, from the family's published configuration made small."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    configs, widths = configs_of(family), WIDTHS[family]
    levels = len(configs["unet"]["block_out_channels"])
    unet = configs["unet"] | {
        "sample_size": side_px // 8,
        "block_out_channels": [widths.unet] * levels,
        "cross_attention_dim": sum(widths.text.values()),
    }
    if isinstance(unet["attention_head_dim"], list):
        unet["attention_head_dim"] = [1] * levels
    if family == "sdxl":
        # Of the ten blocks of the lowest level three: the others differ in their number alone, and cost time.
        unet |= {"transformer_layers_per_block": [1, 2, 3], "addition_time_embed_dim": 8}
        unet |= {"projection_class_embeddings_input_dim": 6 * 8 + widths.text["te2"]}
    torch.manual_seed(0)
    models: dict[str, nn.Module] = {
        "unet": UNet2DConditionModel(**unet),
        "vae": AutoencoderKL(**(configs["vae"] | {"block_out_channels": [32] * 4, "sample_size": side_px})),
    }
    for part, width in widths.text.items():
        end = len(vocabulary()) - 1
        small = {
            "vocab_size": end + 1,
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_attention_heads": 1,
            "projection_dim": width,
            "bos_token_id": end - 1,
        }
        kind = CLIPTextModelWithProjection if part == "te2" else CLIPTextModel
        models[part] = kind(CLIPTextConfig(**(configs[part] | small)))
    _speak_up(models)
    return models


def _speak_up(models: Mapping[str, nn.Module]) -> None:
    """Fresh text encoders and cross-attentions hardly act: make text matter to the picture."""
    with torch.no_grad():
        for name, model in models.items():
            for path, parameter in model.named_parameters():
                if name.startswith("te") and parameter.ndim == 2:
                    parameter.mul_(2)
                elif "attn2.to_" in path and parameter.ndim == 2:
                    parameter.mul_(3)


def tokenizer(pad_token: str = "<|endoftext|>") -> Any:
    """Spells every word."""
    from transformers import CLIPTokenizer

    numbers = {name: number for number, name in enumerate(vocabulary())}
    return CLIPTokenizer(vocab=numbers, merges=[], model_max_length=77, pad_token=pad_token)


def write_tokenizer(folder: Path) -> Path:
    """`vocab.json` and `merges.txt`, as the hub has them, in a folder of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {name: number for number, name in enumerate(vocabulary())}
    (folder / "vocab.json").write_text(json.dumps(numbers), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return folder


def write_checkpoint(folder: Path, path: Path, *, dtype: torch.dtype = torch.float32, side_px: int = SIDE_PX) -> Path:
    """The base of a folder as one file in the original naming, a tokenizer beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tokenizer(path.parent / "tokenizer")
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    scheduler = json.loads((folder / "scheduler/scheduler_config.json").read_text(encoding="utf-8"))
    unet = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    attended = {match[1] for name in unet if (match := re.match(r"up_blocks\.(\d)\.attentions", name))}
    tensors = {f"model.diffusion_model.{original_unet_name(n, attended)}": t for n, t in unet.items()}
    vae = load_file(folder / "vae/diffusion_pytorch_model.safetensors")
    tensors |= {f"first_stage_model.{original_vae_name(n)}": _as_convolution(n, t) for n, t in vae.items()}
    text = load_file(folder / "text_encoder/model.safetensors")
    metadata = {"modelspec.resolution": f"{side_px}x{side_px}"}
    v = scheduler["prediction_type"] == "v_prediction"
    if index["_class_name"] == "StableDiffusionXLPipeline":
        second = load_file(folder / "text_encoder_2/model.safetensors")
        tensors |= _nested("conditioner.embedders.0.transformer.", text)
        tensors |= open_clip_tensors("conditioner.embedders.1.model.", second)
        tensors |= {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])} if v else {}
    elif unet["mid_block.attentions.0.proj_in.weight"].ndim == 2:
        tensors |= open_clip_tensors("cond_stage_model.model.", text, more_layers=1)
        metadata["modelspec.prediction_type"] = "v" if v else "epsilon"
    else:
        tensors |= _nested("cond_stage_model.transformer.", text)
    save_file({name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


# --- diffusers' names to the original ones ----------------------------------------------------------------------------

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET_WHOLE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def original_unet_name(name: str, attended: Collection[str]) -> str:
    """The original name of a tensor of a UNet of two resnets a level. `attended` are the levels going up that have
    attention; in the others the upsampler stands in its place."""
    module, _, kind = name.rpartition(".")
    if module in _UNET_WHOLE:
        return f"{_UNET_WHOLE[module]}.{kind}"
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", module):
        number = {"resnets0": 0, "attentions0": 1, "resnets1": 2}[match[1] + match[2]]
        return f"middle_block.{number}.{_RESNET.get(match[3], match[3])}.{kind}"
    match = re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.+)", module)
    assert match, name
    way, level, part, number, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    upsampler = 2 if match[2] in attended else 1
    if part == "downsamplers":
        return f"input_blocks.{3 * level + 3}.0.op.{kind}"
    if part == "upsamplers":
        return f"output_blocks.{3 * level + 2}.{upsampler}.conv.{kind}"
    block = f"input_blocks.{3 * level + 1 + number}" if way == "down" else f"output_blocks.{3 * level + number}"
    return f"{block}.{0 if part == 'resnets' else 1}.{_RESNET.get(rest, rest)}.{kind}"


def original_vae_name(name: str) -> str:
    """The original name of a tensor of an autoencoder of four levels."""
    module, _, kind = name.rpartition(".")
    module = module.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    module = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", module)
    module = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", module)
    module = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", module)
    module = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}", module)
    module = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", module)
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    module = re.sub(r"mid_block\.attentions\.0\.(.+)", lambda m: f"mid.attn_1.{attention[m[1]]}", module)
    return f"{module}.{kind}"


def _as_convolution(name: str, tensor: Tensor) -> Tensor:
    return tensor[:, :, None, None] if "attentions.0.to_" in name and tensor.ndim == 2 else tensor


def _nested(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in tensors.items()}


_OPEN_CLIP = (
    ("encoder.layers.", "transformer.resblocks."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".self_attn.out_proj.", ".attn.out_proj."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
    ("final_layer_norm.", "ln_final."),
    ("embeddings.token_embedding.", "token_embedding."),
    ("embeddings.position_embedding.weight", "positional_embedding"),
)


def open_clip_tensors(prefix: str, tensors: Mapping[str, Tensor], *, more_layers: int = 0) -> dict[str, Tensor]:
    """A CLIP text encoder in OpenCLIP's names; `more_layers` of noise at its end, which nobody reads."""
    named: dict[str, Tensor] = {}
    plain = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    for name, tensor in plain.items():
        if name == "text_projection.weight":
            named["text_projection"] = tensor.T.contiguous()
        elif match := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name):
            three = [plain[name.replace("q_proj", f"{projection}_proj")] for projection in "qkv"]
            named[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[2]}"] = torch.cat(three)
        elif not re.search(r"self_attn\.[kv]_proj", name):
            for theirs, original in _OPEN_CLIP:
                name = name.replace(theirs, original)
            named[name] = tensor
    layers = 1 + max(int(match[1]) for name in named if (match := re.match(r"transformer\.resblocks\.(\d+)", name)))
    for layer in range(layers, layers + more_layers):
        last = f"transformer.resblocks.{layers - 1}."
        named |= {
            name.replace(last, f"transformer.resblocks.{layer}."): torch.randn_like(tensor)
            for name, tensor in list(named.items())
            if name.startswith(last)
        }
    named["logit_scale"] = torch.tensor(4.6)
    return {prefix + name: tensor for name, tensor in named.items()}
