"""Deltas as thin factors: the linear algebra that resizing, merging, comparing and spectra share.

A layer's delta, its input axes unfolded into one (``[out, n]``, n = in x kh x kw), is ``u @ v`` with few columns and
rows: LoRA has `rank` of them, LoHa the square of its rank (a Hadamard product of low-rank matrices is their face-
splitting product), LoKr the product of its two. Norms, inner products and singular values then come from matrices of
that size and the delta itself is never formed. What has no such factors (full deltas, a LoKr of two whole matrices) is
kept as it is; callers go layer by layer, so at most one such matrix is alive.

All in float64: factors are small, and the square of a difference of nearly equal deltas needs the digits.
Not here: DoRA's normalisation, which takes the base's weights (`delta(base)`), files and keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from diffusion_lora.lora.weights import LoHa, LoKr, LowRank, Weights

_OVERSAMPLING, _POWER_ITERATIONS = 16, 4
_RANDOMISED_BELOW = 6  # a sketch is worth while if it is this many times smaller than the matrix
_NEGLIGIBLE = 1e-7  # singular values below this share of the largest are rounding: fp32 files hold no more


@dataclass(frozen=True, eq=False)
class Delta:
    """``u [out, R] @ v [R, n]``, float64; `u` is None where `v` is the whole matrix ``[out, n]``."""

    u: Tensor | None
    v: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(out, n)."""
        return (len(self.v) if self.u is None else len(self.u)), self.v.shape[1]

    def matrix(self) -> Tensor:
        """``[out, n]``."""
        return self.v if self.u is None else self.u @ self.v

    def times(self, factor: float) -> Delta:
        return Delta(None, self.v * factor) if self.u is None else Delta(self.u * factor, self.v)


@dataclass(frozen=True, eq=False)
class Svd:
    """``u [out, k] @ diag(s) @ v [k, n]``, s falling; `energy` is the sum of *all* squared singular values."""

    u: Tensor
    s: Tensor
    v: Tensor
    energy: float

    def first(self, rank: int) -> Svd:
        """Its best approximation of this rank (Eckart and Young 1936)."""
        return Svd(self.u[:, :rank], self.s[:rank], self.v[:rank], self.energy)


def delta_of(layer: Weights) -> Delta:
    """The delta of a layer in whichever form is thinner, scale included; of a DoRA the part before its magnitude."""
    return _thinner(factors_of(layer))


def factors_of(layer: Weights) -> Delta:
    """`delta_of`, always as factors where the form has any: those of LoRA, LoCon, LoHa without a core, and LoKr."""
    match layer:
        case LowRank():
            down, up = layer.down.double().flatten(1), layer.up.double().flatten(1)
            if layer.mid is not None:  # Tucker: the core holds the kernel, so it belongs to the input side
                down = torch.einsum("abkl,bi->aikl", layer.mid.double(), down).flatten(1)
            return Delta(up * layer.scale, down)
        case LoHa(t1=None, t2=None):
            u = _products(layer.w1_a.double(), layer.w2_a.double())
            v = _products(layer.w1_b.double().T, layer.w2_b.double().T).T
            return Delta(u * layer.scale, v)
        case LoKr():
            decomposed = _kronecker_svd(layer)
            return Delta(decomposed.u * decomposed.s, decomposed.v)
        case _:
            return Delta(None, layer.update().double().flatten(1))


def total(deltas: Sequence[Delta]) -> Delta:
    """The sum of deltas of one layer; their rank rows lie side by side, nothing is approximated."""
    if len(deltas) == 1:
        return deltas[0]
    if any(delta.u is None for delta in deltas):
        return Delta(None, reduce(torch.add, (delta.matrix() for delta in deltas)))
    return _thinner(Delta(torch.cat([d.u for d in deltas if d.u is not None], 1), torch.cat([d.v for d in deltas])))


def inner(a: Delta, b: Delta) -> float:
    """The Frobenius inner product: tr((v_a v_b^T)(u_b^T u_a)^T), from Gram matrices of the size of the ranks."""
    if a.u is None and b.u is None:
        return float((a.v * b.v).sum())
    if a.u is None:
        a, b = b, a
    assert a.u is not None
    if b.u is None:
        return float(((a.u.T @ b.v) * a.v).sum())
    return float(((a.u.T @ b.u) * (a.v @ b.v.T)).sum())


def norm(delta: Delta) -> float:
    """The Frobenius norm; by QR, so that a difference of nearly equal deltas keeps its digits."""
    return float(torch.linalg.matrix_norm(_core(delta)))


def difference(a: Delta, b: Delta) -> float:
    """The Frobenius norm of a - b."""
    return norm(total([a, b.times(-1)]))


def singular_values(layer: Weights) -> Tensor:
    """All that are more than rounding, falling; none for a delta of zeros.

    Of thin factors from the product of their R matrices, of a LoKr the products of its two factors' values.
    """
    if not isinstance(layer, LoKr):
        return values_of(delta_of(layer))
    first, second = (_gram_values(factor.double().flatten(1)) for factor in layer.factors())
    values = (first[:, None] * second).flatten().sort(descending=True).values * abs(layer.scale)
    return values[: rank_of(values)]


def values_of(delta: Delta) -> Tensor:
    """`singular_values` of a delta."""
    values = _gram_values(delta.v) if delta.u is None else torch.linalg.svdvals(_core(delta))
    return values[: rank_of(values)]


