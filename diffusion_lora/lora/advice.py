"""Which rank is enough, by the kind of layer, and what it costs: for gradients before a training and deltas after one.

The rank advised for some layers is the smallest, one for all of them, whose best approximations (Eckart and Young 1936)
keep a share of their energy, the sum of squared singular values: a layer in which little happens has little say. Where
the matrices come from is not known here: `train.advise` takes the gradients, `spectrum` the deltas.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Any

import torch
from torch import Tensor

from diffusion_lora.lora.factors import Delta, svd
from diffusion_lora.lora.spectrum import Spectrum

SHARE = 0.95
LADDER = (1, 2, 4, 8, 16, 32, 64, 128)
"""The ranks for which cost and share are told beside the one advised."""

_HALF_BYTES = 2  # adapters are saved in fp16 unless asked otherwise
_FIRST_TRY = 32

# Kind: what a key holds, and the pattern by which `lora.rank_patterns` finds the same layers in dotted paths.
_KINDS: tuple[tuple[str, str, str], ...] = (
    ("self-attention", r"^unet\..*_attn1_to_", r"\.attn1\.to_"),
    ("cross-attention", r"^unet\..*_attn2_to_", r"\.attn2\.to_"),
    ("feed-forward", r"^unet\..*_ff_net_", r"\.ff\.net\."),
    ("projections", r"^unet\..*_proj_(in|out)$", r"attentions\.\d+\.proj_(in|out)$"),
    ("time", r"^unet\..*(time_emb|add_embedding)", r"time_emb|add_embedding"),
    ("convolutions", r"^unet\.", r"conv"),
    ("text attention", r"^te\d?\..*_self_attn_", r"self_attn\."),
    ("text feed-forward", r"^te\d?\..*_mlp_", r"\.mlp\."),
)
_OTHER = "other"


@dataclass(frozen=True, eq=False)
class Need:
    """One layer: its falling singular values, at least those that hold the share asked about, and the energy of all.

    `cost` is what one rank row takes, out + in x kernel numbers.
    """

    key: str
    values: Tensor
    energy: float
    cost: int


@dataclass(frozen=True)
class Choice:
    """A rank for some layers: the share of their energy that it keeps, and its price in numbers of an adapter."""

    rank: int
    kept: float
    parameters: int

    @property
    def size_bytes(self) -> int:
        """Of the tensors in fp16."""
        return self.parameters * _HALF_BYTES

    def as_dict(self) -> dict[str, Any]:
        return {"rank": self.rank, "kept": self.kept, "parameters": self.parameters, "size_bytes": self.size_bytes}


@dataclass(frozen=True)
class KindAdvice:
    """The layers of one kind: how much of the energy is theirs, the rank advised, and what single layers would take."""

    kind: str
    layers: int
    energy_share: float
    choice: Choice
    median_rank: int
    most: int

    def as_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "layers": self.layers,
            "energy_share": self.energy_share,
            **self.choice.as_dict(),
            "median_rank": self.median_rank,
            "most": self.most,
        }


@dataclass(frozen=True)
class Advice:
    """What to set `lora.rank` to: `choice` for all layers, `ladder` other ranks beside it, `by_kind` each kind's own.

    `parameters` is what the ranks by kind take together; `patterns` says them as `lora.rank_patterns`.
    """

    share: float
    choice: Choice
    ladder: tuple[Choice, ...]
    by_kind: tuple[KindAdvice, ...]
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        return sum(kind.choice.parameters for kind in self.by_kind)

    @property
    def patterns(self) -> dict[str, int]:
        """For `lora.rank_patterns`: the kinds whose rank is another than that of all."""
        known = {name: pattern for name, _, pattern in _KINDS}
        return {
            known[kind.kind]: kind.choice.rank
            for kind in self.by_kind
            if kind.kind in known and kind.choice.rank != self.choice.rank
        }

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "share": self.share,
            **self.choice.as_dict(),
            "ladder": [choice.as_dict() for choice in self.ladder],
            "by_kind": [kind.as_dict() for kind in self.by_kind],
            "parameters_by_kind": self.parameters,
            "rank_patterns": self.patterns,
            "notes": list(self.notes),
        }


def advice(needs: Sequence[Need], share: float = SHARE, notes: Sequence[str] = ()) -> Advice:
    """The ranks that keep this share of the energy. ValueError where there is no layer."""
    if not needs:
        raise ValueError("no layer to advise on")
    total = math.fsum(need.energy for need in needs)
    kinds: dict[str, list[Need]] = {}
    for need in needs:
        kinds.setdefault(kind_of(need.key), []).append(need)
    order = [name for name, _, _ in _KINDS] + [_OTHER]
    by_kind = tuple(_of_kind(kind, kinds[kind], share, total) for kind in sorted(kinds, key=order.index))
    rank = _rank_for(needs, share)
    widest = max(len(need.values) for need in needs)
    steps = sorted({rank, *(step for step in LADDER if step <= max(2 * rank, LADDER[0]) and step <= widest)})
    return Advice(share, _choice(needs, rank), tuple(_choice(needs, step) for step in steps), by_kind, tuple(notes))


def needs_of(spectrum: Spectrum) -> list[Need]:
    """Of a trained adapter, after the fact."""
    return [
        Need(layer.key, torch.tensor(layer.values, dtype=torch.float64), layer.energy, layer.parameters_per_rank)
        for layer in spectrum.layers
    ]


def need_of(key: str, gram: Tensor, cost: int, share: float = SHARE) -> Need:
    """Of matrices side by side, from the sum of their Gram matrices ``[m, m]``: whose eigenvalues are squared singular
    values, and whose trace is the energy. As many values as hold the share are sought, by randomised subspace iteration
    where few do (`factors.svd`), twice as many at every try."""
    whole = Delta(None, gram.detach().cpu().double())
    energy, bound, rank = float(whole.v.trace()), len(gram), _FIRST_TRY
    while True:
        squares = svd(whole, min(rank, bound)).s
        if rank >= bound or float(squares.sum()) >= share * energy:
            return Need(key, squares.sqrt(), energy, cost)
        rank *= 2


def kind_of(key: str) -> str:
    """`unet.mid_block_..._attn1_to_q` -> "self-attention"."""
    return next((name for name, pattern, _ in _KINDS if re.search(pattern, key)), _OTHER)


def _of_kind(kind: str, needs: Sequence[Need], share: float, total: float) -> KindAdvice:
    ranks = [_rank_for([need], share) for need in needs]
    energy = math.fsum(need.energy for need in needs)
    choice = _choice(needs, _rank_for(needs, share))
    return KindAdvice(kind, len(needs), energy / total if total else 0.0, choice, median_low(ranks), max(ranks))


def _rank_for(needs: Sequence[Need], share: float) -> int:
    """The smallest rank, the same for all, that keeps the share of their energy; at least 1."""
    kept = _kept(needs)
    wanted = share * math.fsum(need.energy for need in needs) * (1 - 1e-12)
    return max(1, int((kept < wanted).sum()))


def _kept(needs: Sequence[Need]) -> Tensor:
    """Energy that is kept at rank 0, 1, 2, ..., float64."""
    by_index = torch.zeros(1 + max(len(need.values) for need in needs), dtype=torch.float64)
    for need in needs:
        by_index[1 : 1 + len(need.values)] += need.values.double().square().cpu()
    return by_index.cumsum(0)


def _choice(needs: Sequence[Need], rank: int) -> Choice:
    kept = _kept(needs)
    energy = math.fsum(need.energy for need in needs)
    share = float(kept[min(rank, len(kept) - 1)]) / energy if energy else 1.0
    return Choice(rank, min(share, 1.0), sum(rank * need.cost for need in needs))
