"""Sums of adapters and changes of rank, on files alone: no base model is needed and no model is loaded.

    resize      the best plain adapter of a smaller rank (SVD), from any kind
    merge       several adapters at given strengths made into one:
        concat      rank rows side by side: exactly the stack of them, the rank is the sum of theirs
        svd         the stack, cut to a rank: the best that this rank can do
        linear      the factors added as they are (kohya's plain merge, peft's "linear"): cheap, with cross terms
        ties        small entries trimmed, a sign elected for each entry, those that agree averaged, then cut to a rank
        dare        entries dropped at random, the rest scaled up, added, then cut to a rank

One layer at a time; a delta is formed only where the method needs its entries (ties, dare) or it has no thin factors.
The deltas of DoRA depend on the base: `fold` such an adapter into it and `extract` a plain one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from diffusion_lora.errors import AdapterFileError, ConfigError
from diffusion_lora.lora import lineage
from diffusion_lora.lora.adapter import Adapter
from diffusion_lora.lora.factors import (
    Delta,
    Svd,
    delta_of,
    difference,
    factors_of,
    norm,
    rank_bound,
    singular_values,
    svd,
    svd_of,
    total,
    values_of,
)
from diffusion_lora.lora.plain import (
    Cut,
    LayerLoss,
    Part,
    Result,
    choose_ranks,
    factored_layer,
    form_of,
    make_plain,
    widest,
)
from diffusion_lora.lora.sparse import dare, ties
from diffusion_lora.lora.weights import Full, LoHa, LoKr, LowRank, Weights

How = Literal["concat", "svd", "linear", "ties", "dare"]
HOWS: tuple[str, ...] = get_args(How)


@dataclass(frozen=True, eq=False)
class Term:
    """An adapter in a sum; `name` is what messages and the result's metadata call it.

    `text_strength` is for its text encoder layers, by default `strength`.
    """

    adapter: Adapter
    strength: float
    name: str
    text_strength: float | None = None

    def strength_of(self, key: str) -> float:
        """What this layer's delta is multiplied by."""
        unet = key.startswith("unet.") or self.text_strength is None
        return self.strength if unet else self.text_strength or 0.0

    def delta(self, key: str) -> Delta | None:
        """The layer's part of the sum; None where the adapter has no such layer."""
        layer = self.adapter.layers.get(key)
        return None if layer is None else delta_of(layer).times(self.strength_of(key))


def resize(adapter: Adapter, cut: Cut, dtype: torch.dtype | None = None) -> Result:
    """A plain adapter of the same deltas, as near as the rank allows; in `dtype`, by default the adapter's own.

    A layer with a magnitude (DoRA) keeps it, and its error is that of the part before it. A plain adapter that would
    lose nothing comes back as it is. Biases of full deltas have no place in a plain adapter: the notes say so.
    """
    parts = {
        key: Part(layer.shape, rank_bound(layer), partial(singular_values, layer), partial(svd_of, layer))
        for key, layer in adapter.layers.items()
    }
    ranks = choose_ranks(parts, cut)
    own = dtype_of([adapter])
    if dtype in (None, own) and all(_keeps(layer, ranks[key]) for key, layer in adapter.layers.items()):
        norms = {key: norm(delta_of(layer)) for key, layer in adapter.layers.items()}
        losses = [LayerLoss(key, ranks[key], ranks[key], length, 0.0) for key, length in norms.items()]
        return Result(adapter, tuple(losses), ("no layer is of a higher rank than asked for: nothing is changed",))
    before = {key: layer.rank for key, layer in adapter.layers.items()}
    layers, losses = make_plain(parts, ranks, dtype or own, before)
    layers = {key: replace(layer, magnitude=adapter.layers[key].magnitude) for key, layer in layers.items()}
    metadata = lineage.of_resized(adapter.metadata, form_of(layers))
    notes = (*_dora_notes(adapter), *_bias_notes([adapter]))
    return Result(Adapter(layers, metadata, words=adapter.words), tuple(losses), notes)


