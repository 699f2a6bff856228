"""Training by a team: some processes of one thread each on a CPU, or one process on a GPU.

All state is a handful of flat tensors (weights, their moving average, two moments), shared between the processes.
In every step each process adds the gradient of its part of the batch to its own row, and then updates the matrices
that are its own, so nothing is sent and nothing is computed twice. One-thread processes beat two-thread ones by a
fifth here: small operations lose little to waiting.

The optimizer is Muon (Jordan 2024): hidden matrices move along their orthogonalised momentum, scaled by
0.2 sqrt(max(rows, columns)) so that AdamW's learning rates apply (arXiv 2502.16982); the rest moves by AdamW.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier
from typing import Protocol

import torch
from torch import Tensor, nn

WEIGHT_DECAY = 0.01


class Task(Protocol):
    """What a team trains. `build` makes one in every process."""

    @property
    def module(self) -> nn.Module: ...
    @property
    def frozen(self) -> tuple[str, ...]: ...
    @property
    def outer(self) -> tuple[str, ...]: ...

    def loss(self, step: int, rank: int, size: int) -> Tensor: ...
    def report(self, average: nn.Module, step: int) -> None: ...
    def extra(self) -> dict[str, float]: ...


@dataclass(frozen=True)
class Plan:
    """How long, how fast, where to; `lr(step)` must be a function that other processes can import."""

    state: Path
    steps: int
    lr: Callable[[int, int], float]
    average: float
    size: int
    device: str
    report_minutes: float = 4.0


@dataclass(frozen=True)
class Slot:
    name: str
    start: int
    shape: tuple[int, ...]
    matrix: bool

    @property
    def stop(self) -> int:
        return self.start + torch.Size(self.shape).numel()

    def of(self, flat: Tensor) -> Tensor:
        """This parameter as a view of a flat tensor; convolution weights lie channels-last."""
        part = flat[self.start : self.stop]
        if len(self.shape) != 4:
            return part.view(self.shape)
        out, into, height, width = self.shape
        return part.view(out, height, width, into).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Store:
    """Flat tensors [n], and one row of gradients for each process [size, n]."""

    weights: Tensor
    average: Tensor
    first: Tensor
    second: Tensor
    gradients: Tensor


def slots_of(module: nn.Module, outer: Sequence[str] = ()) -> list[Slot]:
    """Where each parameter lies; those whose name holds a part named in `outer` are no hidden matrices."""
    slots, start = [], 0
    for name, parameter in module.named_parameters():
        matrix = parameter.ndim > 1 and not any(part in name for part in outer)
        slots.append(Slot(name, start, tuple(parameter.shape), matrix))
        start += parameter.numel()
    return slots


def orthogonalise(matrix: Tensor) -> Tensor:
    """[m, n] -> about the nearest semi-orthogonal matrix, by five Newton-Schulz steps: singular values 0.7 ... 1.2."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)


def update(slot: Slot, store: Store, step: int, lr: float) -> None:
    """One step of Muon or AdamW (betas 0.9, 0.99) for one parameter, in place."""
    rows = [slot.of(row) for row in store.gradients]
    gradient = rows[0] if len(rows) == 1 else torch.stack(rows).mean(dim=0)
    weights, first = slot.of(store.weights), slot.of(store.first)
    if slot.matrix:
        first.mul_(0.95).add_(gradient)
        nesterov = gradient.add(first, alpha=0.95).flatten(1)
        change = (orthogonalise(nesterov) * (0.2 * max(nesterov.shape) ** 0.5)).view(slot.shape)
    else:
        second = slot.of(store.second)
        first.lerp_(gradient, 0.1)
        second.lerp_(gradient.square(), 0.01)
        change = (first / (1 - 0.9 ** (step + 1))) / ((second / (1 - 0.99 ** (step + 1))).sqrt() + 1e-8)
    weights.mul_(1 - lr * WEIGHT_DECAY).add_(change, alpha=-lr)


def share_out(slots: Sequence[Slot], size: int) -> list[list[Slot]]:
    """Whose parameters are whose: the largest first, each to the process that has least to do."""
    mine: list[list[Slot]] = [[] for _ in range(size)]
    load = [0.0] * size
    for slot in sorted(slots, key=lambda slot: slot.start - slot.stop):
        least = load.index(min(load))
        mine[least].append(slot)
        load[least] += (slot.stop - slot.start) * (min(slot.shape[0], 512) if slot.matrix else 1)
    return mine


