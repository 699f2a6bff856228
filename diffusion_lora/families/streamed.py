"""A module's weights read into the dtype that is wanted, one tensor at a time: there are never two whole copies.

The libraries map the whole file and convert what it holds, and the mapped pages count as the process's memory until the
last one is done: for a UNet stored in fp32 and wanted in bf16 that is three times its size. Where nothing is converted
mapping is right, and left to them. So is whatever is unusual about a file, and saying what is wrong with it.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lora.errors import AdapterFileError
from diffusion_lora.lora.header import Header, read_header
from diffusion_lora.lora.tensors import DTYPES, read_tensors


def streamed(kind: Any, place: Path, file: Path | None, dtype: torch.dtype) -> nn.Module | None:
    """A model of diffusers of a class of this kind, from its folder and weights `file`, or the index of its shards.

    None where the file's names and shapes are not exactly the model's, where it cannot be read, and where its numbers
    are of the dtype already.
    """
    from accelerate import init_empty_weights

    try:
        headers = [read_header(path) for path in _shards(file)] if file else []
        if not any(of_other_dtype(header, header.tensors, dtype) for header in headers):
            return None
        with init_empty_weights():
            model: nn.Module = kind.from_config(kind.load_config(place, local_files_only=True))
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        if {name: info.shape for header in headers for name, info in header.tensors.items()} != wanted:
            return None
        tensors: dict[str, Tensor] = {}
        for header in headers:
            tensors |= read_tensors(header, header.tensors, dtype)
    except (AdapterFileError, OSError, ValueError, KeyError, TypeError):
        return None  # the library's own way finds it too, and says it
    model.load_state_dict(tensors, assign=True)
    return model


def of_other_dtype(header: Header, names: Collection[str], dtype: torch.dtype) -> set[str]:
    """Those of the tensors whose numbers are stored in another dtype than this one."""
    return {name for name in names if DTYPES.get(header.tensors[name].dtype) != dtype}


def _shards(file: Path) -> list[Path]:
    if file.suffix != ".json":
        return [file]
    index = json.loads(file.read_text(encoding="utf-8"))
    return [file.parent / name for name in sorted(set(index["weight_map"].values()))]
