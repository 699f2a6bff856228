"""One layer of an adapter, in the four forms that files have: low rank, Hadamard, Kronecker and full.

    LowRank     up @ down            LoRA (Hu et al. 2021), with a middle convolution LoCon's Tucker form
    LoHa        (a1 @ b1) * (a2 @ b2)     Hadamard product, FedPara (Hyeon-Woo et al. 2022)
    LoKr        kron(w1, w2)              Kronecker product, each factor whole or itself low rank
    Full        the difference itself

Formulas and tensor names as in LyCORIS (Yeh et al. 2023, https://arxiv.org/abs/2309.14859). Any of the first three may
carry a magnitude (DoRA, Liu et al. 2024, https://arxiv.org/abs/2402.09353); its change then depends on the base weight.
What this module does not know: layer keys, files, models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lora.lora.formats.forms import (
    DOWN,
    MID,
    UP,
    Form,
    as_float32,
    form_of,
    kind_of,
    magnitude_axis,
    scale_of,
    times,
)

Factor = Tensor | tuple[Tensor, Tensor]
"""A factor of a Kronecker product: whole, or (a, b) with the factor a @ b."""


class _Weights:
    """What the four forms share. `tensors` and `update` are theirs; the update is the change before any magnitude."""

    alpha: float
    magnitude: Tensor | None
    form: Form
    rs: bool = False

    def __post_init__(self) -> None:
        """ValueError when the shapes do not belong together. alpha becomes the float32 that files hold."""
        form = form_of({suffix: tuple(tensor.shape) for suffix, tensor in self.tensors().items()})
        object.__setattr__(self, "form", form)
        object.__setattr__(self, "alpha", as_float32(self.alpha))

    @property
    def scale(self) -> float:
        """What strength 1 multiplies the bare product of the factors by: see `forms.scale_of`."""
        return scale_of(self.form, self.alpha, rs=self.rs)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the change as the factors tell it: ``[out, in(, k, k)]``, or ``[out, in * k * k]`` where they hide
        the kernel."""
        return self.form.shape

    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors under the suffixes that kohya's and LyCORIS's files give them; alpha, a number, is not in it."""
        raise NotImplementedError

    def update(self) -> Tensor:
        """scale times the product of the factors, fp32, in `shape`; the whole change unless there is a magnitude."""
        raise NotImplementedError

    def norm(self) -> float:
        """Frobenius norm of `update`; NaN where a value is not finite, 0 where the layer does nothing."""
        return _norm(self.update())

    @property
    def parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(tensor.numel() for tensor in self.tensors().values())

    @property
    def needs_base(self) -> bool:
        """Whether the change depends on the weight it changes (DoRA)."""
        return self.magnitude is not None

    def delta(self, base: Tensor | None = None) -> Tensor:
        """What strength 1 adds to the base weight: fp32, scale included.

        With `base` in the base's shape, without it in `shape`. ValueError when the shapes do not fit, or when there is
        a magnitude and no base: W' = m (W + BA) / |W + BA|, the norm over each row (or column) of W + BA.
        """
        update = self.update()
        if base is not None:
            if update.numel() != base.numel() or update.shape[0] != base.shape[0]:
                raise ValueError(f"a change of {times(update.shape)} does not fit a weight of {times(base.shape)}")
            update = update.reshape(base.shape)
        if self.magnitude is None:
            return update
        if base is None:
            raise ValueError("a layer with a magnitude (DoRA) has a change only together with its base weight")
        return _decomposed(base.float(), update, self.magnitude.float())

    def same_as(self, other: _Weights, rtol: float = 0.0, atol: float = 0.0) -> bool:
        """Same form, shapes and scale, and the same numbers within the tolerance."""
        mine, theirs = self.tensors(), other.tensors()
        return (
            type(self) is type(other)
            and self.scale == other.scale
            and mine.keys() == theirs.keys()
            and all(
                mine[name].shape == theirs[name].shape
                and torch.allclose(mine[name].float(), theirs[name].float(), rtol=rtol, atol=atol)
                for name in mine
            )
        )


@dataclass(frozen=True, eq=False)
class LowRank(_Weights):
    """``down [r, in(, k, k)]``, ``up [out, r(, 1, 1)]`` and alpha, held as the float32 that files hold.

    `mid` is the ``[r, r, k, k]`` of the Tucker form, between a 1 x 1 `down` and `up`. `magnitude` is DoRA's,
    ``[out, 1]`` (norms of rows) or ``[1, in]`` (norms of columns). With `rs` the scale is alpha / sqrt(r) and not
    alpha / r (Kalajdzievski 2023, https://arxiv.org/abs/2312.03732). ValueError when shapes disagree.
    """

    down: Tensor
    up: Tensor
    alpha: float
    mid: Tensor | None = None
    magnitude: Tensor | None = None
    rs: bool = False

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def tensors(self) -> Mapping[str, Tensor]:
        return _present(
            {
                "lora_down.weight": self.down,
                "lora_up.weight": self.up,
                "lora_mid.weight": self.mid,
                "dora_scale": self.magnitude,
            }
        )

    def update(self) -> Tensor:
        up, down = self.up.float().flatten(1), self.down.float().flatten(1)
        if self.mid is not None:
            down = torch.einsum("abkl,bi->aikl", self.mid.float(), down).flatten(1)
        return self.scale * (up @ down).reshape(self.shape)

    def norm(self) -> float:
        """As above, from Gram matrices of the size of the rank: |BA|^2 = tr((B^T B)(A A^T))."""
        if self.mid is not None:
            return super().norm()
        up, down = self.up.float().flatten(1), self.down.float().flatten(1)
        return abs(self.scale) * math.sqrt(_not_negative(float(((up.T @ up) * (down @ down.T)).sum())))


@dataclass(frozen=True, eq=False)
class LoHa(_Weights):
    """(w1_a @ w1_b) * (w2_a @ w2_b), elementwise: ``a [out, r]``, ``b [r, in * k * k]``.

    In the Tucker form (`t1`, `t2`: ``[r, r, k, k]``) the factors are ``a [r, out]`` and ``b [r, in]``. The scale is
    alpha / r.
    """

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    alpha: float
    t1: Tensor | None = None
    t2: Tensor | None = None
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.w1_b.shape[0]

    def tensors(self) -> Mapping[str, Tensor]:
        return _present(
            {
                "hada_w1_a": self.w1_a,
                "hada_w1_b": self.w1_b,
                "hada_t1": self.t1,
                "hada_w2_a": self.w2_a,
                "hada_w2_b": self.w2_b,
                "hada_t2": self.t2,
                "dora_scale": self.magnitude,
            }
        )

    def update(self) -> Tensor:
        return self.scale * _product(self.w1_a, self.w1_b, self.t1) * _product(self.w2_a, self.w2_b, self.t2)


@dataclass(frozen=True, eq=False)
class LoKr(_Weights):
    """kron(w1, w2): ``w1 [a, b]``, ``w2 [c, d(, k, k)]`` for a change of ``[a * c, b * d(, k, k)]``.

    Either may be a pair (a, b) of factors of rank r, w2 also in the Tucker form with ``t2 [r, r, k, k]``. The scale is
    alpha / r of what is factored, and 1 whatever alpha says when nothing is, as in every program that reads these.
    """

    w1: Factor
    w2: Factor
    alpha: float
    t2: Tensor | None = None
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int | None:
        """Rank of the factors, the second one's where they differ; None when both are whole."""
        return self.form.rank

    def factors(self) -> tuple[Tensor, Tensor]:
        """(w1, w2) multiplied out, fp32, without the scale."""
        return _whole(self.w1, None), _whole(self.w2, self.t2)

    def tensors(self) -> Mapping[str, Tensor]:
        named: dict[str, Tensor | None] = {}
        for name, factor in (("lokr_w1", self.w1), ("lokr_w2", self.w2)):
            if isinstance(factor, tuple):
                named[f"{name}_a"], named[f"{name}_b"] = factor
            else:
                named[name] = factor
        return _present({**named, "lokr_t2": self.t2, "dora_scale": self.magnitude})

    def update(self) -> Tensor:
        w1, w2 = self.factors()
        return self.scale * torch.kron(w1.reshape(*w1.shape, *(1,) * (w2.ndim - 2)), w2.contiguous())

    def norm(self) -> float:
        """As above: the norm of a Kronecker product is the product of the norms."""
        w1, w2 = self.factors()
        return abs(self.scale) * _norm(w1) * _norm(w2)


@dataclass(frozen=True, eq=False)
class Full(_Weights):
    """The whole difference of a weight, and of the bias where the layer's bias was trained too. The scale is 1."""

    diff: Tensor
    bias: Tensor | None = None

    alpha = 1.0
    rank = None
    magnitude = None

    def tensors(self) -> Mapping[str, Tensor]:
        return _present({"diff": self.diff, "diff_b": self.bias})

    def update(self) -> Tensor:
        return self.diff.float()


AdapterLayer = LowRank
"""The plain form, under the name that what trains and stacks it uses."""

Weights = LowRank | LoHa | LoKr | Full
"""Any form."""


def from_tensors(
    parts: Mapping[str, Tensor], alpha: float, magnitude: Tensor | None = None, *, rs: bool = False
) -> Weights:
    """The layer with these tensors by suffix, as `tensors` gives them; ValueError when they do not make one."""
    form_of({suffix: tuple(tensor.shape) for suffix, tensor in parts.items()})
    match kind_of(parts):
        case "LoHa":
            first, second = (parts["hada_w1_a"], parts["hada_w1_b"]), (parts["hada_w2_a"], parts["hada_w2_b"])
            return LoHa(*first, *second, alpha, parts.get("hada_t1"), parts.get("hada_t2"), magnitude)
        case "LoKr":
            w1, w2 = (
                parts[name] if name in parts else (parts[f"{name}_a"], parts[f"{name}_b"])
                for name in ("lokr_w1", "lokr_w2")
            )
            return LoKr(w1, w2, alpha, parts.get("lokr_t2"), magnitude)
        case "full":
            if magnitude is not None:
                raise ValueError("it has a magnitude beside a full difference")
            return Full(parts["diff"], parts.get("diff_b"))
        case _:
            return LowRank(parts[DOWN], parts[UP], alpha, parts.get(MID), magnitude, rs)


def _decomposed(base: Tensor, update: Tensor, magnitude: Tensor) -> Tensor:
    """m (W + BA) / |W + BA| - W. The norm runs over all axes but the one along which the magnitude lies."""
    merged = base + update
    axis = magnitude_axis(magnitude.shape, base.shape)
    norm = torch.linalg.vector_norm(merged, dim=[n for n in range(base.ndim) if n != axis], keepdim=True)
    return magnitude.reshape(norm.shape) * merged / norm.clamp_min(torch.finfo(norm.dtype).eps) - base


def _product(a: Tensor, b: Tensor, t: Tensor | None) -> Tensor:
    if t is None:
        return a.float() @ b.float()
    return torch.einsum("abkl,ao,bi->oikl", t.float(), a.float(), b.float())


def _whole(factor: Factor, t: Tensor | None) -> Tensor:
    return _product(*factor, t) if isinstance(factor, tuple) else factor.float()


def _norm(tensor: Tensor) -> float:
    """Summed in fp64: torch's sum of squares in fp32 is wrong in the fifth digit for a matrix of 320 x 320."""
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def _not_negative(square: float) -> float:
    """A sum of squares that rounding may have left a little below zero; NaN stays."""
    return 0.0 if square < 0 else square


def _present(named: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in named.items() if tensor is not None}
