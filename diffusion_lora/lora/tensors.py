"""Tensors out of a safetensors file whose header has been checked: plain reads into memory of their own.

Nothing is mapped, so that a file may be replaced or cut short while its tensors live, and nothing is kept but them: the
safetensors library holds on to some 30 KiB a read, which shows when adapters are switched all day. What the names mean
belongs to `formats`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from diffusion_lora.errors import AdapterFileError
from diffusion_lora.lora.header import Header, shown

DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""The format's words for kinds of values, in torch's."""


def read_tensors(header: Header, names: Iterable[str], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """These tensors, on the CPU, in the header's order; each has its own memory. With a `dtype` those of floating-point
    numbers are given that one, each as soon as it is read.

    AdapterFileError when the file has gone or shrunk since its header was read, or a tensor is of a kind that torch has
    not.
    """
    wanted = set(names)
    tensors = {}
    try:
        with header.path.open("rb") as file:
            for name in (name for name in header.tensors if name in wanted):
                info = header.tensors[name]
                if info.dtype not in DTYPES:
                    raise AdapterFileError(
                        f"{header.path} holds {shown(name)} as {info.dtype}, a kind of value that is not read here"
                    )
                tensor = torch.empty(info.shape, dtype=DTYPES[info.dtype])
                if tensor.numel():
                    file.seek(header.data_start + info.start)
                    bytes_of_it = tensor.view(-1).view(torch.uint8).numpy().data
                    if file.readinto(bytes_of_it) != len(bytes_of_it):
                        raise AdapterFileError(f"{header.path} was cut off while it was read: try it again")
                tensors[name] = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
    except OSError as error:
        raise AdapterFileError(f"{header.path} cannot be read: {error.strerror}") from None
    return tensors
