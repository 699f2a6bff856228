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
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Factor = Tensor | tuple[Tensor, Tensor]
"""A factor of a Kronecker product: whole, or (a, b) with the factor a @ b."""


class _Weights:
    """What the four forms share. `scale` and `tensors` are theirs; `update` is the change before any magnitude."""

    magnitude: Tensor | None

    @property
    def scale(self) -> float:
        """What strength 1 multiplies the bare product of the factors by."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the change as the factors tell it: ``[out, in(, k, k)]``, or ``[out, in * k * k]`` where they hide
        the kernel."""
        raise NotImplementedError

    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors under the suffixes that kohya's and LyCORIS's files give them; alpha, a number, is not in it."""
        raise NotImplementedError

    def update(self) -> Tensor:
        """scale times the product of the factors, fp32, in `shape`; the whole change unless there is a magnitude."""
        raise NotImplementedError

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
                raise ValueError(f"a change of {_times(update.shape)} does not fit a weight of {_times(base.shape)}")
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

    def __post_init__(self) -> None:
        if self.down.ndim not in (2, 4) or self.up.ndim not in (2, 4) or any(n != 1 for n in self.up.shape[2:]):
            raise ValueError(f"down {tuple(self.down.shape)} and up {tuple(self.up.shape)} are not those of a LoRA")
        if self.mid is None and (self.down.shape[0] != self.up.shape[1] or self.rank == 0):
            raise ValueError(
                f"down {tuple(self.down.shape)} and up {tuple(self.up.shape)} differ in rank, or have none"
            )
        if self.mid is not None and (
            self.mid.ndim != 4
            or self.mid.shape[:2] != (self.up.shape[1], self.down.shape[0])
            or any(n != 1 for n in self.down.shape[2:])
            or 0 in self.mid.shape
        ):
            raise ValueError(
                f"mid {tuple(self.mid.shape)} does not lie between down {tuple(self.down.shape)} "
                f"and up {tuple(self.up.shape)}"
            )
        _check_magnitude(self.magnitude, self.shape)
        _set_alpha(self, self.alpha)

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """alpha / rank, or alpha / sqrt(rank) with `rs`: what strength 1 multiplies up @ down by."""
        return self.alpha / (math.sqrt(self.rank) if self.rs else self.rank)

    @property
    def shape(self) -> tuple[int, ...]:
        kernel = self.down.shape[2:] if self.mid is None else self.mid.shape[2:]
        return (self.up.shape[0], self.down.shape[1], *kernel)

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

    def __post_init__(self) -> None:
        if (self.t1 is None) != (self.t2 is None):
            raise ValueError("a LoHa has both of hada_t1 and hada_t2 or neither")
        shapes = [
            _product_shape(a, b, t) for a, b, t in ((self.w1_a, self.w1_b, self.t1), (self.w2_a, self.w2_b, self.t2))
        ]
        if shapes[0] != shapes[1]:
            raise ValueError(f"the two products of a LoHa are {_times(shapes[0])} and {_times(shapes[1])}")
        _check_magnitude(self.magnitude, shapes[0])
        _set_alpha(self, self.alpha)

    @property
    def rank(self) -> int:
        return self.w1_b.shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def shape(self) -> tuple[int, ...]:
        return _product_shape(self.w1_a, self.w1_b, self.t1)

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

    def __post_init__(self) -> None:
        if self.t2 is not None and isinstance(self.w2, Tensor):
            raise ValueError("a LoKr with lokr_t2 has lokr_w2_a and lokr_w2_b")
        if len(self._w1_shape) != 2 or len(self._w2_shape) not in (2, 4) or 0 in (*self._w1_shape, *self._w2_shape):
            raise ValueError(f"{_times(self._w1_shape)} and {_times(self._w2_shape)} are not the factors of a LoKr")
        _check_magnitude(self.magnitude, self.shape)
        _set_alpha(self, self.alpha)

    @property
    def rank(self) -> int | None:
        """Rank of the factors, the second one's where they differ; None when both are whole."""
        for factor in (self.w2, self.w1):
            if isinstance(factor, tuple):
                return factor[1].shape[0]
        return None

    @property
    def scale(self) -> float:
        return 1.0 if self.rank is None else self.alpha / self.rank

    @property
    def shape(self) -> tuple[int, ...]:
        (a, b), (c, d, *kernel) = self._w1_shape, self._w2_shape
        return (a * c, b * d, *kernel)

    @property
    def _w1_shape(self) -> tuple[int, ...]:
        return _factor_shape(self.w1, None)

    @property
    def _w2_shape(self) -> tuple[int, ...]:
        return _factor_shape(self.w2, self.t2)

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


