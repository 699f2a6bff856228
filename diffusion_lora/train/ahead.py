"""Work of which the outcome is needed a step away: the next step's batches before, the last step's losses after.

Neither changes a number. On CUDA the device is never waited for inside a step: batches lie in pinned memory when they
are wanted, and a step's values are looked at while the next one computes (`Outcomes`). What they mean is the trainer's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Ahead(Generic[T]):
    """`with Ahead(make, 0, 100) as ahead:` gives `ahead.take(n)` = make(n), made in a thread during step n - 1.

    Steps are taken in order, from `first` to the one before `end`. What `make` raises, `take` raises.
    """

    def __init__(self, make: Callable[[int], T], first: int, end: int) -> None:
        self._make, self._next, self._end = make, first, end
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._waiting: Future[T] | None = None

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def take(self, step: int) -> T:
        """What belongs to this step; the next one's is begun."""
        if self._waiting is None or step != self._next - 1:
            raise ValueError(f"step {step} is not the next one to be taken")
        made = self._waiting.result()
        self._begin()
        return made

    def _begin(self) -> None:
        self._waiting = self._thread.submit(self._make, self._next) if self._next < self._end else None
        self._next += 1


@dataclass(eq=False)
class Outcome:
    """What came of one step: `values` are numbers that the device computed, `facts` what the host knew at the time."""

    facts: dict[str, Any]
    values: list[float] = field(default_factory=list)


class Outcomes:
    """The outcomes of the last `late` steps, still on their way from the device. With `late` 0 none is ever waiting."""

    def __init__(self, late: int) -> None:
        self._late = late
        self._waiting: deque[tuple[Outcome, Tensor, torch.cuda.Event | None]] = deque()

    def put(self, facts: dict[str, Any], values: Tensor) -> list[Outcome]:
        """Add a step's values, a vector; the outcomes that are due by now are returned, oldest first."""
        arrived = None
        if self._late and values.is_cuda:
            pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            values = pinned.copy_(values, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._waiting.append((Outcome(facts), values, arrived))
        return self._arrived(self._late)

    def rest(self) -> list[Outcome]:
        """All that are left: waits for the device."""
        return self._arrived(0)

    def _arrived(self, left: int) -> list[Outcome]:
        due = []
        while len(self._waiting) > left:
            outcome, values, arrived = self._waiting.popleft()
            if arrived is not None:
                arrived.synchronize()
            outcome.values = values.tolist()
            due.append(outcome)
        return due
