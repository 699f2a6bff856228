"""The forms a layer can have, told from the shapes of its tensors: low rank, LoHa, LoKr, full. No torch.

A tensor is known by its suffix, the one that kohya's and LyCORIS's files give it ("lora_down.weight", "hada_w1_a").
This is the one place that says which shapes belong together: headers are checked by it before a tensor is read, and
the values of `weights` when they are made. Names and files are not known here.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["LoRA", "LoHa", "LoKr", "full"]
Shape = Sequence[int]

DOWN, UP, MID = "lora_down.weight", "lora_up.weight", "lora_mid.weight"
MAGNITUDE = "dora_scale"
ALPHA = "alpha"

SUFFIXES: Mapping[Kind, frozenset[str]] = {
    "LoRA": frozenset({DOWN, UP, MID}),
    "LoHa": frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"}),
    "LoKr": frozenset({"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"}),
    "full": frozenset({"diff", "diff_b"}),
}
"""The tensors of each form, beside alpha and the magnitude that any may have."""


@dataclass(frozen=True)
class Form:
    """What the shapes tell of a layer.

    `rank` is None where nothing is factored. `shape` is that of the change: ``(out, in)`` or ``(out, in, k, k)``, and
    ``(out, in * k * k)`` where the factors hide the kernel.
    """

    kind: Kind
    rank: int | None
    shape: tuple[int, ...]
    has_magnitude: bool = False


def kind_of(suffixes: Iterable[str]) -> Kind | None:
    """The form that these suffixes belong to; None for none (an alpha alone, say). ValueError for two at once."""
    suffixes = set(suffixes)
    kinds: list[Kind] = [kind for kind, known in SUFFIXES.items() if suffixes & known]
    if len(kinds) > 1:
        raise ValueError(f"it has tensors of {' and '.join(kinds)}")
    return kinds[0] if kinds and suffixes != {"diff_b"} else None


def form_of(shapes: Mapping[str, Shape]) -> Form:
    """The form of a layer with these tensors; ValueError, a clause for a sentence, when they do not make one."""
    kind = kind_of(shapes)
    rank: int | None
    match kind:
        case "LoRA":
            rank, shape = _low_rank(shapes)
        case "LoHa":
            rank, shape = _loha(shapes)
        case "LoKr":
            rank, shape = _lokr(shapes)
        case "full":
            rank, shape = None, _full(shapes)
        case None:
            raise ValueError("it has no matrices")
    if MAGNITUDE in shapes:
        _check_magnitude(shapes[MAGNITUDE], shape)
    return Form(kind, rank, shape, MAGNITUDE in shapes)


def as_float32(alpha: float) -> float:
    """The number that a file keeps for this alpha; ValueError when it is too large for one."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", alpha))[0])
    except OverflowError:
        raise ValueError(f"its alpha is {alpha:g}, more than a float32 holds") from None


def scale_of(form: Form, alpha: float, *, rs: bool = False) -> float:
    """What strength 1 multiplies the product of the factors by: alpha / rank, with `rs` alpha / sqrt(rank), and 1 where
    nothing is factored, whatever alpha says."""
    if form.rank is None:
        return 1.0
    return alpha / (math.sqrt(form.rank) if rs else form.rank)


def magnitude_axis(magnitude: Shape, shape: Shape) -> int:
    """0 when there is a magnitude for every row of the weight (its outputs), 1 when for every column (its inputs)."""
    return 0 if len(magnitude) and magnitude[0] == shape[0] and math.prod(magnitude) == shape[0] else 1


def _low_rank(shapes: Mapping[str, Shape]) -> tuple[int, tuple[int, ...]]:
    _require(shapes, {DOWN: "no down matrix", UP: "no up matrix"})
    down, up, mid = shapes[DOWN], shapes[UP], shapes.get(MID)
    if len(down) not in (2, 4) or len(up) not in (2, 4) or any(n != 1 for n in up[2:]):
        raise ValueError(f"down {times(down)} and up {times(up)} are not those of a LoRA")
    if mid is None:
        if down[0] != up[1]:
            raise ValueError(f"down {times(down)} and up {times(up)} differ in rank")
    elif len(mid) != 4 or tuple(mid[:2]) != (up[1], down[0]) or any(n != 1 for n in down[2:]):
        raise ValueError(f"mid {times(mid)} does not lie between down {times(down)} and up {times(up)}")
    _refuse_empty(shapes)
    return down[0], (up[0], down[1], *(down if mid is None else mid)[2:])


