"""An adapter is a value: layer key -> weights, with metadata; read from and written to safetensors.

Files are in kohya's names with an `.alpha` for every
layer: programs that find none take a scale of 1, so a file without would be silently wrong where alpha is not the rank.
What this module does not know: models. Which layers exist and whether shapes fit is the bank's to say.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from diffusion_lora.errors import AdapterFileError, OutputError
from diffusion_lora.lora.formats import foreign, kohya
from diffusion_lora.lora.header import read_header, with_metadata
from diffusion_lora.lora.weights import AdapterLayer, Full, LoHa, LoKr, LowRank, Weights
from diffusion_lora.run import write_atomically

__all__ = ["Adapter", "AdapterLayer", "Full", "LoHa", "LoKr", "LowRank", "Weights", "read_adapter", "write_adapter"]

Dtype = Literal["fp16", "bf16", "fp32"]
DTYPES: Mapping[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, eq=False)
class Adapter:
    """Layers by key (`unet.mid_block_attentions_0_proj_in`, `te.encoder_layers_0_self_attn_q_proj`) and metadata.

    `format` names the spelling of the file it was read from; `unread` holds the tensors of that file that are not in
    it, by name, each with the reason.
    """

    layers: Mapping[str, Weights]
    metadata: Mapping[str, str]
    format: str = "kohya"
    unread: Mapping[str, str] = field(default_factory=dict)

    @property
    def rank(self) -> int | None:
        """The rank that most layers have; None when they have none (full matrices)."""
        ranks = Counter(layer.rank for layer in self.layers.values() if layer.rank is not None)
        return ranks.most_common(1)[0][0] if ranks else None

    @property
    def alpha(self) -> float:
        """The alpha that most layers have."""
        return Counter(layer.alpha for layer in self.layers.values()).most_common(1)[0][0]

    @property
    def components(self) -> tuple[str, ...]:
        """The parts of the model it touches, sorted: ("te", "unet")."""
        return tuple(sorted({key.split(".", 1)[0] for key in self.layers}))

    @property
    def parameters(self) -> int:
        """Numbers in all tensors of all layers."""
        return sum(layer.parameters for layer in self.layers.values())

    @property
    def cross_attention_width(self) -> int | None:
        """Width of the text that its cross-attention reads, which tells the model family; None if it has none."""
        for key, layer in self.layers.items():
            if key.startswith("unet.") and key.endswith(("attn2_to_k", "attn2_to_v")):
                return layer.shape[1]
        return None

    def allclose(self, other: Adapter, *, rtol: float = 0.0, atol: float = 0.0) -> bool:
        """Same layers, forms, shapes and scales, and the same numbers within the tolerance (by default exactly)."""
        return self.layers.keys() == other.layers.keys() and all(
            layer.same_as(other.layers[key], rtol, atol) for key, layer in self.layers.items()
        )


def read_adapter(path: Path) -> Adapter:
    """The adapter in a safetensors file with kohya's names, tensors on the CPU in the file's own dtype.

    A layer without `.alpha`, or with alpha 0, has alpha = rank (scale 1), as kohya's own loader has it.
    AdapterFileError, one sentence, when the file is missing, a pickle, damaged, something else than such a LoRA, lacks
    half of a layer, or holds values that are not finite.
    """
    path = Path(path)
    header = read_header(path)
    groups, unknown = kohya.group(header.tensors)
    if unknown or not groups:
        _refuse_names(path, list(header.tensors), unknown)
    try:
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, KeyError) as error:
        raise AdapterFileError(f"{path} cannot be read as safetensors ({error}): download or copy it again") from None
    layers = {key: _read_layer(path, key, parts, tensors) for key, parts in groups.items()}
    return Adapter(layers, header.metadata)


def write_adapter(adapter: Adapter, path: Path, dtype: Dtype = "fp16") -> str:
    """Write kohya-named safetensors atomically (mode 0644); the `sshs_model_hash` written is returned.

    The hashes are recomputed whatever the metadata says: a stale one makes web UIs swap adapters. OutputError when a
    value is not finite in that dtype or the place cannot be written; an existing file then stays as it was.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    for key, layer in adapter.layers.items():
        for suffix, tensor in layer.tensors().items():
            saved = tensor.detach().to("cpu", DTYPES[dtype]).contiguous()
            if not torch.isfinite(saved).all():
                raise OutputError(
                    f"{path} is not written: {key} holds values that are not finite in {dtype}; "
                    + ("save it as bf16 or fp32" if torch.isfinite(tensor).all() else "the training has diverged")
                )
            tensors[f"{kohya.module_name(key)}.{suffix}"] = saved
        tensors[f"{kohya.module_name(key)}.alpha"] = torch.tensor(_plain_alpha(layer), dtype=torch.float32)
    blob, model_hash = _serialise(tensors, adapter.metadata)
    write_atomically(path, blob)
    return model_hash


def _plain_alpha(layer: Weights) -> float:
    """The alpha by which every program, dividing by the rank, arrives at this layer's scale."""
    return layer.scale * (layer.rank or 1)


def _serialise(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[bytes, str]:
    """The file's bytes and its model hash.

    Hashes as in kohya's `precalculate_safetensors_hashes`: sshs_model_hash is SHA-256 of the bytes after the header;
    sshs_legacy_hash is the first 8 digits of SHA-256 over the 64 KiB at 1 MiB of the same file written with the `ss_`
    metadata alone (of nothing, in a shorter file: a rule older than this project).
    """
    metadata = {key: value for key, value in metadata.items() if not key.startswith("sshs_")}
    training_only = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    plain = safetensors.torch.save(dict(tensors), training_only)
    length = int.from_bytes(plain[:8], "little")
    metadata["sshs_model_hash"] = hashlib.sha256(memoryview(plain)[8 + length :]).hexdigest()
    metadata["sshs_legacy_hash"] = hashlib.sha256(plain[0x100000:0x110000]).hexdigest()[:8]
    if "modelspec.sai_model_spec" in metadata:
        metadata["modelspec.hash_sha256"] = "0x" + metadata["sshs_model_hash"]
    return with_metadata(plain, metadata), metadata["sshs_model_hash"]


def _read_layer(path: Path, key: str, parts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> AdapterLayer:
    for part in ("down", "up"):
        if part not in parts:
            raise AdapterFileError(f"{path} is incomplete: {key} has no {part} matrix; download or export it again")
    for name in parts.values():
        if not tensors[name].is_floating_point() or not torch.isfinite(tensors[name].float()).all():
            raise AdapterFileError(f"{path} is damaged: {name} holds values that are not finite numbers")
    down, up = tensors[parts["down"]], tensors[parts["up"]]
    if "alpha" in parts and tensors[parts["alpha"]].numel() != 1:
        raise AdapterFileError(f"{path} is damaged: {parts['alpha']} is not a single number")
    alpha = float(tensors[parts["alpha"]]) if "alpha" in parts else 0.0
    try:
        return AdapterLayer(down, up, alpha or down.shape[0])
    except (ValueError, IndexError) as error:
        raise AdapterFileError(f"{path} is damaged: {key}: {error}") from None


def _refuse_names(path: Path, names: list[str], unknown: list[str]) -> None:
    kind = foreign.describe(unknown)
    if kind is not None:
        raise AdapterFileError(f"{path} is {kind}; give a LoRA in kohya's names (lora_unet_..., lora_te_...)")
    if not names:
        raise AdapterFileError(f"{path} holds no tensors: download or export it again")
    raise AdapterFileError(
        f"{path} is not a LoRA in kohya's names: {len(unknown)} of its {len(names)} tensors are unknown, "
        f"the first is {unknown[0]}"
    )
