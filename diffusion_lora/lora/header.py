"""The header of a safetensors file: names, shapes, dtypes, metadata, hash. No torch, no tensor is read.

Layout (https://huggingface.co/docs/safetensors): 8 bytes little-endian length, that many bytes of JSON, tensor bytes.
Refuses what is not a whole and sound safetensors file before anything else opens it, in time and memory that do not
depend on what the file claims. What the names mean belongs to `formats`.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import stat
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from diffusion_lora.errors import AdapterFileError

MAX_HEADER_BYTES = 16 << 20
"""Longer headers are refused unparsed; no LoRA or checkpoint has come near this."""

MAX_TENSORS = 100_000
"""Headers of more are refused unparsed. A whole SDXL checkpoint has 2 515."""

MAX_FORMAT_BYTES = 100_000_000
"""The format's own limit: what claims more is something else."""

_MAX_TEXT_BYTES = 40 << 20  # a decoded header takes up to four bytes a character
_MAX_METADATA = 100_000
_MAX_ENTRY = 2_000  # characters of one tensor's entry
_MAX_DIMENSIONS = 16
_LONGEST_SHOWN = 160

DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
"""Bits of one value, by the format's own words."""

_SCALARS = {"F16": "<e", "BF16": "<f", "F32": "<f", "F64": "<d"}
_PICKLE_SUFFIXES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}
_JSON = json.JSONDecoder()
_WHITE = frozenset(" \t\n\r")
_USUAL_ENTRY = re.compile(  # as every program writes it: ten times faster than a parser, where there are 100 000
    r'\{"dtype":"([A-Z0-9_]{1,16})","shape":\[((?:\d{1,15},){0,15}\d{1,15}|)\],"data_offsets":\[(\d{1,15}),(\d{1,15})\]\}'
)
_USUAL_STRING = re.compile(r'"([\w.:/-]{0,300})"', re.ASCII)
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
_MORE_WHITE = re.compile(r"[ \t\n\r]*")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch.save: zip, or bare pickle


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What the header says of one tensor; `dtype` in the format's words ("F16", "BF16", "F32", ...). `start` and `end`
    count bytes from the first byte after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """Tensors by name in the header's order, the free metadata, and where the tensor bytes begin in the file."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_start: int


def read_header(path: Path) -> Header:
    """The header of `path`; AdapterFileError when it is missing, a pickle, cut off or otherwise not safetensors.

    Names, dtypes, shapes and offsets are checked: when this returns, every tensor lies inside the file, none overlap
    and there is nothing between or behind them.
    """
    path = Path(path)
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise AdapterFileError(f"{path} is a folder: name the .safetensors file in it")
        if not stat.S_ISREG(kind):
            raise AdapterFileError(f"{path} is not a file that can be read: name a .safetensors file")
        with path.open("rb") as file:
            return _parse(path, file)
    except FileNotFoundError:
        raise AdapterFileError(f"{path} does not exist") from None
    except OSError as error:
        raise AdapterFileError(f"{path} cannot be read: {error.strerror}") from None


def read_scalars(header: Header, names: Iterable[str]) -> dict[str, float]:
    """The values of tensors that hold one floating-point number each, such as alphas, read without torch.

    AdapterFileError when one holds more or less, or something else.
    """
    values = {}
    with header.path.open("rb") as file:
        for name in names:
            info = header.tensors[name]
            if math.prod(info.shape) != 1 or info.dtype not in _SCALARS:
                raise AdapterFileError(f"{header.path} is damaged: {shown(name)} is not a single number")
            file.seek(header.data_start + info.start)
            data = file.read(info.end - info.start)
            if info.dtype == "BF16":  # the upper half of a float32
                data = b"\0\0" + data
            values[name] = float(struct.unpack(_SCALARS[info.dtype], data)[0])
    return values


def tensor_hash(path: Path) -> str:
    """SHA-256 of the bytes after the header, as 64 hex digits.

    The web UIs know a LoRA by this value: kohya's trainer writes it into `sshs_model_hash`, and changing the metadata
    of a file does not change it. AdapterFileError as in `read_header`.
    """
    header = read_header(path)
    digest = hashlib.sha256()
    with header.path.open("rb") as file:
        file.seek(header.data_start)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def shown(name: str) -> str:
    """A name or value from a file, fit to stand in a sentence: one line, no control characters, not too long."""
    text = name if name.isprintable() else ascii(name)[1:-1]
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."


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
    if len(start) < 9 or start[8:] != b"{" or length > MAX_FORMAT_BYTES:
        # Only now: a header of 640 bytes begins like a pickle of protocol 2.
        if start.startswith(_PICKLE_STARTS) or path.suffix.lower() in _PICKLE_SUFFIXES:
            raise AdapterFileError(
                f"{path} is a pickle, which can run any program when it is opened: only .safetensors files are read"
            )
        raise AdapterFileError(f"{path} is not a safetensors file: download or export it again")
    if length > size - 8:
        raise AdapterFileError(f"{path} is cut off inside its header: download or copy it again")
    if length > MAX_HEADER_BYTES:
        raise AdapterFileError(f"{path} has a header of {length >> 20} MB, which no LoRA has: it is not opened")
    file.seek(8)
    raw = file.read(length)
    if (count := raw.count(b'"data_offsets"')) > MAX_TENSORS:
        raise AdapterFileError(f"{path} lists {count:,} tensors, which no LoRA has: it is not opened")
    try:
        text = raw.decode()
        del raw
        if sys.getsizeof(text) > _MAX_TEXT_BYTES:
            raise AdapterFileError(f"{path} has more text in its header than any LoRA has: it is not opened")
        tensors, metadata = _read_json(text)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise AdapterFileError(f"{path} has a damaged header: download or copy it again") from None
    _check_layout(path, tensors, size - 8 - length)
    return Header(path, tensors, metadata, 8 + length)


class _Cursor:
    """A place in the JSON of a header, which moves on as things are read. ValueError when they are not there."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def take(self, what: str) -> bool:
        """Step over white space and over `what`, if it comes next."""
        if self.text[self.at : self.at + 1] in _WHITE:
            self.at = _MORE_WHITE.match(self.text, self.at).end()  # type: ignore[union-attr]
        if self.text.startswith(what, self.at):
            self.at += len(what)
            return True
        return False

    def expect(self, what: str) -> None:
        if not self.take(what):
            raise ValueError(f"no {what} at {self.at}")

    def string(self) -> str:
        if usual := _USUAL_STRING.match(self.text, self.at):
            self.at = usual.end()
            return usual[1]
        self.expect('"')
        value, self.at = _JSON.raw_decode(self.text, self.at - 1)
        if _HALF_CHARACTER.search(value):
            raise ValueError("half a character")  # a lone surrogate, which no output can encode
        return str(value)

    def tensor(self) -> TensorInfo:
        """One tensor's entry."""
        if usual := _USUAL_ENTRY.match(self.text, self.at):
            self.at = usual.end()
            dtype, shape, start, end = usual.groups()
            numbers = tuple(map(int, shape.split(","))) if shape else ()
            return TensorInfo(sys.intern(dtype), numbers, int(start), int(end))
        self.expect("{")
        begin, self.at = self.at - 1, self.text.index("}", self.at) + 1
        if self.at - begin > _MAX_ENTRY:
            raise ValueError(f"{self.at - begin} characters for one tensor")
        return _tensor_info(json.loads(self.text[begin : self.at]))

    def members(self) -> Iterator[str]:
        """The names of an object's members; the value comes next, and whoever iterates reads it."""
        self.expect("{")
        if self.take("}"):
            return
        while True:
            name = self.string()
            self.expect(":")
            yield name
            if not self.take(","):
                self.expect("}")
                return


