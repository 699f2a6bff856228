"""What people do to a stack of adapters as a whole: mute, solo, keep to a budget. No torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from diffusion_lora.errors import PromptError
from diffusion_lora.generate.request import LoraUse

Uses = tuple[LoraUse, ...]


def muted(uses: Sequence[LoraUse], names: Collection[str]) -> Uses:
    """The stack with these adapters at no strength at all: they stay, so that the request still tells of them."""
    _check(uses, names)
    return tuple(_off(use) if use.name in names else use for use in uses)


def soloed(uses: Sequence[LoraUse], names: Collection[str]) -> Uses:
    """The stack with all others muted."""
    _check(uses, names)
    return tuple(use if use.name in names else _off(use) for use in uses)


def within_budget(uses: Sequence[LoraUse], budget: float) -> Uses:
    """The stack with all strengths scaled by one factor, so that their amounts sum to at most `budget`.

    A stack below it stays as it is. Text and negative strengths are scaled along. Raises PromptError.
    """
    if not budget > 0:
        raise PromptError(f"the budget of strengths is {budget}; give a positive number such as 1.2")
    total = sum(abs(use.strength) for use in uses)
    if total <= budget:
        return tuple(uses)
    factor = budget / total
    return tuple(
        replace(
            use,
            strength=use.strength * factor,
            text_strength=None if use.text_strength is None else use.text_strength * factor,
            negative=None if use.negative is None else use.negative * factor,
        )
        for use in uses
    )


def _off(use: LoraUse) -> LoraUse:
    return replace(use, strength=0.0, text_strength=None, negative=None)


def _check(uses: Sequence[LoraUse], names: Collection[str]) -> None:
    there = [use.name for use in uses]
    if strange := sorted(set(names) - set(there)):
        raise PromptError(f"there is no LoRA {strange[0]} in the stack: {', '.join(there) or 'it is empty'}")
