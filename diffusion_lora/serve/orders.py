"""The orders that wait and that are at work, and which of their pictures the next batch draws. No torch, no thread.

Who came first is drawn first. Where the next picture's batch has room, pictures of the others that are alike in size,
steps and sampler join it, one of each caller in turn: so a caller with one picture need not wait for a hundred.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from diffusion_lora.generate.batches import evaluations, kind
from diffusion_lora.generate.request import Request
from diffusion_lora.generate.wire import Cancelled, DrawingEvent, Queued, Step
from diffusion_lora.serve.drawing import Drawing


@dataclass(eq=False)
class Order:
    """A drawing and what is left of it: places in its list of requests, whose blanks are filled in once it is ready."""

    drawing: Drawing
    requests: tuple[Request, ...]
    left: list[int]
    ready: bool = False
    began: float | None = None
    steps_done: int = 0
    ended: bool = False
    paths: dict[int, Path] = field(default_factory=dict)
    _steps_before: int = field(default=0, repr=False)

    @classmethod
    def of(cls, drawing: Drawing) -> Order:
        """A new one, all of which is left."""
        return cls(drawing, drawing.requests, list(range(len(drawing.requests))))

    def make_ready(self, resolved: Sequence[Request]) -> None:
        """Its requests with all that the model decides filled in: now it can be drawn."""
        self.requests, self.ready = tuple(resolved), True

    def batch_begins(self, places: Sequence[int]) -> None:
        """These pictures are drawn now: it is at work, and the steps told are those of a new batch."""
        self.began = perf_counter() if self.began is None else self.began
        self.left = [place for place in self.left if place not in places]
        self._steps_before = self.steps_done

    def stepped(self, done: int, total: int, at_once: Callable[[Request], int]) -> None:
        """`done` of the batch's `total` steps are behind it; told along with the batches that will follow by itself."""
        self.steps_done = self._steps_before + done
        groups: dict[object, list[Request]] = {}
        for place in self.left:
            groups.setdefault(kind(self.requests[place]), []).append(self.requests[place])
        later = sum(-(-len(group) // at_once(group[0])) * evaluations(group[0]) for group in groups.values())
        self.drawing.tell(Step(self.steps_done, self._steps_before + total + later))

    def end(self, last: DrawingEvent) -> None:
        """Nothing of it is drawn any more; the first call alone says so."""
        if not self.ended:
            self.ended = True
            self.left.clear()
            self.drawing.tell(last)


class Orders:
    """All orders that have not ended, as they arrived. The caller sees to it that one thread at a time is inside."""

    def __init__(self) -> None:
        self._all: deque[Order] = deque()

    def __iter__(self) -> Iterator[Order]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def add(self, drawing: Drawing) -> None:
        """Behind all others."""
        self._all.append(Order.of(drawing))

    @property
    def at_work(self) -> list[Order]:
        """Those of which something is drawn, or was."""
        return [order for order in self._all if order.began is not None]

    @property
    def waiting(self) -> list[Order]:
        """Those of which nothing was drawn yet."""
        return [order for order in self._all if order.began is None]

    def close(self, order: Order, last: DrawingEvent) -> None:
        """It has ended: it is no more among them, and whoever listens is told, once."""
        with suppress(ValueError):
            self._all.remove(order)
        order.end(last)

    def drop_given_up(self) -> None:
        """End those that were given up before they began."""
        for order in self.waiting:
            if order.drawing.is_given_up:
                self.close(order, Cancelled())

    def tell_places(self) -> None:
        """Tell those that wait how many come before them."""
        for ahead, order in enumerate(self._all):
            if order.began is None and ahead:
                order.drawing.tell(Queued(ahead))


def next_batch(orders: Sequence[Order], at_once: Callable[[Request], int]) -> list[tuple[Order, int]]:
    """The pictures to draw now, (order, place in its list): those alike to the first one's, of each order in turn.

    `orders` are those that may be drawn, in the order of their arrival; `at_once` tells how many a batch holds.
    """
    first = next((order for order in orders if order.left), None)
    if first is None:
        return []
    leader = first.requests[first.left[0]]
    wanted = kind(leader)
    lines = [[(order, place) for place in order.left if kind(order.requests[place]) == wanted] for order in orders]
    room, batch = at_once(leader), list[tuple[Order, int]]()
    while len(batch) < room and any(lines):
        for line in lines:
            if line and len(batch) < room:
                batch.append(line.pop(0))
    # Pictures of one caller stand side by side and in their order: what was asked for first is told first.
    return sorted(batch, key=lambda picture: (orders.index(picture[0]), picture[1]))
