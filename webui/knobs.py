"""What a channel can be told beyond its fader: named choices for blocks and steps, how a course over the steps looks.

The texts are the library's own grammar (`generate.request.parse_blocks`, `generate.schedules`), so that what is chosen
here can be typed by hand, on the command line and in a tag. What this module does not know: channels and requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_lora.errors import PromptError
from diffusion_lora.generate.request import parse_blocks
from diffusion_lora.generate.schedules import factor_at, parse_schedule

BLOCKS: tuple[tuple[str, str], ...] = (
    ("", "All of them"),
    ("down:0", "Middle and up"),
    ("up:0", "Down and middle"),
    ("down:0,up:0", "Middle alone"),
    ("down:0,mid:0", "Up alone"),
    ("mid:0,up:0", "Down alone"),
    ("down:0.5,mid:0.5", "Down and middle at half"),
)
"""Factors by block, and what they leave acting."""

STEPS: tuple[tuple[str, str], ...] = (
    ("", "All of them"),
    ("0-0.5", "First half"),
    ("0.5-1", "Second half"),
    ("0.2-0.8", "All but the ends"),
    ("0:0 1:1", "Fading in"),
    ("0:1 1:0", "Fading out"),
    ("switch 1/2", "Every other step"),
)
"""Schedules, and when they act."""

MAX_CHARS = 400
_POINTS = 24


def course(steps: str) -> list[float] | None:
    """The factor at 24 places over the steps; None for a schedule that says nothing. Raises PromptError."""
    if not steps.strip():
        return None
    return [round(factor_at(steps, place, _POINTS), 3) for place in range(1, _POINTS + 1)]


def checked(name: str, steps: Any, blocks: Any) -> tuple[str, str]:
    """The two texts of a channel, as they are kept. Raises PromptError that names the channel."""
    texts = str(steps or "").strip(), str(blocks or "").strip()
    if any(len(text) > MAX_CHARS for text in texts):
        raise PromptError(f"what {name} is told by block and step is longer than {MAX_CHARS} characters")
    parse_schedule(texts[0])
    parse_blocks(texts[1])
    return texts


def looked_at(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What a person typed, as it is kept, with its course. Raises PromptError."""
    steps, blocks = checked(str(asked.get("name", "")), asked.get("steps"), asked.get("blocks"))
    return {"steps": steps, "blocks": blocks, "course": course(steps)}
