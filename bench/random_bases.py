"""Bases with random weights in the shapes of Stable Diffusion 1.5 and SDXL, as folders in diffusers layout.

Speed and memory do not depend on what weights say. The tokenizer is pocket's: its ids are few, the embedding table has
all rows of the real one. A folder is made once and kept.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffusion_lora.families import pocket
from diffusion_lora.families.quiet import quiet

VOCABULARY = 49408

_TEXT_L: dict[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
}  # fmt: skip
_TEXT_G: dict[str, Any] = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
    "projection_dim": 1280, "hidden_act": "gelu",
}  # fmt: skip
_UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "use_linear_projection": True,
    },
}


def unet(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A UNet of "sd15" or "sdxl" with random weights, on the CPU."""
    quiet()
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        module = UNet2DConditionModel(**_UNETS[kind])
    return filled(module, dtype)


def filled(module: nn.Module, dtype: torch.dtype) -> Any:
    """Weights of variance 1 / in, norms of 1, biases of 0: numbers stay of the size that they have in real models."""
    module = module.to_empty(device="cpu").to(dtype).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, (parameter[0].numel()) ** -0.5, generator=generator)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        for name, buffer in module.named_buffers():
            if name.endswith("position_ids"):
                buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
    return module


def base(kind: str, folder: Path) -> Path:
    """The folder of a base of this kind, fp32, made if it is not there; 4 GB for "sd15", 14 GB for "sdxl"."""
    place = folder / f"{kind}-random"
    if (place / "model_index.json").exists():
        return place
    quiet()
    from diffusers import AutoencoderKL, DDPMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    shutil.rmtree(place, ignore_errors=True)
    unet(kind).save_pretrained(place / "unet")  # type: ignore[operator]
    texts = {"": (CLIPTextModel, _TEXT_L)} | ({"_2": (CLIPTextModelWithProjection, _TEXT_G)} if kind == "sdxl" else {})
    ids = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    shipped = Path(str(pocket.__file__)).parent / "base" / "tokenizer"
    for suffix, (model_class, sizes) in texts.items():
        with torch.device("meta"):
            encoder = model_class(CLIPTextConfig(**sizes, **ids))
        filled(encoder, torch.float32).save_pretrained(place / f"text_encoder{suffix}")
        shutil.copytree(shipped, place / f"tokenizer{suffix}")
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            sample_size=512,
            scaling_factor=0.18215 if kind == "sd15" else 0.13025,
        )
    filled(vae, torch.float32).save_pretrained(place / "vae")
    DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(
        place / "scheduler"
    )
    name = "StableDiffusionXLPipeline" if kind == "sdxl" else "StableDiffusionPipeline"
    index: dict[str, Any] = {
        "_class_name": name,
        "_diffusers_version": "0.42.1",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }
    for suffix, (model_class, _) in texts.items():
        index[f"text_encoder{suffix}"] = ["transformers", model_class.__name__]
        index[f"tokenizer{suffix}"] = ["transformers", "CLIPTokenizer"]
    if kind == "sd15":
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    (place / "model_index.json").write_text(json.dumps(index, indent=1))
    return place