def _loha(shapes: Mapping[str, Shape]) -> tuple[int, tuple[int, ...]]:
    _require(shapes, {name: f"no {name}" for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")})
    if ("hada_t1" in shapes) != ("hada_t2" in shapes):
        raise ValueError("it has one of hada_t1 and hada_t2 and not the other")
    one = _product(shapes["hada_w1_a"], shapes["hada_w1_b"], shapes.get("hada_t1"))
    two = _product(shapes["hada_w2_a"], shapes["hada_w2_b"], shapes.get("hada_t2"))
    if one != two:
        raise ValueError(f"its two products are {times(one)} and {times(two)}")
    _refuse_empty(shapes)
    return shapes["hada_w1_b"][0], one


def _lokr(shapes: Mapping[str, Shape]) -> tuple[int | None, tuple[int, ...]]:
    tucker = shapes.get("lokr_t2")
    if tucker is not None and "lokr_w2" in shapes:
        raise ValueError("it has lokr_t2 and a whole lokr_w2")
    w1, w2 = _factor(shapes, "lokr_w1", None), _factor(shapes, "lokr_w2", tucker)
    if len(w1) != 2 or len(w2) not in (2, 4):
        raise ValueError(f"{times(w1)} and {times(w2)} are not the factors of a Kronecker product")
    _refuse_empty(shapes)
    factored = shapes.get("lokr_w2_b") or shapes.get("lokr_w1_b")  # where both are, programs take the second's rank
    return (factored[0] if factored else None), (w1[0] * w2[0], w1[1] * w2[1], *w2[2:])


def _full(shapes: Mapping[str, Shape]) -> tuple[int, ...]:
    _require(shapes, {"diff": "no diff"})
    diff = shapes["diff"]
    if len(diff) not in (2, 4):
        raise ValueError(f"its difference of {times(diff)} is not one of a linear or convolution layer")
    if "diff_b" in shapes and tuple(shapes["diff_b"]) != tuple(diff[:1]):
        raise ValueError(f"its bias of {times(shapes['diff_b'])} does not fit a weight of {times(diff)}")
    _refuse_empty(shapes)
    return tuple(diff)


def _factor(shapes: Mapping[str, Shape], name: str, tucker: Shape | None) -> tuple[int, ...]:
    """Shape of a factor that is whole or a product."""
    a, b = shapes.get(f"{name}_a"), shapes.get(f"{name}_b")
    if name in shapes and (a is not None or b is not None):
        raise ValueError(f"it has {name} both whole and as a product")
    if name in shapes:
        return tuple(shapes[name])
    if a is None or b is None:
        raise ValueError(f"it has no {name}" + ("" if a is None and b is None else f"_{'b' if b is None else 'a'}"))
    return _product(a, b, tucker)


def _product(a: Shape, b: Shape, tucker: Shape | None) -> tuple[int, ...]:
    """Shape of a @ b, or of the Tucker product of ``a [r, out]``, ``b [r, in]`` and ``[r, r, k, k]``."""
    if len(a) == len(b) == 2 and tucker is None and a[1] == b[0]:
        return (a[0], b[1])
    if len(a) == len(b) == 2 and tucker is not None and len(tucker) == 4 and tuple(tucker[:2]) == (a[0], b[0]):
        return (a[1], b[1], *tucker[2:])
    raise ValueError(f"factors of {' and '.join(times(n) for n in (a, b, tucker) if n is not None)} do not multiply")


def _check_magnitude(magnitude: Shape, shape: Shape) -> None:
    of_rows = magnitude_axis(magnitude, shape) == 0
    of_columns = len(magnitude) > 1 and magnitude[0] == 1 and 0 < math.prod(magnitude) == magnitude[1]
    if not of_rows and not (of_columns and shape[1] % magnitude[1] == 0):
        raise ValueError(f"a magnitude of {times(magnitude)} does not fit a change of {times(shape)}")


def _require(shapes: Mapping[str, Shape], wanted: Mapping[str, str]) -> None:
    for name, lack in wanted.items():
        if name not in shapes:
            raise ValueError(f"it has {lack}")


def _refuse_empty(shapes: Mapping[str, Shape]) -> None:
    for name, shape in shapes.items():
        if 0 in shape:
            raise ValueError(f"{name} of {times(shape)} is empty")


def times(shape: Shape) -> str:
    """(320, 768) -> "320 x 768"."""
    return " x ".join(map(str, shape)) or "one number"