def save(plan: Plan, store: Store, step: int, extra: dict[str, float]) -> None:
    """STATE/state.pt, replaced in one move."""
    flat = {name: getattr(store, name) for name in ("weights", "average", "first", "second")}
    part = plan.state / "state.part"
    torch.save({**flat, "step": step, "extra": extra}, part)
    part.replace(plan.state / "state.pt")


def tied(module: nn.Module, slots: Sequence[Slot], flat: Tensor, gradients: Tensor | None = None) -> nn.Module:
    """The module with its parameters (and gradients) as views of flat tensors."""
    for slot, parameter in zip(slots, module.parameters(), strict=True):
        parameter.data = slot.of(flat)
        if gradients is not None and parameter.requires_grad:
            parameter.grad = slot.of(gradients)
    return module


def work(rank: int, build: Callable[[], Task], plan: Plan, store: Store, first_step: int, barrier: Barrier) -> None:
    """One process of the team."""
    torch.set_num_threads(1)
    task = build()
    slots = slots_of(task.module, task.outer)
    learning = [slot for slot in slots if not slot.name.startswith(task.frozen)]
    for slot, parameter in zip(slots, task.module.parameters(), strict=True):
        parameter.requires_grad_(slot in learning)
    averaged = tied(copy.deepcopy(task.module), slots, store.average) if rank == 0 else task.module
    tied(task.module, slots, store.weights, store.gradients[rank])
    mine = share_out(learning, plan.size)[rank]
    running, begun = 0.0, time.monotonic()
    told_at = reported_at = begun
    for step in range(first_step, plan.steps):
        store.gradients[rank].zero_()
        loss = task.loss(step, rank, plan.size)
        loss.backward()
        barrier.wait()
        with torch.no_grad():
            for slot in mine:
                update(slot, store, step, plan.lr(step, plan.steps))
                keep = min(plan.average, (step + 1) / (step + 10))
                slot.of(store.average).lerp_(slot.of(store.weights), 1 - keep)
        barrier.wait()
        if rank:
            continue
        running = loss.item() if step == first_step else 0.97 * running + 0.03 * loss.item()
        now, done, last = time.monotonic(), step + 1, step + 1 == plan.steps
        if now - told_at > 30 or last:
            told_at = now
            rate = (done - first_step) / (now - begun)
            print(f"step {done}/{plan.steps} loss {running:.4f} {rate:.3f} steps/s {now - begun:.0f} s", flush=True)
        if now - reported_at > 60 * plan.report_minutes or last:
            reported_at = now
            save(plan, store, done, task.extra())
            task.report(averaged, done)


def train(build: Callable[[], Task], plan: Plan) -> None:
    """Train from STATE/state.pt if it is there, else from `build`'s own weights, to `plan.steps`."""
    task = build()
    slots, device = slots_of(task.module), torch.device(plan.device)
    count = slots[-1].stop
    names = ("weights", "average", "first", "second")
    plan.state.mkdir(parents=True, exist_ok=True)
    file = plan.state / "state.pt"
    step = 0
    if file.exists():
        saved = torch.load(file, weights_only=True, map_location=device)
        flat, step = {name: saved[name] for name in names}, saved["step"]
    else:
        flat = {name: torch.zeros(count, device=device) for name in names}
        for slot, parameter in zip(slots, task.module.parameters(), strict=True):
            slot.of(flat["weights"]).copy_(parameter.detach())
        flat["average"].copy_(flat["weights"])
    store = Store(**flat, gradients=torch.zeros(plan.size, count, device=device))
    if plan.size == 1:
        work(0, build, plan, store, step, Barrier(1))
        return
    for tensor in vars(store).values():
        tensor.share_memory_()
    barrier = torch.multiprocessing.get_context("spawn").Barrier(plan.size)
    torch.multiprocessing.spawn(work, (build, plan, store, step, barrier), nprocs=plan.size)


def load_average(module: nn.Module, state: Path) -> dict[str, float]:
    """Put the averaged weights of a state into a module of the same parameters; returns the extra facts in it."""
    saved = torch.load(state / "state.pt", weights_only=True, map_location="cpu")
    with torch.no_grad():
        for slot, parameter in zip(slots_of(module), module.parameters(), strict=True):
            parameter.copy_(slot.of(saved["average"]))
    extra: dict[str, float] = saved["extra"]
    return extra