def rank_bound(layer: Weights) -> int:
    """A rank that the delta cannot exceed, by its form alone."""
    bound = min(layer.shape[0], math.prod(layer.shape[1:]))
    match layer:
        case LowRank():
            return min(bound, layer.up.shape[1])
        case LoHa(t1=None, t2=None):
            return min(bound, layer.w1_b.shape[0] * layer.w2_b.shape[0])
        case LoKr():
            inner_sizes = [w[1].shape[0] for w in (layer.w1, layer.w2) if isinstance(w, tuple)]
            whole_sizes = [min(w.flatten(1).shape) for w in (layer.w1, layer.w2) if isinstance(w, Tensor)]
            return min(bound, math.prod([*inner_sizes, *whole_sizes])) if layer.t2 is None else bound
        case _:
            return bound


def svd(delta: Delta, rank: int | None = None) -> Svd:
    """The singular value decomposition, or its leading part.

    Of thin factors through their QR decompositions; of a whole matrix through the eigenvalues of its Gram matrix, in
    float64, which keeps what float32 can hold. When few of many values are asked for, by randomised subspace iteration
    (Halko, Martinsson and Tropp 2011, algorithm 4.4) with a fixed seed; `energy` is exact in every case, so what such
    an approximation misses is seen.
    """
    if delta.u is not None:
        q_u, r_u = torch.linalg.qr(delta.u)
        q_v, r_v = torch.linalg.qr(delta.v.T)
        u, s, v = torch.linalg.svd(r_u @ r_v.T, full_matrices=False)
        whole = Svd(q_u @ u, s, v @ q_v.T, float(s.square().sum()))
    elif rank is not None and (rank + _OVERSAMPLING) * _RANDOMISED_BELOW < min(delta.shape):
        whole = _sketched(delta.v, rank)
    else:
        whole = _gram_svd(delta.v)
    return whole if rank is None else whole.first(rank)


def svd_of(layer: Weights, rank: int | None = None) -> Svd:
    """`svd(delta_of(layer))`; for a LoKr from its two small matrices, whose values and vectors multiply."""
    if isinstance(layer, LoKr):
        return _kronecker_svd(layer, rank)
    return svd(delta_of(layer), rank)


def rank_of(values: Tensor) -> int:
    """How many singular values are more than rounding; 0 for a delta of zeros."""
    return int((values > _NEGLIGIBLE * values[:1]).sum())


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Row by row all products of an entry of a with one of b: ``[m, p], [m, q] -> [m, p * q]``."""
    return torch.einsum("mp,mq->mpq", a, b).flatten(1)


def _thinner(delta: Delta) -> Delta:
    """Whatever form has fewer numbers: factors as wide as the matrix are no factors."""
    return Delta(None, delta.matrix()) if delta.u is not None and delta.u.shape[1] >= min(delta.shape) else delta


def _core(delta: Delta) -> Tensor:
    """A small matrix with the same singular values."""
    if delta.u is None:
        return delta.v
    return torch.linalg.qr(delta.u, mode="r")[1] @ torch.linalg.qr(delta.v.T, mode="r")[1].T


def _gram_values(matrix: Tensor) -> Tensor:
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    return torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).sqrt()


def _gram_svd(matrix: Tensor) -> Svd:
    if matrix.shape[0] > matrix.shape[1]:
        flipped = _gram_svd(matrix.T)
        return Svd(flipped.v.T, flipped.s, flipped.u.T, flipped.energy)
    values, vectors = torch.linalg.eigh(matrix @ matrix.T)
    u, s = vectors.flip(1), values.flip(0).clamp(min=0).sqrt()
    kept = rank_of(s)
    u, s = u[:, :kept], s[:kept]
    return Svd(u, s, (u.T @ matrix) / s[:, None], float(matrix.square().sum()))


def _sketched(matrix: Tensor, rank: int) -> Svd:
    generator = torch.Generator().manual_seed(0)
    coarse = matrix.float()  # good enough to find the directions; what lies along them is then taken in float64
    probe = torch.randn(matrix.shape[1], rank + _OVERSAMPLING, generator=generator)
    basis = torch.linalg.qr(coarse @ probe)[0]
    for _ in range(_POWER_ITERATIONS):
        basis = torch.linalg.qr(coarse @ torch.linalg.qr(coarse.T @ basis)[0])[0]
    basis = torch.linalg.qr(basis.double())[0]
    u, s, v = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    kept = rank_of(s)
    return Svd(basis @ u[:, :kept], s[:kept], v[:kept], float(matrix.square().sum()))


def _kronecker_svd(layer: LoKr, rank: int | None = None) -> Svd:
    """The svd of kron(w1, w2): all products of a value of each, their vectors' Kronecker products beside."""
    first, second = (_gram_svd(factor.double().flatten(1)) for factor in layer.factors())
    products = (first.s[:, None] * second.s).flatten()
    order = products.argsort(descending=True, stable=True)[:rank]
    rows, columns = order // max(len(second.s), 1), order % max(len(second.s), 1)
    u = torch.einsum("ak,bk->abk", first.u[:, rows], second.u[:, columns]).flatten(0, 1)
    v = torch.einsum("ka,kb->kab", first.v[rows], second.v[columns]).flatten(1)
    u = u if layer.scale > 0 else -u
    return Svd(u, products[order] * abs(layer.scale), v, first.energy * second.energy * layer.scale**2)
