"""The header of a safetensors file: names, shapes, dtypes, metadata, hash. No torch, no tensor is read.

Layout (https://huggingface.co/docs/safetensors): 8 bytes little-endian length, that many bytes of JSON, tensor bytes.
Refuses what is not a whole safetensors file before anything else opens it; what the names mean belongs to `formats`.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from diffusion_lora.errors import AdapterFileError

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""

_PICKLE_SUFFIXES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch.save: zip, or bare pickle


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of one tensor; `dtype` in the format's words ("F16", "BF16", "F32", ...)."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """Tensors by name, the free metadata, and where the tensor bytes begin in the file."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_start: int


def read_header(path: Path) -> Header:
    """The header of `path`; AdapterFileError when it is missing, a pickle, cut off or otherwise not safetensors."""
    try:
        with path.open("rb") as file:
            return _parse(path, file)
    except FileNotFoundError:
        raise AdapterFileError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise AdapterFileError(f"{path} is a folder: name the .safetensors file in it") from None
    except OSError as error:
        raise AdapterFileError(f"{path} cannot be read: {error.strerror}") from None


def tensor_hash(path: Path) -> str:
    """SHA-256 of the bytes after the header, as 64 hex digits.

    The web UIs know a LoRA by this value: kohya's trainer writes it into `sshs_model_hash`, and changing the metadata
    of a file does not change it. AdapterFileError as in `read_header`.
    """
    start = read_header(path).data_start
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def with_metadata(blob: bytes, metadata: Mapping[str, str]) -> bytes:
    """A serialised file with other metadata; the tensor bytes stay as they are."""
    length = int.from_bytes(blob[:8], "little")
    entries = json.loads(blob[8 : 8 + length])
    entries["__metadata__"] = dict(metadata)
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensor bytes begin at a multiple of 8
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(blob)[8 + length :]))


def _parse(path: Path, file: IO[bytes]) -> Header:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    start = file.read(9)  # the length, and the brace that opens the JSON
    length = int.from_bytes(start[:8], "little")
    if len(start) < 9 or start[8:] != b"{" or length > MAX_HEADER_BYTES:
        # Only now: a header of 640 bytes begins like a pickle of protocol 2.
        if start.startswith(_PICKLE_STARTS) or path.suffix.lower() in _PICKLE_SUFFIXES:
            raise AdapterFileError(
                f"{path} is a pickle, which can run any program when it is opened: only .safetensors files are read"
            )
        raise AdapterFileError(f"{path} is not a safetensors file: download or export it again")
    if length > size - 8:
        raise AdapterFileError(f"{path} is cut off inside its header: download or copy it again")
    file.seek(8)
    try:
        entries = json.loads(file.read(length))
        metadata = {str(key): str(value) for key, value in entries.pop("__metadata__", {}).items()}
        tensors = {name: _tensor_info(entry) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise AdapterFileError(f"{path} has a damaged header: download or copy it again") from None
    stated, found = max((info.end for info in tensors.values()), default=0), size - 8 - length
    if stated != found:
        what = "is cut off" if found < stated else "has bytes behind its last tensor"
        raise AdapterFileError(f"{path} {what} ({found:,} bytes of tensors, {stated:,} stated): download it again")
    return Header(tensors, metadata, 8 + length)


def _tensor_info(entry: Mapping[str, Any]) -> TensorInfo:
    start, end = entry["data_offsets"]
    return TensorInfo(str(entry["dtype"]), tuple(int(n) for n in entry["shape"]), int(start), int(end))
