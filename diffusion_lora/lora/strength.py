"""An adapter whose strength 1 is another's strength s: folded into alpha, so that the factors stay as they are.

Exact up to the float32 in which files hold alpha. Layers that know no alpha take it into their own numbers, in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from diffusion_lora.errors import AdapterFileError
from diffusion_lora.lora.adapter import Adapter
from diffusion_lora.lora.weights import Full, LoKr, Weights


def at_strength(adapter: Adapter, strength: float) -> Adapter:
    """The adapter at this strength as one of strength 1. Learned words have no strength and stay.

    AdapterFileError for DoRA: there a strength multiplies what the normalisation makes of the change, which no alpha
    says.
    """
    if any(layer.needs_base for layer in adapter.layers.values()):
        raise AdapterFileError(
            f"a strength of {strength:g} cannot be folded into DoRA layers, whose alpha is not their strength: use the "
            "file at this strength, or write it into its base with adapter fold"
        )
    layers = {key: _layer(layer, strength) for key, layer in adapter.layers.items()}
    return replace(adapter, layers=layers, metadata=_metadata(adapter.metadata, strength))


def _layer(layer: Weights, strength: float) -> Weights:
    match layer:
        case Full():
            return replace(
                layer,
                diff=strength * layer.diff.float(),
                bias=None if layer.bias is None else strength * layer.bias.float(),
            )
        case LoKr() if layer.rank is None:  # whole factors: every program takes a scale of 1, whatever alpha says
            assert not isinstance(layer.w1, tuple)
            return replace(layer, w1=strength * layer.w1.float())
    return replace(layer, alpha=layer.alpha * strength)


def _metadata(metadata: Mapping[str, str], strength: float) -> dict[str, str]:
    """kohya's word for alpha follows, so that the header says what the tensors do."""
    try:
        return {**metadata, "ss_network_alpha": str(float(metadata["ss_network_alpha"]) * strength)}
    except (KeyError, ValueError):
        return dict(metadata)