@dataclass(frozen=True, eq=False)
class Full(_Weights):
    """The whole difference of a weight, and of the bias where the layer's bias was trained too. The scale is 1."""

    diff: Tensor
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        if self.diff.ndim not in (2, 4) or 0 in self.diff.shape:
            raise ValueError(f"{_times(self.diff.shape)} is not the difference of a linear or convolution weight")
        if self.bias is not None and self.bias.shape != self.diff.shape[:1]:
            raise ValueError(f"a bias of {_times(self.bias.shape)} does not fit a weight of {_times(self.diff.shape)}")

    alpha = 1.0
    rank = None
    magnitude = None

    @property
    def scale(self) -> float:
        return 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.diff.shape)

    def tensors(self) -> Mapping[str, Tensor]:
        return _present({"diff": self.diff, "diff_b": self.bias})

    def update(self) -> Tensor:
        return self.diff.float()


AdapterLayer = LowRank
"""The plain form, under the name that what trains and stacks it uses."""

Weights = LowRank | LoHa | LoKr | Full
"""Any form."""


def _decomposed(base: Tensor, update: Tensor, magnitude: Tensor) -> Tensor:
    """m (W + BA) / |W + BA| - W. The norm runs over all axes but the one along which the magnitude lies."""
    merged = base + update
    axis = _magnitude_axis(magnitude, base.shape)
    norm = torch.linalg.vector_norm(merged, dim=[n for n in range(base.ndim) if n != axis], keepdim=True)
    return magnitude.reshape(norm.shape) * merged / norm.clamp_min(torch.finfo(norm.dtype).eps) - base


def _magnitude_axis(magnitude: Tensor, shape: tuple[int, ...] | torch.Size) -> int:
    return 0 if magnitude.shape[0] == shape[0] and magnitude.numel() == shape[0] else 1


def _check_magnitude(magnitude: Tensor | None, shape: tuple[int, ...]) -> None:
    if magnitude is None:
        return
    of_rows = magnitude.numel() == shape[0] == magnitude.shape[0] if magnitude.ndim else False
    of_columns = magnitude.ndim > 1 and magnitude.shape[0] == 1 and magnitude.numel() == magnitude.shape[1]
    if not of_rows and not (of_columns and shape[1] % magnitude.numel() == 0):
        raise ValueError(f"a magnitude of {_times(magnitude.shape)} does not fit a change of {_times(shape)}")


def _product_shape(a: Tensor, b: Tensor, t: Tensor | None) -> tuple[int, ...]:
    """Shape of a @ b, or of the Tucker product with t; ValueError when they do not chain."""
    fits = a.ndim == b.ndim == 2 and 0 not in (*a.shape, *b.shape)
    if t is None:
        if fits and a.shape[1] == b.shape[0]:
            return (a.shape[0], b.shape[1])
    elif fits and t.ndim == 4 and t.shape[:2] == (a.shape[0], b.shape[0]) and 0 not in t.shape:
        return (a.shape[1], b.shape[1], *t.shape[2:])
    raise ValueError(
        f"factors {' and '.join(_times(n.shape) for n in (a, b, t) if n is not None)} do not multiply, or are empty"
    )


def _product(a: Tensor, b: Tensor, t: Tensor | None) -> Tensor:
    if t is None:
        return a.float() @ b.float()
    return torch.einsum("abkl,ao,bi->oikl", t.float(), a.float(), b.float())


def _factor_shape(factor: Factor, t: Tensor | None) -> tuple[int, ...]:
    return _product_shape(*factor, t) if isinstance(factor, tuple) else tuple(factor.shape)


def _whole(factor: Factor, t: Tensor | None) -> Tensor:
    return _product(*factor, t) if isinstance(factor, tuple) else factor.float()


def _present(named: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def _set_alpha(weights: Any, alpha: float) -> None:
    try:
        exact = struct.unpack("<f", struct.pack("<f", alpha))[0]
    except OverflowError:
        raise ValueError(f"alpha is {alpha:g}, more than a float32 holds") from None
    object.__setattr__(weights, "alpha", exact)


def _times(shape: tuple[int, ...] | torch.Size) -> str:
    return " x ".join(map(str, shape)) or "one number"