def merge(
    terms: Sequence[Term],
    how: How,
    *,
    cut: Cut | None = None,
    density: float = 0.5,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> Result:
    """One plain adapter for the sum of these; in `dtype`, by default the widest among them.

    `cut` is for svd, ties and dare, by default the largest rank among the terms; `density` is the share of entries that
    ties and dare keep; dare's choice depends on the seed, the layer and the term's place. The losses tell the distance
    to the stack for concat, linear and svd, and to the method's own full result for ties and dare.

    AdapterFileError when an adapter is a DoRA, is for another model than the first, or has layers the method cannot
    take; ConfigError for a number out of range.
    """
    if not terms:
        raise ConfigError("nothing to merge: name at least one adapter, as in style.safetensors:0.8")
    if not 0 < density <= 1:
        raise ConfigError(f"the density is {density}; give the share of entries to keep, above 0 and up to 1")
    for term in terms:
        if not math.isfinite(term.strength_of("unet.")) or not math.isfinite(term.strength_of("te.")):
            raise ConfigError(f"the strength of {term.name} is {term.strength}; give a number")
    shapes = check_compatible(terms)
    dtype = dtype or dtype_of([term.adapter for term in terms])
    if how == "concat":
        layers, losses = _side_by_side(terms, shapes, dtype)
    elif how == "linear":
        layers, losses = _factor_by_factor(terms, shapes, dtype)
    else:
        sums: dict[str, Callable[[str], Delta]] = {
            "svd": partial(_stack_of, terms),
            "ties": partial(_ties_of, terms, density),
            "dare": partial(_dare_of, terms, density, seed),
        }
        bounds = {key: min(shape[0], math.prod(shape[1:])) for key, shape in shapes.items()}
        if how == "svd":
            bounds = {key: min(bound, _ranks_together(terms, key)) for key, bound in bounds.items()}
        parts = {
            key: Part(shape, bounds[key], partial(_values_at, sums[how], key), partial(_svd_at, sums[how], key))
            for key, shape in shapes.items()
        }
        ranks = choose_ranks(parts, cut or Cut(rank=_largest_rank(terms)))
        layers, losses = make_plain(parts, ranks, dtype, {})
    sources = [(f"{term.name}:{term.strength:g}", term.adapter.metadata) for term in terms]
    metadata = lineage.of_merged(sources, form_of(layers), how)
    words, word_notes = _words_of(terms)
    notes = (*_base_notes(terms), *_absence_notes(terms), *_bias_notes([term.adapter for term in terms]), *word_notes)
    return Result(Adapter(layers, metadata, words=words), tuple(losses), notes)


def _words_of(terms: Sequence[Term]) -> tuple[dict[str, Mapping[str, Tensor]], list[str]]:
    """The learned words of all terms; one that several know is the first one's, which is told."""
    words: dict[str, Mapping[str, Tensor]] = {}
    notes = []
    for term in terms:
        for word, vectors in term.adapter.words.items():
            if word in words:
                notes.append(f"the learned word {word!r} of {term.name} is left out: another one has it too")
            words.setdefault(word, vectors)
    return words, notes


def dtype_of(adapters: Sequence[Adapter]) -> torch.dtype:
    """The dtype that holds the tensors of all of them."""
    layers = [layer for adapter in adapters for layer in adapter.layers.values()]
    return widest([tensor.dtype for layer in layers for tensor in layer.tensors().values()])


def check_compatible(terms: Sequence[Term]) -> dict[str, tuple[int, ...]]:
    """The shape of every layer that any of them has. AdapterFileError: a DoRA, or shapes of different models."""
    shapes: dict[str, tuple[int, ...]] = {}
    owner: dict[str, Term] = {}
    for term in terms:
        if any(layer.needs_base for layer in term.adapter.layers.values()):
            raise AdapterFileError(
                f"{term.name} has DoRA layers, whose deltas depend on the base: fold it into its base, extract a plain "
                "adapter from the two checkpoints, and take that"
            )
        for key, layer in term.adapter.layers.items():
            known = shapes.setdefault(key, layer.shape)
            first = owner.setdefault(key, term)
            if (known[0], math.prod(known[1:])) != (layer.shape[0], math.prod(layer.shape[1:])):
                raise AdapterFileError(
                    f"{first.name} and {term.name} are for different models: {key} is {_times(known)} in the one and "
                    f"{_times(layer.shape)} in the other"
                )
            if len(layer.shape) > len(known):  # the other one folded its kernel into the inputs
                shapes[key] = layer.shape
    return shapes


def _side_by_side(
    terms: Sequence[Term], shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype
) -> tuple[dict[str, LowRank], list[LayerLoss]]:
    ranks = {key: len(_joined(key, terms).v) for key in shapes}  # joined twice: one layer at a time is in memory
    alpha = float(max(ranks.values()))
    layers, losses = {}, []
    for key, rank in ranks.items():
        delta = _joined(key, terms)
        assert delta.u is not None
        layers[key] = factored_layer(key, shapes[key], delta.u * (rank / alpha), delta.v, alpha, dtype)
        losses.append(LayerLoss(key, None, rank, norm(delta), difference(factors_of(layers[key]), delta)))
    return layers, losses


def _joined(key: str, terms: Sequence[Term]) -> Delta:
    """All rank rows of a layer, one of zeros if it has none. AdapterFileError for a form without thin factors."""
    found = []
    for term in terms:
        if (layer := term.adapter.layers.get(key)) is None:
            continue
        delta = factors_of(layer)
        if delta.u is None or (not isinstance(layer, LowRank) and delta_of(layer).u is None):
            raise AdapterFileError(
                f"{key} of {term.name} ({_kind(layer)}) has no thin rank rows to put beside others: take --how svd, "
                "which cuts it to a rank and tells what is lost"
            )
        found.append(delta.times(term.strength_of(key)))
    u, v = torch.cat([delta.u for delta in found if delta.u is not None], 1), torch.cat([delta.v for delta in found])
    return Delta(u, v) if len(v) else Delta(u.new_zeros(len(u), 1), v.new_zeros(1, v.shape[1]))


def _factor_by_factor(
    terms: Sequence[Term], shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype
) -> tuple[dict[str, LowRank], list[LayerLoss]]:
    """`down` and `up` added each by itself, with the square root of strength x scale in both (peft's "linear")."""
    present = {key: [(term, _plain(term, key)) for term in terms if key in term.adapter.layers] for key in shapes}
    for key, found in present.items():
        if len(ranks := {layer.rank for _, layer in found}) > 1:
            raise AdapterFileError(
                f"linear adds factors of equal rank, and {key} is of rank {' and '.join(map(str, sorted(ranks)))}: "
                "take --how svd or concat"
            )
    alpha = float(max(found[0][1].rank for found in present.values()))
    layers, losses = {}, []
    for key, found in present.items():
        rank = found[0][1].rank
        up = torch.zeros(shapes[key][0], rank, dtype=torch.float64)
        down = torch.zeros(rank, math.prod(shapes[key][1:]), dtype=torch.float64)
        for term, layer in found:
            weight = term.strength_of(key) * layer.scale
            up += layer.up.double().flatten(1) * math.sqrt(abs(weight))
            down += layer.down.double().flatten(1) * math.copysign(math.sqrt(abs(weight)), weight)
        root = math.sqrt(rank / alpha)
        layers[key] = factored_layer(key, shapes[key], up * root, down * root, alpha, dtype)
        stack = _stack_of(terms, key)
        losses.append(LayerLoss(key, rank, rank, norm(stack), difference(delta_of(layers[key]), stack)))
    return layers, losses


def _plain(term: Term, key: str) -> LowRank:
    match layer := term.adapter.layers[key]:
        case LowRank(mid=None):
            return layer
        case _:
            raise AdapterFileError(
                f"linear adds the factors of plain LoRA, and {key} of {term.name} is {_kind(layer)}: take --how svd"
            )


def _ranks_together(terms: Sequence[Term], key: str) -> int:
    """A rank that the sum cannot exceed."""
    return sum(rank_bound(term.adapter.layers[key]) for term in terms if key in term.adapter.layers)


def _largest_rank(terms: Sequence[Term]) -> int:
    ranks = [layer.rank for term in terms for layer in term.adapter.layers.values() if layer.rank is not None]
    if not ranks:
        raise ConfigError("none of these adapters has a rank of its own: say --rank or --energy")
    return max(ranks)


def _stack_of(terms: Sequence[Term], key: str) -> Delta:
    return total([delta for term in terms if (delta := term.delta(key)) is not None])


def _ties_of(terms: Sequence[Term], density: float, key: str) -> Delta:
    deltas = [delta for term in terms if (delta := term.delta(key)) is not None]
    return Delta(None, ties([delta.matrix().float() for delta in deltas], density).double())


def _dare_of(terms: Sequence[Term], density: float, seed: int, key: str) -> Delta:
    places = [(index, delta) for index, term in enumerate(terms) if (delta := term.delta(key)) is not None]
    generators = [_generator(seed, key, index) for index, _ in places]
    return Delta(None, dare([delta.matrix().float() for _, delta in places], density, generators).double())


def _values_at(sum_of: Callable[[str], Delta], key: str) -> Tensor:
    return values_of(sum_of(key))


def _svd_at(sum_of: Callable[[str], Delta], key: str, rank: int | None) -> Svd:
    return svd(sum_of(key), rank)


def _generator(seed: int, key: str, index: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {key} {index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def _keeps(layer: Weights, rank: int) -> bool:
    """Whether a plain adapter of this rank holds the layer as it is."""
    return isinstance(layer, LowRank) and layer.mid is None and rank >= layer.rank


def _kind(layer: Weights) -> str:
    match layer:
        case LoHa():
            return "a LoHa"
        case LoKr():
            return "a LoKr"
        case Full():
            return "a full difference"
        case LowRank(mid=None):
            return "a LoRA"
        case _:
            return "a LoCon with a core"


def _base_notes(terms: Sequence[Term]) -> list[str]:
    bases = {base: term.name for term in reversed(terms) if (base := lineage.base_of(term.adapter.metadata))}
    if len(bases) < 2:
        return []
    return ["they were trained on different bases: " + ", ".join(f"{name} on {base}" for base, name in bases.items())]


def _absence_notes(terms: Sequence[Term]) -> list[str]:
    every = {key for term in terms for key in term.adapter.layers}
    return [
        f"{term.name} has no part in {len(every) - len(term.adapter.layers)} of {len(every)} layers"
        for term in terms
        if len(term.adapter.layers) < len(every)
    ]


def _bias_notes(adapters: Sequence[Adapter]) -> list[str]:
    biases = sum(
        isinstance(layer, Full) and layer.bias is not None for adapter in adapters for layer in adapter.layers.values()
    )
    return [f"the biases of {biases} full layers are left out: a plain LoRA has no place for them"] if biases else []


def _dora_notes(adapter: Adapter) -> list[str]:
    dora = sum(layer.needs_base for layer in adapter.layers.values())
    return [f"{dora} layers are DoRA: they keep their magnitude, and errors are those before it"] if dora else []


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
