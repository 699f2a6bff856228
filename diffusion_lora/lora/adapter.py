"""An adapter is a value: layer key -> weights, with metadata; read from and written to safetensors.

How other programs spell and scale is known to `formats` and `exports`. What this module does not know: models. Which
layers exist and whether shapes fit is the bank's to say.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from torch import Tensor

from diffusion_lora.errors import AdapterFileError, OutputError
from diffusion_lora.layouts.layout import SDXL, Layout
from diffusion_lora.lora.exports import kohya_tensors, peft_tensors
from diffusion_lora.lora.formats import peft
from diffusion_lora.lora.formats.foreign import by_reason, describe
from diffusion_lora.lora.formats.forms import ALPHA, MAGNITUDE
from diffusion_lora.lora.formats.reading import LayerNames, cross_attention_width, layout_of, read_names
from diffusion_lora.lora.formats.words import alone_name, bundled_name, read_alone
from diffusion_lora.lora.header import read_header, shown, with_metadata
from diffusion_lora.lora.metadata import completed
from diffusion_lora.lora.tensors import read_tensors
from diffusion_lora.lora.weights import AdapterLayer, Full, LoHa, LoKr, LowRank, Weights, from_tensors
from diffusion_lora.run import cannot_write, write_atomically

__all__ = ["Adapter", "AdapterLayer", "Full", "LoHa", "LoKr", "LowRank", "Weights", "read_adapter", "write_adapter"]

Dtype = Literal["fp16", "bf16", "fp32"]
Form = Literal["kohya", "peft"]
DTYPES: Mapping[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, eq=False)
class Adapter:
    """Layers by key (`unet.mid_block_attentions_0_proj_in`, `te.encoder_layers_0_self_attn_q_proj`) and metadata.

    `format` names the spelling of the file it was read from; `unread` holds the tensors of that file that are not in
    it, by name, each with the reason. `words` are the words learned with it (textual inversion): for each the vectors
    ``[n, width]`` of every text encoder, {"zib": {"te": ...}}.
    """

    layers: Mapping[str, Weights]
    metadata: Mapping[str, str]
    format: str = "kohya"
    unread: Mapping[str, str] = field(default_factory=dict)
    words: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

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
    def kinds(self) -> tuple[str, ...]:
        """The forms that its layers have, the commonest first: "LoRA", "LoHa", "LoKr", "full"."""
        return tuple(kind for kind, _ in Counter(layer.form.kind for layer in self.layers.values()).most_common())

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
        return cross_attention_width({key: layer.shape for key, layer in self.layers.items()})

    @property
    def layout(self) -> Layout | None:
        """The family of models it was made for; None if its layers do not tell."""
        return layout_of({key: layer.shape for key, layer in self.layers.items()})

    @property
    def notes(self) -> tuple[str, ...]:
        """What must be said of it when it is loaded: what of its file is not in it."""
        if not self.unread:
            return ()
        return (f"{len(self.unread)} tensors of its file are not read: {by_reason(self.unread)}",)

    def allclose(self, other: Adapter, *, rtol: float = 0.0, atol: float = 0.0) -> bool:
        """Same layers, forms, shapes, scales, words, and the same numbers within the tolerance (by default exactly)."""
        mine, theirs = (
            {(word, part): tensor for word, parts in adapter.words.items() for part, tensor in parts.items()}
            for adapter in (self, other)
        )
        return (
            self.layers.keys() == other.layers.keys()
            and all(layer.same_as(other.layers[key], rtol, atol) for key, layer in self.layers.items())
            and mine.keys() == theirs.keys()
            and all(torch.allclose(mine[key].float(), theirs[key].float(), rtol=rtol, atol=atol) for key in mine)
        )


def read_adapter(path: Path, *, finite: bool = True) -> Adapter:
    """The adapter in a safetensors file of any spelling that `formats` knows, or in a folder that PEFT saved.

    Tensors are on the CPU in the file's own dtype. A layer without `.alpha`, or with alpha 0, has alpha = rank (scale
    1), as kohya's own loader has it, unless PEFT's settings say otherwise. Without `finite`, values that are not finite
    numbers are let through, for reports on them.

    AdapterFileError, one sentence, when the file is missing, a pickle, damaged, for another kind of model, holds no
    layer that is read, lacks a part of a layer, or holds values that are not finite.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, finite)
    config = path.with_name(peft.CONFIG_NAME) if path.name == peft.WEIGHTS_NAME else None
    return _read_file(path, finite, _peft_config(config) if config and config.exists() else None)


