"""How the matrices of an adapter start. A layer's numbers depend on the seed and its key alone.

    gaussian      down ~ N(0, 1 / in) whatever the rank (`in` counts the kernel), up = 0
    orthogonal    down of orthonormal rows, which have the same length as the gaussian ones on average; up = 0
    pissa         up @ down = the leading singular part of the base's weight (Meng et al. 2024,
                  https://arxiv.org/abs/2404.02948); the same is taken off again, so that the model starts as the base
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from diffusion_lora.lora.factors import Delta, svd


def gaussian_down(shape: tuple[int, ...], seed: int, key: str) -> Tensor:
    """``[r, in(, k, k)]`` of variance 1 / in."""
    return torch.randn(shape, generator=_generator(seed, key)) / math.sqrt(math.prod(shape[1:]))


def orthogonal_down(shape: tuple[int, ...], seed: int, key: str) -> Tensor:
    """``[r, in(, k, k)]`` whose rows are orthonormal; where r is above in, the columns are orthogonal instead."""
    rank, inputs = shape[0], math.prod(shape[1:])
    matrix = torch.randn(max(rank, inputs), min(rank, inputs), generator=_generator(seed, key))
    basis = torch.linalg.qr(matrix)[0]
    return (basis.T if rank <= inputs else basis * math.sqrt(rank / inputs)).reshape(shape)


def principal_factors(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """(down, up) with scale * up @ down the best approximation of the weight ``[out, in(, k, k)]``; fp32, on the CPU.

    Their rank is the one asked for, or less where the weight has no more singular values.
    """
    parts = svd(Delta(None, weight.detach().cpu().double().flatten(1)), rank)
    root = (parts.s / scale).sqrt()
    down, up = (root[:, None] * parts.v).float(), (parts.u * root).float()
    return down.reshape(-1, *weight.shape[1:]), up.reshape(len(up), -1, *(1 for _ in weight.shape[2:]))


def _generator(seed: int, key: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
