"""Weights that lie in a file instead of memory until they are used: what waits on a machine whose device is its memory.

The file is mapped in place of the weights and has no name any more, so it goes with the process. A page is read when it
is touched, so a module works at once; and as it is never written to, the system may drop it again whenever it likes.
"""

from __future__ import annotations

import ctypes
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

_WORTH_BYTES = 100 << 20  # smaller parts stay where they are
_ALIGNED = 64
_DROP = 4  # Linux' MADV_DONTNEED
_FILE = "_mapped_file"  # of a module: the storage its weights lie in


def lay_on_disk(modules: Sequence[nn.Module], folder: Path) -> int:
    """Move the frozen parameters of modules into a file in a folder; the bytes that this set free.

    Nothing moves, and it is 0, where it is not worth it, where there is no room for it, and where an open file cannot
    be without a name.
    """
    parameters = [
        one for module in modules for one in module.parameters() if not one.requires_grad and one.is_contiguous()
    ]
    if sys.platform != "linux" or sum(one.nbytes for one in parameters) < _WORTH_BYTES:
        return 0
    starts, end = [], 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".weights-") as file:
            for one in parameters:
                starts.append(end)
                file.write(one.data.view(-1).view(torch.uint8).numpy().data)
                padding = -one.nbytes % _ALIGNED
                file.write(bytes(padding))
                end += one.nbytes + padding
            file.flush()
            storage = torch.UntypedStorage.from_file(file.name, False, end)
    except OSError:  # the disk is full, or may not be written to
        return 0
    for one, start in zip(parameters, starts, strict=True):
        mapped: Tensor = torch.empty(0, dtype=one.dtype)
        one.data = mapped.set_(storage, start // one.element_size(), one.shape)  # type: ignore[call-overload]
    for module in modules:
        module.__dict__[_FILE] = storage
    return end


@contextmanager
def in_turn(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, a layer of such a module leaves memory as soon as it is computed; afterwards all of it has."""
    layers = [
        layer
        for module in modules
        if _FILE in module.__dict__
        for rank in module.modules()
        if isinstance(rank, nn.ModuleList)
        for layer in rank
    ]
    hooks = [layer.register_forward_hook(lambda *told: leave_memory(modules)) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        leave_memory(modules)


def leave_memory(modules: Sequence[nn.Module]) -> None:
    """Let the pages go that were read from such a file since: they are read again when they are touched."""
    for storage in {module.__dict__[_FILE] for module in modules if _FILE in module.__dict__}:
        # Never written to, and a mapping of its own: what is dropped here is in the file.
        ctypes.CDLL(None).madvise(ctypes.c_void_p(storage.data_ptr()), ctypes.c_size_t(storage.nbytes()), _DROP)
