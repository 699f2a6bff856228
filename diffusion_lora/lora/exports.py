"""An adapter's tensors as other programs' files hold them, under their names and at the scale they will read.

Programs agree on up @ down and disagree on the scale: most take alpha / rank from a tensor, some know none and take 1,
and diffusers gives the commonest alpha of a file to attention layers that have another. So what is written leaves them
no choice: a kohya file has one alpha in each part of the model, a PEFT file a scale of 1, and the rest of each layer's
scale lies in its `up`. Nothing is rounded for it: an `up` whose dtype cannot hold the product becomes fp32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from diffusion_lora.errors import OutputError
from diffusion_lora.lora.factors import delta_of, svd
from diffusion_lora.lora.formats import kohya, paths, peft
from diffusion_lora.lora.formats.forms import ALPHA, UP, magnitude_axis
from diffusion_lora.lora.formats.names import PEFT_MAGNITUDE
from diffusion_lora.lora.weights import Full, LowRank, Weights


def kohya_tensors(layers: Mapping[str, Weights]) -> dict[str, Tensor]:
    """Names and tensors of a kohya file, LyCORIS's forms included, with an alpha in fp32 for every layer."""
    alphas = {key: _plain_alpha(layer) for key, layer in layers.items()}
    common = {
        component: _commonest([alphas[key] for key in keys])
        for component, keys in _by_component({k: v for k, v in layers.items() if isinstance(v, LowRank)}).items()
    }
    named: dict[str, Tensor] = {}
    for key, layer in layers.items():
        module, tensors, alpha = kohya.module_name(key), dict(layer.tensors()), alphas[key]
        if isinstance(layer, LowRank) and alpha != (one := common[key.split(".", 1)[0]]):
            tensors[UP], alpha = scaled(layer.up, alpha / one), one
        if not isinstance(layer, Full):
            tensors[ALPHA] = torch.tensor(alpha, dtype=torch.float32)
        named |= {f"{module}.{suffix}": tensor for suffix, tensor in tensors.items()}
    return named


def peft_tensors(layers: Mapping[str, Weights]) -> tuple[dict[str, Tensor], str]:
    """Names and tensors of a diffusers/PEFT file, and the settings for its header.

    Forms that PEFT's LoRA has not are factored, exactly: a LoHa of rank r has a rank of up to r squared. OutputError
    for what it cannot say: biases, magnitudes of columns, and DoRA in a part of a text encoder or UNet only.
    """
    named, ranks = {}, {}
    for key, layer in layers.items():
        plain = _plain(key, layer)
        module, ranks[key] = peft.module_name(key), plain.rank
        named[f"{module}.lora_A.weight"] = plain.down
        named[f"{module}.lora_B.weight"] = scaled(plain.up, plain.scale)
        if plain.magnitude is not None:
            named[f"{module}.{PEFT_MAGNITUDE}"] = _peft_magnitude(key, plain, plain.magnitude)
    dora = {component: _has_dora(component, keys, layers) for component, keys in _by_component(layers).items()}
    return named, peft.metadata_of(ranks, dora)


def scaled(tensor: Tensor, factor: float) -> Tensor:
    """factor times the tensor, in its dtype if that holds the products, else in fp32."""
    product = tensor.float() * factor
    rounded = product.to(tensor.dtype)
    return rounded if torch.equal(rounded.float(), product) else product


def _plain_alpha(layer: Weights) -> float:
    """The alpha by which a program that divides it by the rank arrives at this layer's scale."""
    alpha = layer.scale * (layer.rank or 1)
    return float(torch.tensor(alpha, dtype=torch.float32))


def _commonest(alphas: list[float]) -> float:
    """The commonest but 0, which programs read as alpha = rank."""
    return Counter(alpha for alpha in alphas if alpha or not any(alphas)).most_common(1)[0][0] or 1.0


def _by_component(layers: Mapping[str, Weights]) -> dict[str, list[str]]:
    keys: dict[str, list[str]] = {}
    for key in layers:
        keys.setdefault(key.split(".", 1)[0], []).append(key)
    return keys


def _plain(key: str, layer: Weights) -> LowRank:
    """The layer as `down`, `up` and perhaps a magnitude, in the shapes of the layer that it changes."""
    if isinstance(layer, Full) and layer.bias is not None:
        raise OutputError(f"{key} has a trained bias, which a PEFT file cannot hold: write a kohya file")
    if isinstance(layer, LowRank) and layer.mid is None:
        return layer
    decomposed = svd(delta_of(layer))
    u, s, v = decomposed.u, decomposed.s, decomposed.v
    if not len(s):
        u, s, v = u.new_zeros(len(u), 1), s.new_zeros(1), v.new_zeros(1, v.shape[1])
    inputs = layer.shape[1:]
    if len(inputs) == 1 and paths.kernel_of(key.split(".", 1)[1]) == 3 and inputs[0] % 9 == 0:
        inputs = (inputs[0] // 9, 3, 3)  # a LoKr that folded the kernel into its inputs
    root = s.sqrt()
    up = (u * root).float().reshape(*u.shape, *(1,) * (len(inputs) - 1))
    down = (root[:, None] * v).float().reshape(-1, *inputs)
    return LowRank(down.contiguous(), up.contiguous(), float(len(s)), magnitude=layer.magnitude)


def _peft_magnitude(key: str, layer: LowRank, magnitude: Tensor) -> Tensor:
    if magnitude_axis(magnitude.shape, layer.shape) != 0:
        raise OutputError(f"{key} has a magnitude for every input, and a PEFT file can hold those of outputs only")
    convolution = len(layer.shape) > 2
    return magnitude.reshape(1, -1, 1, 1) if convolution else magnitude.flatten()


def _has_dora(component: str, keys: list[str], layers: Mapping[str, Weights]) -> bool:
    having = [key for key in keys if layers[key].magnitude is not None]
    if having and len(having) < len(keys):
        raise OutputError(
            f"{len(having)} of {len(keys)} layers of {component} have a magnitude (DoRA), and a PEFT file can only say "
            "that all have: write a kohya file"
        )
    return bool(having)
