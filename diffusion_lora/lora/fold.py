"""A mix written into a layer's weights, and taken out again by putting the kept originals back.

Never by subtraction: what is added in bf16 does not come off again. Which layers, and when, is the bank's to say.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffusion_lora.lora.weights import Full, Weights

Values = list[tuple[nn.Parameter, Tensor]]
"""Parameters of a layer and the values they are to have."""


def folded_values(module: nn.Module, acting: Sequence[tuple[float, Weights]]) -> Values:
    """A layer's weight and bias under these (strength, change): nothing is written yet.

    The sum is made in fp32 and rounded once, to the weight's dtype; its memory layout is kept. RuntimeError when the
    weight is quantised.
    """
    weight, bias = module.weight, module.bias
    assert isinstance(weight, nn.Parameter)
    if not weight.is_floating_point():
        raise RuntimeError(f"a weight of {weight.dtype} cannot take a mix in: load the base unquantised")
    total, shifted = weight.float(), bias.float() if isinstance(bias, nn.Parameter) else None
    for strength, layer in acting:
        total = total + strength * layer.delta(weight.cpu()).to(weight.device)
        if isinstance(layer, Full) and layer.bias is not None and shifted is not None:
            shifted = shifted + strength * layer.bias.to(shifted)
    values: Values = [(weight, torch.empty_like(weight).copy_(total))]
    if isinstance(bias, nn.Parameter) and shifted is not None:
        values.append((bias, shifted.to(bias.dtype)))
    return values


def swap(values: Values) -> Values:
    """Give the parameters these values; what they had comes back, so that swapping again restores it bit for bit."""
    before = [(parameter, parameter.data) for parameter, _ in values]
    for parameter, value in values:
        parameter.data = value
    return before
