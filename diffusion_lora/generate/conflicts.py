"""What the adapters of a request do to each other, told with figures before anybody wonders (`lora.compare`).

Of every pair that acts in the same place: the cosine of their deltas, and how strong the stack is beside two that have
nothing in common. A pair is measured once, at strength 1; strengths only scale it. Text parts count at the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations

from diffusion_lora.errors import UserError
from diffusion_lora.generate.request import LoraUse
from diffusion_lora.lora.adapter import Adapter
from diffusion_lora.lora.algebra import Term
from diffusion_lora.lora.compare import Meeting, compare


class Conflicts:
    """The pairs met so far."""

    def __init__(self, adapter_of: Callable[[LoraUse], Adapter]) -> None:
        self._adapter_of = adapter_of
        self._met: dict[tuple[str, str], Meeting | None] = {}

    def notes(self, uses: Sequence[LoraUse]) -> tuple[str, ...]:
        """One sentence for each pair of resolved uses that reinforce each other or cancel out."""
        told = []
        for a, b in combinations(sorted((use for use in uses if use.strength), key=lambda use: str(use.sha)), 2):
            together = not a.region or not b.region or a.region == b.region
            if a.sha == b.sha or not together or (met := self._meeting(a, b)) is None:
                continue
            met = _scaled(met, a.strength, b.strength)
            if met.verdict != "independent":
                verb = "reinforce each other" if met.verdict == "reinforcing" else "cancel out in part"
                told.append(
                    f"{a.name} and {b.name} {verb}: cosine {met.cosine:+.2f}, together {met.gain:.2f} times as strong "
                    "as two that have nothing in common"
                )
        return tuple(told)

    def _meeting(self, a: LoraUse, b: LoraUse) -> Meeting | None:
        """At strength 1 each; None where they cannot be compared without the base (DoRA)."""
        key = str(a.sha), str(b.sha)
        if key not in self._met:
            try:
                terms = [Term(self._adapter_of(use), 1.0, use.name) for use in (a, b)]
                self._met[key] = compare(*terms).whole
            except UserError:
                self._met[key] = None
        return self._met[key]


def _scaled(met: Meeting, a: float, b: float) -> Meeting:
    return replace(met, energy_a=met.energy_a * a * a, energy_b=met.energy_b * b * b, product=met.product * a * b)
