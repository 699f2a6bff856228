"""Tensors kept on the disk under the hash of what they were made from; a damaged entry is as good as none.

An entry is a safetensors file with a checksum behind it, written under another name and renamed: a process that is
killed leaves no half of one, and what a failing disk has changed is made again.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

from diffusion_lora.run import cannot_write
from diffusion_lora.workspace import workspace_of

_DIGEST_BYTES = 16
VARIABLE = "DIFFUSION_LORA_CACHE"
"""The environment variable that says where everything is kept that can be made again."""


@dataclass(frozen=True)
class TensorStore:
    """A folder of entries."""

    folder: Path

    def path(self, key: str) -> Path:
        """The file of an entry."""
        return self.folder / key[:2] / f"{key[2:]}.tensors"

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors of a key, on the CPU; None if there are none, or they are not what was written."""
        try:
            data = self.path(key).read_bytes()
        except OSError:
            return None
        body, checksum = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
        return load(body) if _checksum(body) == checksum else None

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors. No wait for the disk: what a power cut spoils fails its checksum. Raises OutputError."""
        body = save({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()})
        path = self.path(key)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("wb") as file:
                    file.write(body)
                    file.write(_checksum(body))
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from error


def cache_folder(run: Path | None = None) -> Path:
    """Where what was encoded is kept: $DIFFUSION_LORA_CACHE, else the state of the workspace of a run, else the user's
    own cache."""
    if told := os.environ.get(VARIABLE):
        return Path(told).expanduser().absolute()
    workspace = workspace_of(run) if run is not None else None
    if workspace is not None:
        return workspace.state / "cache"
    if os.name == "nt":
        root = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "diffusion-lora"


def key_of(*parts: str) -> str:
    """The name of what was made from these: SHA-256, in hex, of all of them in order."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def _checksum(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()
