"""TIES and DARE on the deltas of one layer: pure functions of matrices of one shape.

Both thin out what each adapter changes before adding, so that fewer entries collide. Strengths are in the matrices
already; in TIES the elected sign therefore knows them. TIES: Yadav et al. 2023, https://arxiv.org/abs/2306.01708,
section 3. DARE: Yu et al. 2023, https://arxiv.org/abs/2311.03099, section 3. The papers trim a whole model's vector,
this (as peft) a layer's: no more than one layer is in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor


def trim(matrix: Tensor, density: float) -> Tensor:
    """All but the entries of largest magnitude set to zero; `density` is the share that stays, at least one entry, and
    more where entries are equal (TIES, step 1)."""
    kept = max(1, int(density * matrix.numel()))
    if kept == matrix.numel():
        return matrix
    sizes = matrix.abs()
    smallest = sizes.flatten().kthvalue(matrix.numel() - kept + 1).values
    return torch.where(sizes >= smallest, matrix, 0.0)


def ties(matrices: Sequence[Tensor], density: float) -> Tensor:
    """Trim, elect the sign with the larger sum, and average the entries that have it; zeros have no say."""
    trimmed = [trim(matrix, density) for matrix in matrices]
    elected = torch.where(reduce(torch.add, trimmed) >= 0, 1.0, -1.0)
    agreeing = [torch.where(matrix.sign() == elected, matrix, 0.0) for matrix in trimmed]
    voters = reduce(torch.add, [(matrix != 0).to(elected.dtype) for matrix in agreeing])
    return reduce(torch.add, agreeing) / voters.clamp(min=1)


def dare(matrices: Sequence[Tensor], density: float, generators: Sequence[torch.Generator]) -> Tensor:
    """The sum with a share of entries dropped at random and the others divided by `density`: the same expectation."""
    return reduce(
        torch.add,
        [
            torch.where(torch.rand(matrix.shape, generator=generator) < density, matrix / density, 0.0)
            for matrix, generator in zip(matrices, generators, strict=True)
        ],
    )
