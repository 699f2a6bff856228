"""What the `dataset` commands print. No torch, nothing computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

_SHOWN = 10


def show_problems(problems: Mapping[Any, Sequence[Any]], pictures: int) -> None:
    """The problems of each kind, the first few of many."""
    console = Console()
    total = sum(map(len, problems.values()))
    _say(console, f"{pictures} pictures can be trained on; {total or 'no'} problem{'s' if total != 1 else ''}")
    for kind, found in problems.items():
        _say(console, f"\n{kind}: {len(found)}")
        for problem in found[:_SHOWN]:
            _say(console, f"  {problem.text}" + (" (left out)" if problem.left_out else ""))
        if len(found) > _SHOWN:
            _say(console, f"  and {len(found) - _SHOWN} more (--json tells all)")


def show_buckets(buckets: Sequence[tuple[tuple[int, int], int, float, float]]) -> None:
    """Each shape, how many pictures it holds, and what is cut off of them."""
    console = Console()
    _say(console, "")
    for (width, height), count, mean, most in buckets:
        cut = f"{100 * mean:.0f} % cut off, at most {100 * most:.0f} %" if most >= 0.005 else "nothing cut off"
        _say(console, f"{width} x {height}: {count} picture{'s' if count != 1 else ''}, {cut}")


def show_captions(listed: Sequence[Mapping[str, Any]], dropout: float) -> None:
    """Each picture with its captions, their lengths, and what is not read of them."""
    console = Console()
    for entry in listed:
        _say(console, entry["picture"])
        for caption in entry["captions"]:
            _say(console, f"  {caption['tokens']:3} tokens  {caption['caption'] or '(no caption)'}")
            tokens = " | ".join(
                " ".join(token["token"] + ("" if token["weight"] == 1 else f"*{token['weight']:g}") for token in chunk)
                for chunk in caption["chunks"]
            )
            _say(console, f"              {tokens}")
            if caption["cut"]:
                _say(console, f"              cut off: {caption['cut']}")
    if dropout:
        _say(console, f"and no caption at all {100 * dropout:g} % of the time")


def show_caption_change(name: str, before: str, after: str) -> None:
    """A caption before and after."""
    console = Console()
    _say(console, name)
    _say(console, f"  - {before or '(no caption)'}")
    _say(console, f"  + {after}")


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
