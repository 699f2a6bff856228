"""Training that starts from a LoRA that exists: its matrices become those of the adapter in training.

Nothing is approximated and nothing of it is left out: what the fresh adapter cannot hold is refused. A file of lower
rank fills the first rank rows; the others start as in any training and change nothing yet.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_lora.errors import ConfigError
from diffusion_lora.lora.adapter import Adapter
from diffusion_lora.lora.formats.forms import magnitude_axis
from diffusion_lora.lora.trainable import TrainableAdapter, TrainedLayer
from diffusion_lora.lora.weights import LowRank, Weights


def start_from(trained: TrainableAdapter, adapter: Adapter, source: str) -> None:
    """Set the matrices to those of `adapter`, which is of the same model; layers that it lacks stay fresh.

    The scale stays the one that is trained with: where the file has another, `up` takes the difference. ConfigError,
    naming `source`, for layers that are not trained, for a rank above theirs and for other forms than plain LoRA and
    the DoRA that is trained.
    """
    left_out = [key for key in adapter.layers if key not in trained.layers]
    if left_out:
        raise ConfigError(
            f"lora.start_from = {source}: {len(left_out)} of its {len(adapter.layers)} layers are not trained here, "
            f"the first is {left_out[0]}: choose lora.targets and lora.text_targets that hold them, or train on top of "
            "it with model.fold"
        )
    _fill_words(trained, adapter, source)
    for key, weights in adapter.layers.items():
        _fill(trained.layers[key], _plain(weights, key, source), key, source)


@torch.no_grad()
def _fill_words(trained: TrainableAdapter, adapter: Adapter, source: str) -> None:
    for word, vectors in adapter.words.items():
        own = trained.words.get(word, {})
        if {part: tensor.shape for part, tensor in own.items()} != {part: each.shape for part, each in vectors.items()}:
            count = len(next(iter(vectors.values())))
            raise ConfigError(
                f'lora.start_from = {source}: it has learned the word {word!r}: set word.text = "{word}" and '
                f"word.vectors = {count}"
            )
        for part, tensor in own.items():
            tensor.copy_(vectors[part])


def _plain(weights: Weights, key: str, source: str) -> LowRank:
    if isinstance(weights, LowRank) and weights.mid is None:
        return weights
    raise ConfigError(
        f"lora.start_from = {source}: {key} is not a plain LoRA (down and up): train on top of it with model.fold, or "
        "resize it first (diffusion-lora adapter resize)"
    )


@torch.no_grad()
def _fill(layer: TrainedLayer, weights: LowRank, key: str, source: str) -> None:
    rank, rows = weights.rank, len(layer.down)
    if rank > rows:
        raise ConfigError(
            f"lora.start_from = {source}: {key} has rank {rank} and lora.rank gives it {rows}: set lora.rank = {rank}, "
            "or resize the file first (diffusion-lora adapter resize)"
        )
    offset = _offset(layer, weights, key, source)
    layer.down[:rank].copy_(weights.down.reshape(rank, *layer.down.shape[1:]))
    layer.up.zero_()
    up = weights.up.reshape(-1, rank, *layer.up.shape[2:]).float()
    layer.up[:, :rank].copy_(up if weights.scale == layer.scale else up * (weights.scale / layer.scale))
    if layer.magnitude is not None and offset is not None:
        layer.magnitude.offset.copy_(offset)


def _offset(layer: TrainedLayer, weights: LowRank, key: str, source: str) -> Tensor | None:
    """What is added to the base's norms to make the file's magnitudes; None where neither is a DoRA."""
    axis = None if weights.magnitude is None else magnitude_axis(weights.magnitude.shape, weights.shape)
    wanted = None if layer.magnitude is None else layer.magnitude.axis
    if axis != wanted:
        named = {None: "off", 0: "output", 1: "input"}
        raise ConfigError(
            f'lora.start_from = {source}: {key} asks for lora.dora = "{named[axis]}", not "{named[wanted]}"'
        )
    if layer.magnitude is None or weights.magnitude is None:
        return None
    base = layer.magnitude.values() - layer.magnitude.offset
    return weights.magnitude.flatten().to(base) - base
