"""How much memory a training may take, and how it is told when that was not enough.

On CUDA the cap is torch's own share of the device. On a CPU, where the system would sooner kill the process than refuse
it memory, what a forward pass keeps for the backward pass is counted, on top of what the process held before: the part
of a step that grows with pictures and batch.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import psutil  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn

from diffusion_lora.errors import DeviceError

GB = 1e9
# What a plain RuntimeError says on a CPU that is out of memory: torch's allocator, and oneDNN's convolutions.
_CPU_SAYS = ("can't allocate memory", "not enough memory", "could not create a primitive")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _CPU_SAYS)


class Cap:
    """A limit of `cap_gb` on a device, 0 for none; `parts` are the modules whose weights are not a pass's own.

    Raises DeviceError when the limit is below what is in use already.
    """

    def __init__(self, cap_gb: float, device: torch.device, parts: Iterable[nn.Module]) -> None:
        self._left: float | None = None
        if not cap_gb:
            return
        if device.type == "cuda":
            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, cap_gb * GB / total), device)
            return
        held = psutil.Process().memory_info().rss
        self._left = cap_gb * GB - held
        self._weights = {tensor.untyped_storage().data_ptr() for part in parts for tensor in part.parameters()}
        if self._left <= 0:
            raise DeviceError(
                f"train.memory_cap_gb = {cap_gb} is below the {held / GB:.1f} GB that base and pictures take already: "
                "raise it, or set it to 0"
            )

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        """Around one forward and backward pass: raises torch.OutOfMemoryError as soon as it would go over the limit."""
        if self._left is None:
            yield
            return
        kept: dict[int, int] = {}
        left = self._left

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            place = storage.data_ptr()
            if place not in self._weights and place not in kept:
                kept[place] = storage.nbytes()
                if sum(kept.values()) > left:
                    raise torch.OutOfMemoryError(f"a pass keeps more than the {left / GB:.2f} GB under the cap")
            return tensor.detach()

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield


def give_back() -> None:
    """Return to the system what was freed and is still held for the next allocation: glibc keeps half a gigabyte of it
    after it has loaded a base of the size of SD 1.5 and encoded pictures and captions."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
