"""Axes of a grid as values: what varies along a side, and the requests that two of them make of one. No torch.

How people write them is `axes`' business, drawing them `grid`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from diffusion_lora.errors import PromptError
from diffusion_lora.generate.request import LoraUse, Request

Change = Callable[[Request], Request]


@dataclass(frozen=True)
class Axis:
    """What varies along one side of a grid: for every place a label and the change it makes to a request."""

    title: str
    labels: tuple[str, ...]
    changes: tuple[Change, ...]

    def __post_init__(self) -> None:
        if not self.changes:
            raise PromptError(f"the axis {self.title or 'of the grid'} has no values; give at least one")


def strength_axis(use: LoraUse, strengths: Sequence[float], title: str = "") -> Axis:
    """One adapter at several strengths; it takes the place of the same file in a request, or is added to it."""
    return Axis(
        title or f"strength of {use.name}",
        tuple(f"{strength:g}" for strength in strengths),
        tuple(_with_lora(use.at(strength)) for strength in strengths),
    )


def lora_axis(stacks: Sequence[Sequence[LoraUse]], title: str = "LoRA") -> Axis:
    """Several stacks of adapters, each added to what a request has; an empty one is the base."""
    labels = (" + ".join(f"{use.name} {use.strength:g}" for use in stack) or "none" for stack in stacks)
    return Axis(title, tuple(labels), tuple(_with_loras(tuple(stack)) for stack in stacks))


def prompt_axis(prompts: Sequence[str], title: str = "") -> Axis:
    """Several prompts."""
    return Axis(title, tuple(prompts), tuple(_with_prompt(prompt) for prompt in prompts))


def seed_axis(seeds: Sequence[int], title: str = "seed") -> Axis:
    """Several seeds."""
    return Axis(title, tuple(str(seed) for seed in seeds), tuple(_with_seed(seed) for seed in seeds))


def cells_of(request: Request, rows: Axis, columns: Axis) -> list[Request]:
    """What each cell of a grid draws, row by row."""
    return [column(row(request)) for row in rows.changes for column in columns.changes]


def _with_lora(use: LoraUse) -> Change:
    def change(request: Request) -> Request:
        others = tuple(other for other in request.loras if other.path != use.path)
        return replace(request, loras=(*others, use))

    return change


def _with_loras(uses: tuple[LoraUse, ...]) -> Change:
    return lambda request: replace(request, loras=request.loras + uses)


def _with_prompt(prompt: str) -> Change:
    return lambda request: replace(request, prompt=prompt)


def _with_seed(seed: int) -> Change:
    return lambda request: replace(request, seed=seed)
