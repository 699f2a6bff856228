"""What of a model's arithmetic in half precision goes by plain products, on a CPU that has instructions for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from diffusion_lora.train.attention import attention
from diffusion_lora.train.convolution import convolve

_HALVES = (torch.bfloat16, torch.float16)
_OWN: Mapping[Any, Callable[..., Tensor]] = {F.scaled_dot_product_attention: attention, F.conv2d: convolve}


class by_products(TorchFunctionMode):  # noqa: N801 - used as a context, like torch's own
    """Inside, short attention and frozen convolutions over few places are plain products, where that is quicker."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        own = _OWN.get(func)
        chosen = func if own is None or not args or args[0].dtype not in _HALVES else own
        return chosen(*args, **(kwargs or {}))
