"""The gate of a layer's adapters: one small tensor that says how much of every rank row is let through, and where.

What this module does not know: layers, adapters, and what opens the gates (`bank`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lora.lora.area import Spread


class Gate:
    """The gate of every layer whose rank rows are laid out alike; setting it once turns all of them.

    `rows` is ``[R]`` or ``[batch, R]``, or None while closed. `unit` tells that all rows are exactly one, so that the
    multiplication can be left out: training at alpha = rank and strength 1 is the everyday case. `spread` is there when
    the gate differs from place to place.

    `lane`, (i, n), restricts it to the i-th of n equal parts of a batch: adapters that are trained side by side see
    rows of their own. None is the whole batch.
    """

    __slots__ = ("_together", "lane", "rows", "spread", "unit")

    def __init__(self) -> None:
        self.rows: Tensor | None = None
        self.unit = False
        self.lane: tuple[int, int] | None = None
        self.spread: Spread | None = None
        self._together: dict[tuple[int, ...], Tensor | None] = {}

    def close(self) -> None:
        """Let nothing through: the layers give the base's output bit for bit."""
        self.rows, self.unit, self.spread = None, False, None
        self._together = {}

    def open(self, rows: Tensor, *, unit: bool = False, spread: Spread | None = None) -> None:
        """Let rank row i through times ``rows[..., i]``; `unit` promises that every value is 1; `spread` wins."""
        self.rows, self.unit, self.spread = rows, unit, spread
        self._together = {}

    def on_linear(self, hidden: Tensor) -> Tensor:
        """``[batch, ..., R]`` with its rank rows scaled."""
        rows = self._rows_for(hidden)
        if rows is None:
            return hidden
        if self.spread is not None:
            return (hidden * self.spread.on_tokens(hidden.shape[1])).to(hidden.dtype)
        if rows.ndim == 2 and hidden.ndim > 2:
            rows = rows.view(rows.shape[0], *(1,) * (hidden.ndim - 2), rows.shape[1])
        return (hidden * rows).to(hidden.dtype)  # the product in fp32, so that a strength is not rounded to bf16 first

    def on_conv(self, hidden: Tensor) -> Tensor:
        """``[batch, R, height, width]`` with its rank rows scaled."""
        rows = self._rows_for(hidden)
        if rows is None:
            return hidden
        if self.spread is not None:
            return (hidden * self.spread.on_plane((hidden.shape[2], hidden.shape[3]))).to(hidden.dtype)
        return (hidden * rows[..., None, None]).to(hidden.dtype)

    def _rows_for(self, hidden: Tensor) -> Tensor | None:
        if self.unit or self.rows is None:
            return None
        if self.rows.ndim == 2 and self.rows.shape[0] != hidden.shape[0]:
            raise ValueError(f"the mix has {self.rows.shape[0]} rows but the batch has {hidden.shape[0]}")
        return self.rows


def factors_of_lanes(gates: Sequence[Gate], width: int) -> Tensor | None:
    """``[lanes, width]``: what each lane's rank rows are scaled by, zero where it has fewer; None where all are one.

    Kept until the first of the gates is turned: they are turned together.
    """
    kept = gates[0]._together
    key = (width, *map(id, gates))
    if key not in kept:
        rows = [gate.rows for gate in gates if gate.rows is not None]
        unit = all(gate.unit for gate in gates)
        kept[key] = None if unit else torch.stack([F.pad(one, (0, width - len(one))) for one in rows])
    return kept[key]
