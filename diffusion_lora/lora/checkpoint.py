"""The weights of a base as they lie in files, by the keys that adapters use; read one at a time, no model is made.

    a diffusers folder                  unet/, text_encoder/, text_encoder_2/, whole or in shards
    a single file in original names     model.diffusion_model...., cond_stage_model...., conditioner.embedders....
    a single file of a diffusers UNet   down_blocks....

OpenCLIP's text encoders (SD 2, the second of SDXL) hold q, k and v in one matrix: each is a range of its rows.
Not here: which family it is, how to run it, and everything an adapter does not touch (norms, embeddings, the VAE).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffusion_lora.errors import AdapterFileError, BaseModelError
from diffusion_lora.lora.formats import paths
from diffusion_lora.lora.header import Header, TensorInfo, read_header
from diffusion_lora.lora.tensors import read_tensors

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""The dtypes, in a header's words, that a delta can be added to."""

_FOLDERS = {"unet": "unet", "text_encoder": "te", "text_encoder_2": "te2"}
_STEMS = ("diffusion_pytorch_model", "model")
_TEXT_PREFIXES = (
    ("cond_stage_model.transformer.", "te", False),
    ("cond_stage_model.model.", "te", True),
    ("conditioner.embedders.0.transformer.", "te1", False),
    ("conditioner.embedders.1.model.", "te2", True),
)
_OPEN_CLIP = re.compile(r"transformer\.resblocks\.(\d+)\.(attn\.in_proj_|attn\.out_proj\.|mlp\.c_fc\.|mlp\.c_proj\.)")
_OPEN_CLIP_NAMES = {
    "attn.in_proj_": ("self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj"),
    "attn.out_proj.": ("self_attn_out_proj",),
    "mlp.c_fc.": ("mlp_fc1",),
    "mlp.c_proj.": ("mlp_fc2",),
}


@dataclass(frozen=True)
class Place:
    """Where a weight of this shape lies: in a tensor of a file, or in `part` of `parts` equal ranges of its rows."""

    file: Path
    tensor: str
    dtype: str
    shape: tuple[int, ...]
    part: int = 0
    parts: int = 1

    @property
    def rows(self) -> slice:
        """Its rows in the tensor."""
        return slice(self.part * self.shape[0], (self.part + 1) * self.shape[0])


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """`weights` and `biases` by layer key; `headers` of all files in which they lie."""

    path: Path
    weights: Mapping[str, Place]
    biases: Mapping[str, Place]
    headers: Mapping[Path, Header]

    def read(self, key: str) -> Tensor:
        """A layer's weight as it is stored, on the CPU. BaseModelError when it is quantised, or the file has gone."""
        place = self.weights[key]
        if place.dtype not in DTYPES:
            raise BaseModelError(
                f"{place.file} holds {place.tensor} as {place.dtype}, which cannot be added to: take fp16, bf16 or fp32"
            )
        return read_tensor(self.headers[place.file], place.tensor)[place.rows]

    @property
    def others(self) -> Iterator[tuple[Path, str]]:
        """The tensors that no adapter changes, as (file, name)."""
        known = {(place.file, place.tensor) for place in self.weights.values()}
        for file, header in self.headers.items():
            yield from ((file, name) for name in header.tensors if (file, name) not in known)


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a file or a diffusers folder, from headers alone.

    BaseModelError, one sentence, when there is none, it is a pickle or damaged, or holds no layer of Stable Diffusion.
    """
    path = Path(path)
    if path.is_dir():
        files: dict[Path, str | None] = dict(_component_files(path))
    elif path.is_file():
        files = {path: None}
    else:
        raise BaseModelError(f"the checkpoint {path} does not exist; give a .safetensors file or a diffusers folder")
    weights: dict[str, Place] = {}
    biases: dict[str, Place] = {}
    headers = {file: _header(file) for file in files}
    for file, component in files.items():
        for name, info in headers[file].tensors.items():
            for key, kind, place in _places(file, component, name, info):
                (weights if kind == "weight" else biases)[key] = place
    if not any(key.startswith("unet.") for key in weights):
        raise BaseModelError(f"{path} holds no UNet of a Stable Diffusion model; is it a LoRA, a VAE, or another kind?")
    return Checkpoint(path, weights, {key: place for key, place in biases.items() if key in weights}, headers)


def read_tensor(header: Header, name: str) -> Tensor:
    """One tensor of the file that a header is of. BaseModelError when it cannot be read any more."""
    try:
        return read_tensors(header, [name])[name]
    except AdapterFileError as error:
        raise BaseModelError(str(error)) from None


def _header(file: Path) -> Header:
    try:
        return read_header(file)
    except AdapterFileError as error:
        raise BaseModelError(str(error)) from None


def _component_files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Weight files of a diffusers folder with the component they belong to."""
    if not (folder / "unet").is_dir():
        raise BaseModelError(f"{folder} is no diffusers folder: it has no unet/ inside")
    two_encoders = (folder / "text_encoder_2").is_dir()
    for name, component in _FOLDERS.items():
        if (folder / name).is_dir():
            for file in _weight_files(folder / name):
                yield file, "te1" if component == "te" and two_encoders else component