def write_adapter(adapter: Adapter, path: Path, dtype: Dtype | None = "fp16", form: Form = "kohya") -> str:
    """Write safetensors atomically (mode 0644) in kohya's names, or diffusers' (PEFT); `sshs_model_hash` is returned.

    With dtype None every tensor keeps its own. What is written has the same scale under every loader's rule (see
    `exports`). The family's metadata are completed and the hashes recomputed whatever the metadata says: a stale one
    makes web UIs swap adapters. OutputError when a value is not finite in that dtype, the form cannot say what the
    adapter holds, or the place cannot be written; an existing file then stays as it was.
    """
    path = Path(path)
    metadata = completed(adapter.metadata, adapter.layout, adapter.rank, adapter.alpha, adapter.kinds)
    if form == "peft":
        if adapter.words:
            raise OutputError(
                f"{path} is not written: a PEFT file cannot hold the learned word {', '.join(adapter.words)}; write a "
                "kohya file"
            )
        named, settings = peft_tensors(adapter.layers)
        metadata |= {peft.METADATA_KEY: settings, "format": "pt"}
    else:
        named = kohya_tensors(adapter.layers)
        for word, parts in adapter.words.items():
            named |= {bundled_name(word, component): tensor for component, tensor in parts.items()}
        metadata.pop(peft.METADATA_KEY, None)  # diffusers refuses files that say the scale twice
    tensors: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in named.items():
        saved = _as_saved(path, name, tensor, dtype)
        tensors[name] = saved.clone() if saved.data_ptr() in places else saved  # safetensors refuses shared memory
        places.add(saved.data_ptr())
    blob, model_hash = _serialise(tensors, metadata)
    write_atomically(path, blob)
    return model_hash


def read_word(path: Path) -> dict[str, Tensor]:
    """The vectors of an embedding's own file (textual inversion), by component, [n, width] each, on the CPU.

    AdapterFileError, one sentence, when the file cannot be read, or holds no embedding or numbers that are not finite.
    """
    header = read_header(Path(path))
    names = read_alone(header.tensors)
    if not names:
        what = describe(header.tensors) or "something else"
        raise AdapterFileError(f"{path} holds no embedding (textual inversion), but {what}")
    tensors = read_tensors(header, names.values())
    vectors = {component: tensors[name].float() for component, name in names.items()}
    vectors = {component: vector[None] if vector.ndim == 1 else vector for component, vector in vectors.items()}
    if not all(bool(vector.isfinite().all()) for vector in vectors.values()):
        raise AdapterFileError(f"{path} holds values that are not finite numbers")
    return vectors


def write_word(vectors: Mapping[str, Tensor], path: Path, dtype: Dtype = "fp32") -> None:
    """A learned word as a file of its own, by component; its name is the file's, as all programs have it.

    Raises OutputError as `write_adapter` does.
    """
    tensors = {alone_name(part): _as_saved(path, alone_name(part), tensor, dtype) for part, tensor in vectors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path.parent, error) from error
    write_atomically(path, safetensors.torch.save(tensors))


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


