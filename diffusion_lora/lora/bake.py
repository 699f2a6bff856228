"""Adapters folded into the files of a base: a plain checkpoint in the same form, which any tool loads.

W' = W + sum of strength x delta(W), in fp32, rounded once to the dtype of the file. DoRA is exact here, for the base is
at hand; every adapter's delta is that on the untouched base, as when they are stacked. Tensors go through one at a time
and what no adapter changes is copied as it lies. Taking adapters out again is done by keeping the original, never by
subtraction. Folding into a model that runs is `fold`'s.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from diffusion_lora.errors import AdapterFileError, BaseModelError, OutputError
from diffusion_lora.lora.algebra import Term
from diffusion_lora.lora.checkpoint import DTYPES, Checkpoint, Place, read_tensor
from diffusion_lora.lora.header import Header
from diffusion_lora.lora.weights import Full
from diffusion_lora.run import cannot_write

Progress = Callable[[int, int], None]
"""Called with (done, total), counted in layers or tensors."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_CHUNK_BYTES = 1 << 24
_PICKLES = {".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".pb"}


@dataclass
class Folding:
    """What became of the base: layers changed, the length of the change and of its rounding error, things to say."""

    layers: int = 0
    change: float = 0.0
    rounding: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def relative_rounding(self) -> float:
        """How far what is stored lies from what was meant, relative to the change itself."""
        return self.rounding / self.change if self.change else 0.0

    def add(self, meant: Tensor, change: Tensor, stored: Tensor) -> None:
        """Count a layer; all three fp32 and of one shape."""
        self.layers += 1
        self.change = math.hypot(self.change, float(change.norm()))
        self.rounding = math.hypot(self.rounding, float((stored.float() - meant).norm()))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "layers": self.layers,
            "change_norm": self.change,
            "relative_rounding": self.relative_rounding,
            "notes": self.notes,
        }


def fold_into(
    checkpoint: Checkpoint, terms: Sequence[Term], out: Path, *, progress: Progress = lambda done, total: None
) -> Folding:
    """Write the checkpoint with these adapters in it to `out`: a file for a file, a folder for a folder.

    AdapterFileError when an adapter is for another model; BaseModelError when the base's weights are quantised;
    OutputError when `out` exists already or cannot be written, and then nothing of it is left.
    """
    if out.exists():
        raise OutputError(f"{out} exists already: name another place with --out")
    folding = Folding(notes=check_fit(checkpoint, terms))
    touched = _touched(checkpoint, terms)
    total = sum(len(header.tensors) for header in checkpoint.headers.values())
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    def write(source: Path, target: IO[bytes]) -> None:
        _write_file(checkpoint, source, target, terms, touched.get(source, {}), folding, count)

    if checkpoint.path.is_dir():
        _write_folder(checkpoint, out, write)
    else:
        with _written(out) as temporary, temporary.open("wb") as target:
            write(checkpoint.path, target)
    return folding


def check_fit(checkpoint: Checkpoint, terms: Sequence[Term]) -> list[str]:
    """What has to be said about layers that the base lacks. AdapterFileError when it lacks all, or shapes differ."""
    notes = []
    for term in terms:
        missing = [key for key in term.adapter.layers if _base_key(checkpoint, key) is None]
        if len(missing) == len(term.adapter.layers):
            raise AdapterFileError(
                f"{checkpoint.path} has none of the {len(missing)} layers of {term.name}, such as {missing[0]}: "
                "it is for another model"
            )
        if missing:
            notes.append(f"{len(missing)} of {len(term.adapter.layers)} layers of {term.name} are not in the base and "
                         f"do nothing, such as {missing[0]}")  # fmt: skip
        for key, layer in term.adapter.layers.items():
            if (base_key := _base_key(checkpoint, key)) is None:
                continue
            place = checkpoint.weights[base_key]
            if (place.shape[0], math.prod(place.shape[1:])) != (layer.shape[0], math.prod(layer.shape[1:])):
                raise AdapterFileError(
                    f"{term.name} is for another model: {key} is {_times(layer.shape)} in it and "
                    f"{_times(place.shape)} in {checkpoint.path}"
                )
            if place.dtype not in DTYPES:
                raise BaseModelError(f"{place.file} holds {place.tensor} as {place.dtype}: give a base in fp16 or fp32")
    return notes


def _base_key(checkpoint: Checkpoint, key: str) -> str | None:
    """The base's name for a layer: the first of two text encoders is `te1` in SDXL and `te` elsewhere."""
    if key in checkpoint.weights:
        return key
    component, _, path = key.partition(".")
    other = {"te": "te1", "te1": "te"}.get(component)
    return f"{other}.{path}" if other and f"{other}.{path}" in checkpoint.weights else None


