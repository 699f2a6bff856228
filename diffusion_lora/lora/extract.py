"""The difference of two checkpoints as a plain adapter: what a fine-tuned model adds to its base, by SVD.

Layer by layer: both weights are read, their difference is decomposed, and only the factors are kept. What changed and
has no place in a LoRA (norms, biases, embeddings, the VAE) is counted and told. Half-precision files differ from what
they were rounded from, so their difference is noisy: a rank by energy then asks for more than the training put there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from diffusion_lora.errors import BaseModelError, ConfigError
from diffusion_lora.lora import lineage
from diffusion_lora.lora.adapter import Adapter
from diffusion_lora.lora.checkpoint import DTYPES, Checkpoint, read_tensor
from diffusion_lora.lora.factors import Delta, Svd, svd, values_of
from diffusion_lora.lora.plain import Cut, Part, Result, choose_ranks, form_of, make_plain


def extract(
    tuned: Checkpoint,
    base: Checkpoint,
    cut: Cut,
    *,
    only: str = "",
    dtype: torch.dtype = torch.float16,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Result:
    """The plain adapter whose deltas are nearest to tuned minus base; layers that did not change are left out.

    `only` is a regular expression that keys must match somewhere. `progress` counts layers, twice when the cut asks
    for the spectrum first. BaseModelError when the two are different models or do not differ; ConfigError for a bad
    expression.
    """
    keys = _shared_keys(tuned, base, only)
    changed = [key for key in keys if _differs(tuned, base, key)]
    if not changed:
        raise BaseModelError(f"{tuned.path} and {base.path} do not differ in any layer that an adapter could change")
    passes, done = 2 if cut.needs_values else 1, 0

    def difference(key: str) -> Delta:
        nonlocal done
        done += 1
        progress(done, passes * len(changed))
        return Delta(None, (tuned.read(key).double() - base.read(key).double()).flatten(1))

    def values(key: str) -> Tensor:
        return values_of(difference(key))

    def decomposed(key: str, rank: int | None) -> Svd:
        return svd(difference(key), rank)

    parts = {}
    for key in changed:
        shape = base.weights[key].shape
        parts[key] = Part(shape, min(shape[0], math.prod(shape[1:])), partial(values, key), partial(decomposed, key))
    made, losses = make_plain(parts, choose_ranks(parts, cut), dtype, {})
    metadata = lineage.of_extracted(tuned.path.name, base.path.name, form_of(made))
    return Result(Adapter(made, metadata), tuple(losses), tuple(_notes(tuned, base, keys, changed)))


def _shared_keys(tuned: Checkpoint, base: Checkpoint, only: str) -> list[str]:
    for key in tuned.weights.keys() & base.weights.keys():
        if tuned.weights[key].shape != base.weights[key].shape:
            raise BaseModelError(
                f"{tuned.path} and {base.path} are different models: {key} is {_times(tuned.weights[key].shape)} in "
                f"the one and {_times(base.weights[key].shape)} in the other"
            )
    try:
        pattern = re.compile(only)
    except re.error as error:
        raise ConfigError(f"--only {only!r} is not a regular expression: {error}") from None
    shared = [key for key in base.weights if key in tuned.weights]
    if not shared:
        raise BaseModelError(f"{tuned.path} and {base.path} share no layer: they are different models")
    chosen = [key for key in shared if pattern.search(key)]
    if not chosen:
        raise ConfigError(f"--only {only!r} matches no layer of {base.path}, whose layers read {shared[0]!r}")
    return chosen


def _differs(tuned: Checkpoint, base: Checkpoint, key: str) -> bool:
    return not torch.equal(tuned.read(key).float(), base.read(key).float())


def _notes(tuned: Checkpoint, base: Checkpoint, keys: list[str], changed: list[str]) -> list[str]:
    notes = []
    if len(changed) < len(keys):
        notes.append(f"{len(keys) - len(changed)} of {len(keys)} layers are the same in both and left out")
    dtypes = {place.dtype for one in (tuned, base) for key in keys if (place := one.weights[key])}
    if len(dtypes) > 1:
        notes.append(f"the two are stored in {' and '.join(sorted(dtypes))}: their rounding is part of the difference")
    elif dtypes & {"F16", "BF16"}:
        notes.append(f"both are stored in {dtypes.pop()}: its rounding is part of the difference")
    moved = _moved_others(tuned, base)
    if moved:
        notes.append(
            f"{len(moved)} other tensors differ too, which a LoRA has no place for (norms, biases, embeddings, VAE), "
            f"such as {moved[0]}"
        )
    return notes


def _moved_others(tuned: Checkpoint, base: Checkpoint) -> list[str]:
    """Names of the tensors in both, beside layers, whose values differ."""
    places = {_place_of(base, file, name): file for file, name in base.others}
    moved = []
    for file, name in tuned.others:
        twin = places.get(_place_of(tuned, file, name))
        if twin is None or tuned.headers[file].tensors[name].dtype not in DTYPES:  # position_ids and the like
            continue
        one, other = read_tensor(tuned.headers[file], name), read_tensor(base.headers[twin], name)
        if one.shape != other.shape or not torch.equal(one.float(), other.float()):
            moved.append(name)
    return moved


def _place_of(checkpoint: Checkpoint, file: Path, name: str) -> tuple[str, str]:
    """Two text encoders in folders have tensors of one name."""
    return (file.parent.name if checkpoint.path.is_dir() else "", name)


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