def _as_saved(path: Path, name: str, tensor: Tensor, dtype: Dtype | None) -> Tensor:
    wanted = tensor.dtype if dtype is None or name.endswith(".alpha") else DTYPES[dtype]
    saved = tensor.detach().to("cpu", wanted).contiguous()
    if not _is_finite(saved):
        raise OutputError(
            f"{path} is not written: {name} holds values that are not finite in {dtype or 'its own dtype'}; "
            + ("save it as bf16 or fp32" if _is_finite(tensor) else "the training has diverged")
        )
    return saved


def _read_file(path: Path, finite: bool, config: peft.Settings | None) -> Adapter:
    header = read_header(path)
    reading = read_names(header, config)
    wanted = {name for layer in reading.layers.values() for name in layer.tensors.values()}
    wanted |= {name for parts in reading.words.values() for name in parts.values()}
    tensors = read_tensors(header, wanted)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or (finite and not _is_finite(tensor)):
            raise AdapterFileError(f"{path} is damaged: {shown(name)} holds values that are not finite numbers")
    layers = {key: _read_layer(path, key, layer, tensors) for key, layer in reading.layers.items()}
    words = {
        word: {component: tensors[name] for component, name in parts.items()} for word, parts in reading.words.items()
    }
    return Adapter(layers, header.metadata, reading.format, reading.unread, words)


def _read_layer(path: Path, key: str, names: LayerNames, tensors: Mapping[str, Tensor]) -> Weights:
    parts = {suffix: tensors[name] for suffix, name in names.tensors.items()}
    alpha = names.alpha if ALPHA not in parts else float(parts.pop(ALPHA)) or None
    magnitude = parts.pop(MAGNITUDE, None)
    if magnitude is not None and (names.magnitude_of_rows or magnitude.ndim == 1):
        magnitude = magnitude.reshape(-1, *(1,) * (len(names.form.shape) - 1))
    try:
        return from_tensors(parts, float(names.form.rank or 1) if alpha is None else alpha, magnitude, rs=names.rs)
    except ValueError as error:
        raise AdapterFileError(f"{path} is damaged: {key}: {error}") from None


def _read_folder(folder: Path, finite: bool) -> Adapter:
    """PEFT saves each part of a model into a folder of its own, named as diffusers names the part."""
    parts = [folder / name for name in ("unet", "text_encoder", "text_encoder_2")]
    parts = [part for part in parts if (part / peft.WEIGHTS_NAME).is_file()]
    if not parts and (folder / peft.WEIGHTS_NAME).is_file():
        parts = [folder]
    if not parts:
        raise AdapterFileError(f"{folder} is a folder without a PEFT adapter in it: name the .safetensors file")
    read = {part.name: read_adapter(part / peft.WEIGHTS_NAME, finite=finite) for part in parts}
    is_xl = "text_encoder_2" in read or any(adapter.layout is SDXL for adapter in read.values())
    renamed = {"text_encoder": "te1" if is_xl else "te", "text_encoder_2": "te2"}
    layers: dict[str, Weights] = {}
    unread: dict[str, str] = {}
    for name, adapter in read.items():
        for key, layer in adapter.layers.items():
            component, path = key.split(".", 1)
            layers[f"{renamed.get(name, component)}.{path}"] = layer
        unread |= adapter.unread
    first = next(iter(read.values()))
    return Adapter(layers, first.metadata, first.format, unread)


def _peft_config(path: Path) -> peft.Settings:
    try:
        with path.open("rb") as file:
            text = file.read(peft.MAX_SETTINGS_BYTES + 1).decode()
        return peft.settings_of(peft.parse_settings(text))
    except OSError as error:
        raise AdapterFileError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise AdapterFileError(f"{path} is not read: {error}") from None


def _is_finite(tensor: Tensor) -> bool:
    """Nearly always one sum tells, in a third of the time; values are looked at only where it is not finite."""
    if tensor.dtype.itemsize == 1:  # torch does not add up 8-bit floats
        tensor = tensor.float()
    return math.isfinite(tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))) or bool(
        torch.isfinite(tensor).all()
    )