def _weight_files(folder: Path) -> list[Path]:
    """The whole file of a component, its shards, or the fp16 variant of either. BaseModelError when there is none."""
    for stem in _STEMS:
        for variant in ("", ".fp16"):
            if (file := folder / f"{stem}{variant}.safetensors").is_file():
                return [file]
            if (index := folder / f"{stem}.safetensors.index{variant}.json").is_file():
                try:
                    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
                except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
                    raise BaseModelError(f"{index} is not a readable index of weight files ({error!r})") from None
                return [folder / Path(name).name for name in names]
    raise BaseModelError(f"{folder} holds no .safetensors weights (pickled .bin weights are not opened)")


def _places(file: Path, component: str | None, name: str, info: TensorInfo) -> Iterator[tuple[str, str, Place]]:
    """(layer key, "weight" or "bias", place) of what a tensor holds; nothing for what no adapter changes."""
    keys = list(_keys(component, name))
    kind = "bias" if name.endswith("bias") else "weight"
    if not keys or not info.shape or info.shape[0] % len(keys) or (kind == "weight") != (len(info.shape) in (2, 4)):
        return
    shape = (info.shape[0] // len(keys), *info.shape[1:])
    for part, key in enumerate(keys):
        yield key, kind, Place(file, name, info.dtype, shape, part, len(keys))


def _keys(component: str | None, name: str) -> Iterator[str]:
    """The layers whose weight or bias a tensor of this name holds."""
    for prefix, text, open_clip in _TEXT_PREFIXES if component is None else ():
        if name.startswith(prefix):
            rest = name[len(prefix) :]
            yield from _open_clip_keys(text, rest) if open_clip else _layer_keys(text, rest)
            return
    if component is None and name.startswith("model.diffusion_model."):
        module, _, kind = name.removeprefix("model.diffusion_model.").rpartition(".")
        path = paths.from_original(module.replace(".", "_"))
        if path is not None and kind in ("weight", "bias"):
            yield f"unet.{path}"
        return
    yield from _layer_keys(component or "unet", name)


def _layer_keys(component: str, name: str) -> Iterator[str]:
    module, _, kind = name.rpartition(".")
    path = module.removeprefix("text_model.").replace(".", "_")
    known = paths.is_unet_path(path) if component == "unet" else paths.is_text_path(path) and "embedding" not in path
    if known and kind in ("weight", "bias"):
        yield f"{component}.{path}"


def _open_clip_keys(component: str, name: str) -> Iterator[str]:
    if match := _OPEN_CLIP.match(name):
        yield from (f"{component}.encoder_layers_{match[1]}_{layer}" for layer in _OPEN_CLIP_NAMES[match[2]])