def _read_json(text: str) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Tensors and metadata of a header's JSON; ValueError, TypeError or KeyError when it is anything else.

    Read by hand, a member at a time: a general parser would build whatever a hostile file asks for.
    """
    tensors: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    cursor = _Cursor(text)
    for name in cursor.members():
        if name in tensors or len(tensors) >= MAX_TENSORS:
            raise ValueError(f"{name} twice, or too many")
        if name != "__metadata__":
            tensors[name] = cursor.tensor()
        elif metadata:
            raise ValueError("metadata twice")
        elif not cursor.take("null"):
            for number, key in enumerate(cursor.members()):
                if number >= _MAX_METADATA:
                    raise ValueError("metadata without end")
                metadata[key] = cursor.string()
    if not text[cursor.at :].isspace() and cursor.at != len(text):
        raise ValueError("something behind the header")
    return tensors, metadata


def _tensor_info(entry: Mapping[str, Any]) -> TensorInfo:
    start, end = entry["data_offsets"]
    shape = entry["shape"]
    numbers = (*shape, start, end)
    if len(entry) != 3 or len(shape) > _MAX_DIMENSIONS or any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError(entry)
    return TensorInfo(sys.intern(entry["dtype"]), tuple(shape), start, end)


def _check_layout(path: Path, tensors: Mapping[str, TensorInfo], found: int) -> None:
    """Each tensor as long as its shape says, one behind the other, filling the `found` bytes after the header."""
    stated = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.dtype not in DTYPE_BITS:
            raise AdapterFileError(f"{path} holds values of an unknown kind: {shown(name)} is {shown(info.dtype)}")
        if info.start != stated or info.end < info.start:
            raise AdapterFileError(f"{path} is damaged: {shown(name)} does not begin where the tensor before it ends")
        if (info.end - info.start) * 8 != math.prod(info.shape) * DTYPE_BITS[info.dtype]:
            raise AdapterFileError(f"{path} is damaged: {shown(name)} has a shape of another size than its bytes")
        stated = info.end
    if stated != found:
        what = "is cut off" if found < stated else "has bytes behind its last tensor"
        raise AdapterFileError(f"{path} {what} ({found:,} bytes of tensors, {stated:,} stated): download it again")
