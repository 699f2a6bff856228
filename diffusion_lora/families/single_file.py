"""Load the parts of a single checkpoint file. `original` has said what it is; the weights are read here.

UNet and autoencoder are renamed by diffusers' `from_single_file`, with configurations of our own and not those it would
guess or fetch. Text encoders are renamed here: diffusers has no public way. What a file lacks is never made up.
"""

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from diffusion_lora.errors import AdapterFileError, BaseModelError
from diffusion_lora.families.original import UNET, VAE, Config, Recognised, header_of, recognise, vae_sizes
from diffusion_lora.families.parts import Parts, frozen, unreadable
from diffusion_lora.families.quiet import quiet
from diffusion_lora.families.streamed import of_other_dtype
from diffusion_lora.families.tokenizer import find_tokenizer
from diffusion_lora.lora.tensors import read_tensors

_OPEN_CLIP = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_VAE_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)")


def load_file(path: Path, dtype: torch.dtype, vae: nn.Module | None) -> tuple[Recognised, Parts]:
    """What a checkpoint is, and its parts on the CPU; `vae` takes the place of its own autoencoder.

    Raises BaseModelError for a file of another kind, one with gaps, and when there is no tokenizer to be had.
    """
    found = recognise(path)
    if vae is None and "vae" not in found.configs:
        raise BaseModelError(f"the base {path} holds no autoencoder: name one in model.vae, or with --vae")
    vocabulary = {part: found.configs[part]["vocab_size"] for part in found.text_prefixes}
    tokenizers = {
        part: find_tokenizer(path, found.pad_tokens[part], vocabulary[part]) for part in found.text_prefixes
    }
    quiet()
    from diffusers import UNet2DConditionModel

    return found, Parts(
        unet=_build(UNet2DConditionModel, found.configs["unet"], path, UNET, dtype),
        text_encoders={part: _text_encoder(found, part, dtype) for part in found.text_prefixes},
        tokenizers=tokenizers,
        vae=vae or load_vae_file(path, found.configs["vae"], VAE),
        scheduler_config=found.configs["scheduler"],
    )


def load_vae_file(path: Path, config: Config, prefix: str | None = None) -> nn.Module:
    """The autoencoder in a file, in fp32: `config` but for the sizes that the file's own shapes tell.

    A file of its own may name its tensors as the original code or as diffusers does. Raises BaseModelError.
    """
    quiet()
    from diffusers import AutoencoderKL

    if prefix is None:
        header = header_of(path, "the VAE")
        prefix = next((start for start in (VAE, "vae.") if any(n.startswith(start) for n in header.tensors)), "")
        try:
            config = config | vae_sizes(header, prefix)
        except (KeyError, IndexError):
            if f"{prefix}decoder.mid_block.resnets.0.conv1.weight" not in header.tensors:
                raise BaseModelError(f"the VAE {path} holds no autoencoder of Stable Diffusion") from None
    return _build(AutoencoderKL, config, path, prefix, torch.float32)


def _build(kind: Any, config: Config, path: Path, prefix: str, dtype: torch.dtype) -> nn.Module:
    """A model of diffusers from the tensors of a prefix; every weight is there, and none is left over.

    Diffusers itself fails on a gap with torch's words, and only logs what is left over.
    """
    from accelerate import init_empty_weights

    tensors = _read(path, prefix, dtype)
    if not prefix:  # an autoencoder in a file of its own may lie beside what its training needed
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(_VAE_PARTS)}
    with init_empty_weights():
        places = len(kind.from_config(config).state_dict())
    if len(tensors) != places:
        raise BaseModelError(
            f"{path} holds {len(tensors)} tensors {prefix}* and its family's {kind.__name__} has {places}: it is "
            f"{'incomplete' if len(tensors) < places else 'built in another way'}; give another file or a folder"
        )
    try:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps({"_class_name": kind.__name__, **config}))
            model = kind.from_single_file(tensors, config=folder, local_files_only=True, dtype=dtype)
    except Exception as error:  # other shapes than the config's, and whatever else the library runs into
        raise unreadable(path, error) from error
    return frozen(model)


def _text_encoder(found: Recognised, part: str, dtype: torch.dtype) -> nn.Module:
    from accelerate import init_empty_weights
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    prefix, config = found.text_prefixes[part], found.configs[part]
    tensors = {name.removeprefix(prefix): tensor for name, tensor in _read(found.path, prefix, dtype).items()}
    if prefix.endswith("transformer."):
        renamed = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    else:
        renamed = open_clip_renamed(tensors, config["num_hidden_layers"])
    with init_empty_weights():
        kind = CLIPTextModelWithProjection if part == "te2" else CLIPTextModel
        model: Any = kind(CLIPTextConfig(**config))
    wanted = model.state_dict().keys()
    # Some classes of transformers nest the encoder in a `text_model` and some do not.
    weights = {name: renamed.get(name.removeprefix("text_model.")) for name in wanted}
    missing = sorted(name for name, tensor in weights.items() if tensor is None)
    if missing:
        raise BaseModelError(f"{found.path}: the text encoder lacks {missing[0]} and {len(missing) - 1} more")
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise unreadable(found.path, error) from error
    return frozen(model)


def open_clip_renamed(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """OpenCLIP's tensors under the names of transformers, `text_model.` left out; layers beyond the count are not kept.

    Its q, k and v are one matrix, and its projection is stored the other way round.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in _OPEN_CLIP:
            renamed[_OPEN_CLIP[name]] = tensor
        elif name == "text_projection":
            renamed["text_projection.weight"] = tensor.T.contiguous()
        elif (match := _BLOCK.fullmatch(name)) and int(match[1]) < layers:
            start = f"encoder.layers.{match[1]}"
            if match[2] == "attn.in_proj":
                for projection, rows in zip("qkv", tensor.chunk(3), strict=True):
                    renamed[f"{start}.self_attn.{projection}_proj.{match[3]}"] = rows.clone()
            elif match[2] in _OPEN_CLIP_LAYER:
                renamed[f"{start}.{_OPEN_CLIP_LAYER[match[2]]}.{match[3]}"] = tensor
    return renamed


def _read(path: Path, prefix: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix: mapped, or where they are converted read one by one.

    Raises BaseModelError.
    """
    header = header_of(path, "the base")
    names = [name for name in header.tensors if name.startswith(prefix)]
    others = of_other_dtype(header, names, dtype)
    try:
        converted = read_tensors(header, others, dtype)
        with safetensors.safe_open(path, "pt") as opened:
            return {name: converted[name] if name in others else opened.get_tensor(name) for name in names}
    except (safetensors.SafetensorError, AdapterFileError, OSError) as error:
        raise BaseModelError(f"{path} cannot be read as safetensors ({error}): download or copy it again") from None