def _touched(checkpoint: Checkpoint, terms: Sequence[Term]) -> dict[Path, dict[str, list[tuple[str, Place]]]]:
    """For each file and tensor the adapter layers that change it, with their places."""
    touched: dict[Path, dict[str, list[tuple[str, Place]]]] = {}
    for key in dict.fromkeys(key for term in terms for key in term.adapter.layers):
        base_key = _base_key(checkpoint, key)
        if base_key is None:
            continue
        places = [checkpoint.weights[base_key]]
        layers = [term.adapter.layers.get(key) for term in terms]
        if base_key in checkpoint.biases and any(isinstance(one, Full) and one.bias is not None for one in layers):
            places.append(checkpoint.biases[base_key])
        for place in places:
            touched.setdefault(place.file, {}).setdefault(place.tensor, []).append((key, place))
    return touched


def _write_file(
    checkpoint: Checkpoint,
    source: Path,
    target: IO[bytes],
    terms: Sequence[Term],
    touched: Mapping[str, Sequence[tuple[str, Place]]],
    folding: Folding,
    count: Callable[[], None],
) -> None:
    """The same header with its hashes left out, the same tensors in the same places; the touched ones changed."""
    header = checkpoint.headers[source]
    target.write(_header_bytes(header, terms))
    with source.open("rb") as original:
        for name, info in sorted(header.tensors.items(), key=lambda entry: entry[1].start):
            if name in touched:
                changed = _changed(header, name, touched[name], terms, folding)
                target.write(changed.contiguous().view(torch.uint8).numpy().data)
            else:
                original.seek(header.data_start + info.start)
                left = info.end - info.start
                while left and (chunk := original.read(min(left, _CHUNK_BYTES))):
                    left -= target.write(chunk)
                if left:
                    raise BaseModelError(f"{source} has become shorter while it was read: copy it again")
            count()
    target.flush()
    os.fsync(target.fileno())


def _changed(
    header: Header, name: str, places: Sequence[tuple[str, Place]], terms: Sequence[Term], folding: Folding
) -> Tensor:
    tensor = read_tensor(header, name)
    for key, place in places:
        base = tensor[place.rows].float()
        change = torch.zeros_like(base)
        for term in terms:
            layer = term.adapter.layers.get(key)
            if layer is None:
                continue
            if base.ndim > 1:
                change += term.strength_of(key) * layer.delta(base)
            elif isinstance(layer, Full) and layer.bias is not None:
                change += term.strength_of(key) * layer.bias.float()
        meant = base + change
        stored = meant.to(tensor.dtype)
        if not torch.isfinite(stored).all():
            raise OutputError(
                f"{key} holds values that are not finite in {place.dtype} with these adapters: lower the strengths"
            )
        folding.add(meant, change, stored)
        tensor[place.rows] = stored
    return tensor


def _header_bytes(header: Header, terms: Sequence[Term]) -> bytes:
    metadata = {key: value for key, value in header.metadata.items() if "hash" not in key}
    if any(key.startswith("modelspec.") for key in metadata):
        metadata["modelspec.merged_from"] = ", ".join(
            [metadata.get("modelspec.title", "base"), *(f"{term.name}:{term.strength:g}" for term in terms)]
        )
    entries: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    for name, info in header.tensors.items():
        entries[name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": [info.start, info.end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_folder(checkpoint: Checkpoint, out: Path, write: Callable[[Path, IO[bytes]], None]) -> None:
    """A copy of the folder with the weight files rewritten; pickles and other files' weights stay behind."""
    with _written(out) as temporary:
        temporary.mkdir()
        for entry in sorted(checkpoint.path.rglob("*")):
            place = temporary / entry.relative_to(checkpoint.path)
            if entry.is_dir():
                place.mkdir(parents=True, exist_ok=True)
            elif entry in checkpoint.headers:
                with place.open("wb") as target:
                    write(entry, target)
            elif entry.suffix not in _PICKLES and not _is_stale(entry, checkpoint):
                shutil.copyfile(entry, place)


def _is_stale(entry: Path, checkpoint: Checkpoint) -> bool:
    """Whether a file holds other weights of a component that was changed, say its fp16 variant."""
    return entry.suffix == ".safetensors" and any(file.parent == entry.parent for file in checkpoint.headers)


@contextmanager
def _written(out: Path) -> Iterator[Path]:
    """A place beside `out` that is renamed to it in the end, or is gone if anything fails. OutputError."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if temporary.is_file():
                temporary.chmod(0o644)
            temporary.rename(out)
        finally:
            if temporary.is_dir():
                shutil.rmtree(temporary)
            else:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
