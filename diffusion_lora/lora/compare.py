"""What two adapters do to each other when they are stacked: block by block, before a picture is drawn.

    cosine      <A, B> / (|A| |B|) of the deltas as vectors: 1 the same change, 0 nothing in common, -1 the opposite
    overlap     the share of A's energy that lies in the row and column spaces of B: where they meet, whatever the sign

Both come from products of the factors, matrices of the size of the ranks; no delta is formed. In n dimensions two
random deltas have a cosine of about 1 / sqrt(n), so a tenth is already much. Overlap is told beside what chance would
give: high ranks meet everywhere. Not here: adding them (`algebra`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import torch

from diffusion_lora.lora.algebra import Term, check_compatible
from diffusion_lora.lora.blocks import block_of
from diffusion_lora.lora.factors import Delta, inner

Verdict = Literal["reinforcing", "independent", "cancelling"]

THRESHOLD = 0.1
"""Cosines nearer to zero are independent: of two equally strong ones the stack is then within 5 % of as strong."""

MAX_STRENGTH = 1.5
"""Beyond, an adapter leaves what it was trained for; opposites that would need more cannot be mended by strength."""


@dataclass(frozen=True)
class Meeting:
    """Two sets of deltas: energies ``|A|^2`` and ``|B|^2``, their inner product, and what of each lies in the other.

    `shared_a` is the energy of A in the spaces of B, `chance_a` what it would be for random directions; `b` likewise.
    """

    energy_a: float = 0.0
    energy_b: float = 0.0
    product: float = 0.0
    shared_a: float = 0.0
    shared_b: float = 0.0
    chance_a: float = 0.0
    chance_b: float = 0.0

    def __add__(self, other: Meeting) -> Meeting:
        mine, theirs = vars(self), vars(other)
        return Meeting(**{name: mine[name] + theirs[name] for name in mine})

    @property
    def norm_a(self) -> float:
        return math.sqrt(self.energy_a)

    @property
    def norm_b(self) -> float:
        return math.sqrt(self.energy_b)

    @property
    def cosine(self) -> float:
        """From -1 to 1; 0 where one of them is nothing."""
        length = self.norm_a * self.norm_b
        return max(-1.0, min(1.0, self.product / length)) if length else 0.0

    @property
    def overlap_a(self) -> float:
        """Share of A's energy in B's spaces."""
        return self.shared_a / self.energy_a if self.energy_a else 0.0

    @property
    def overlap_b(self) -> float:
        """Share of B's energy in A's spaces."""
        return self.shared_b / self.energy_b if self.energy_b else 0.0

    @property
    def gain(self) -> float:
        """Length of the stack over what it would be were they independent: 1.41 for twice the same, 0 for opposites."""
        alone = self.energy_a + self.energy_b
        return math.sqrt(max(0.0, alone + 2 * self.product) / alone) if alone else 1.0

    @property
    def verdict(self) -> Verdict:
        if abs(self.cosine) < THRESHOLD:
            return "independent"
        return "reinforcing" if self.cosine > 0 else "cancelling"

    @property
    def factor(self) -> float | None:
        """What to multiply both strengths by, 1 / (1 + cosine); None where no strength up to `MAX_STRENGTH` helps.

        Of two directions of unit length, each times this, the sum reaches exactly 1 along either of them: what they
        share is not counted twice, what they take from each other is given back.
        """
        if self.verdict == "independent":
            return 1.0
        return 1 / (1 + self.cosine) if (1 + self.cosine) * MAX_STRENGTH >= 1 else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "cosine": self.cosine,
            "verdict": self.verdict,
            "overlap_a": self.overlap_a,
            "overlap_b": self.overlap_b,
            "chance_a": self.chance_a / self.energy_a if self.energy_a else 0.0,
            "chance_b": self.chance_b / self.energy_b if self.energy_b else 0.0,
            "norm_a": self.norm_a,
            "norm_b": self.norm_b,
            "gain": self.gain,
            "strength_factor": self.factor,
        }


@dataclass(frozen=True)
class Comparison:
    """Two adapters at their strengths: in all, and by block in the order of the model."""

    a: Term
    b: Term
    whole: Meeting
    blocks: Mapping[str, Meeting]
    notes: tuple[str, ...] = ()

    @property
    def advice(self) -> str:
        """One or two sentences: what the stack does, and at which strengths."""
        whole = self.whole
        if not whole.energy_a or not whole.energy_b:
            return f"{(self.b if whole.energy_a else self.a).name} changes nothing at this strength."
        match whole.verdict:
            case "independent":
                return "They go their own ways: stacked, each does what it does alone."
            case "reinforcing":
                return (
                    f"They reinforce each other: stacked they are {whole.gain:.2f} times as strong as two independent "
                    f"ones. {self._strengths()} keeps either as strong as alone."
                )
            case _ if whole.factor is None:
                return (
                    "They undo each other, and no strengths make both act: let one lead, or let them act on different "
                    "blocks or steps."
                )
            case _:
                return (
                    f"They take from each other: stacked they are {whole.gain:.2f} times as strong as two independent "
                    f"ones. {self._strengths()} gives it back."
                )

    @property
    def strengths(self) -> tuple[float, float] | None:
        """Suggested strengths of A and B; None where none help."""
        if self.whole.factor is None:
            return None
        return self.a.strength * self.whole.factor, self.b.strength * self.whole.factor

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "a": self.a.name,
            "b": self.b.name,
            "strengths": [self.a.strength, self.b.strength],
            "suggested_strengths": list(self.strengths) if self.strengths else None,
            "advice": self.advice,
            "notes": list(self.notes),
            **self.whole.as_dict(),
            "blocks": {block: meeting.as_dict() for block, meeting in self.blocks.items()},
        }

    def _strengths(self) -> str:
        assert self.strengths is not None
        return f"{self.a.name}:{self.strengths[0]:.2f} with {self.b.name}:{self.strengths[1]:.2f}"


def compare(a: Term, b: Term) -> Comparison:
    """How they meet. AdapterFileError: for different models, or a DoRA, whose delta needs a base."""
    keys = check_compatible([a, b])
    blocks: dict[str, list[Meeting]] = {}
    for key in keys:
        blocks.setdefault(block_of(key), []).append(meet(a.delta(key), b.delta(key)))
    by_block = {block: _sum(meetings) for block, meetings in blocks.items()}
    shared = a.adapter.layers.keys() & b.adapter.layers.keys()
    notes = () if len(shared) == len(keys) else (f"{len(shared)} of {len(keys)} layers are in both",)
    return Comparison(a, b, _sum(by_block.values()), by_block, notes)


def meet(a: Delta | None, b: Delta | None) -> Meeting:
    """One layer; None for an adapter that does not touch it."""
    energy_a = inner(a, a) if a is not None else 0.0
    energy_b = inner(b, b) if b is not None else 0.0
    if a is None or b is None:
        return Meeting(energy_a, energy_b)
    return Meeting(
        energy_a=energy_a,
        energy_b=energy_b,
        product=inner(a, b),
        shared_a=_shared(a, b) if energy_b else 0.0,
        shared_b=_shared(b, a) if energy_a else 0.0,
        chance_a=energy_a * _chance(b),
        chance_b=energy_b * _chance(a),
    )


def _shared(a: Delta, b: Delta) -> float:
    """Energy of a in the row and column spaces of b: that of Q_u^T a Q_v with orthonormal bases of both."""
    if b.u is None:
        return inner(a, a)
    q_u, q_v = torch.linalg.qr(b.u)[0], torch.linalg.qr(b.v.T)[0]
    inside = q_u.T @ a.v @ q_v if a.u is None else (q_u.T @ a.u) @ (a.v @ q_v)
    return float(inside.square().sum())


def _chance(b: Delta) -> float:
    """Share of a random delta's energy in the spaces of b."""
    if b.u is None:
        return 1.0
    rank = b.v.shape[0]
    return (rank / b.shape[0]) * (rank / b.shape[1])


def _sum(meetings: Iterable[Meeting]) -> Meeting:
    return reduce(Meeting.__add__, meetings, Meeting())
