"""What is wrong with a data set, as a list: each problem has a kind, a picture and a sentence. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "unreadable",
    "too small",
    "duplicate",
    "near duplicate",
    "no caption",
    "long caption",
    "caption encoding",
    "not there",
    "mask",
]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: with which picture (its name in its folder), what, as one sentence, and whether this
    keeps it out of training."""

    kind: Kind
    picture: str
    text: str
    left_out: bool = False


Report = Callable[[Problem], None]


def by_kind(problems: Iterable[Problem]) -> dict[Kind, list[Problem]]:
    """The problems of each kind there is, in the order in which a person should look at them."""
    order = Kind.__args__  # type: ignore[attr-defined]
    found: dict[Kind, list[Problem]] = {}
    for problem in sorted(problems, key=lambda problem: (order.index(problem.kind), problem.picture)):
        found.setdefault(problem.kind, []).append(problem)
    return found
