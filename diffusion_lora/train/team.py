"""The processes of one run: data-parallel training over GPUs and machines, by accelerate.

`accelerate launch -m diffusion_lora run DIR`, or torchrun, starts the same command several times and tells each by
environment variables which one it is. Every process has the whole base and the adapters, sees its own part of each
batch, and takes the same step, for gradients are added up before it. The first process leads: it alone writes, holds
locks and answers requests. Torch is imported only where a team is joined.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


def is_leader() -> bool:
    """Whether this process is the first of its team, or alone: the one that may write."""
    return int(os.environ.get("RANK", "0")) == 0 or _size() == 1


@dataclass(frozen=True)
class Team:
    """Who is in the team. `device` is where this process computes, as `train.device` would say it."""

    rank: int
    size: int
    device: str
    control: Any = None  # a group of the hosts, for words that never see a device

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the team, in place: the same bits in every process."""
        if self.size > 1:
            from torch import distributed

            for tensor in tensors:
                distributed.all_reduce(tensor)

    def told(self, word: T) -> T:
        """The leader's word, in every process; what the others give does not matter."""
        if self.size == 1:
            return word
        from torch import distributed

        words: list[Any] = [word]
        distributed.broadcast_object_list(words, src=0, group=self.control)
        return words[0]

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """The leader goes through the block before the others do, who find what it has left on the disk."""
        if not self.leads:
            self.told(None)
        yield
        if self.leads:
            self.told(None)

    def any(self, mine: Sequence[bool]) -> list[bool]:
        """For every question whether anybody says yes: the same answers in every process. Waits for the slowest."""
        if self.size == 1:
            return list(mine)
        import torch
        from torch import distributed

        answers = torch.tensor([int(answer) for answer in mine])
        distributed.all_reduce(answers, op=distributed.ReduceOp.MAX, group=self.control)
        return [bool(answer) for answer in answers.tolist()]


@contextmanager
def joined_team(device: str) -> Iterator[Team]:
    """The team that this process was started in, for the length of the block; alone where it was started alone.

    `device` is the configured one: "cpu" stays it, of several GPUs each process has its own.
    """
    if _size() == 1:
        yield Team(0, 1, device)
        return
    import torch
    from accelerate import PartialState
    from torch import distributed

    on_cpu = device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=on_cpu)
    control = distributed.new_group(backend="gloo") if distributed.get_backend() != "gloo" else None
    try:
        yield Team(state.process_index, state.num_processes, "cpu" if on_cpu else str(state.device), control)
    finally:
        state.destroy_process_group()


def _size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
