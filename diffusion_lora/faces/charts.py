"""Lines over numbers as SVG, for pages without scripts: axes with round ticks, a legend, colours from the page's style.

The classes that a page gives colours to: `grid`, `tick`, and those of the lines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 900, 300
_LEFT, _TOP, _RIGHT, _BOTTOM = 64, 14, 886, 252


@dataclass(frozen=True)
class Line:
    """A course; `look` is its class. With `dots` points are marked; spikes of `faint` ones do not stretch the axis."""

    name: str
    points: Sequence[tuple[float, float]]
    look: str
    dots: bool = False
    faint: bool = False


def line_chart(lines: Sequence[Line], told: str, below: str, *, mark: float | None = None) -> str:
    """A figure with its legend; `told` is what it says to those who do not see it, `below` the name of the x axis.

    `mark` is a place on the x axis that is drawn through. Nothing where no line has a point.
    """
    shown = [line for line in lines if line.points]
    if not shown:
        return ""
    low, high = _range([line for line in shown if not line.faint] or shown, [line for line in shown if line.faint])
    across = [x for line in shown for x, _ in line.points]
    first, last = min(across), max(across)
    heights, widths = ticks(low, high, 4), [x for x in ticks(first, last, 7) if first <= x <= last]
    low, high = min(low, heights[0]), max(high, heights[-1])

    def place(x: float, y: float) -> str:
        share = min(max((y - low) / ((high - low) or 1.0), 0.0), 1.0)
        return f"{_LEFT + (_RIGHT - _LEFT) * (x - first) / ((last - first) or 1.0):.1f},{_level(share):.1f}"

    parts = []
    for value in heights:
        y = _level((value - low) / ((high - low) or 1.0))
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in widths:
        left = place(value, low).split(",")[0]
        parts.append(f'<text class="tick" x="{left}" y="{_BOTTOM + 20}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<text class="tick" x="{_RIGHT}" y="{_BOTTOM + 40}" text-anchor="end">{escape(below)}</text>')
    if mark is not None:
        left = place(mark, low).split(",")[0]
        parts.append(f'<line class="mark" x1="{left}" x2="{left}" y1="{_TOP}" y2="{_BOTTOM}"/>')
    for line in shown:
        points = [place(x, y) for x, y in line.points]
        parts.append(f'<polyline class="{line.look}" fill="none" points="{" ".join(points)}"/>')
        for point in points if line.dots else ():
            left, level = point.split(",")
            parts.append(f'<circle class="{line.look}" cx="{left}" cy="{level}" r="3.5"/>')
    legend = "".join(f'<span><i class="{line.look}"></i>{escape(line.name)}</span>' for line in shown)
    figure = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(told)}">{"".join(parts)}</svg>'
    return f'<div class="legend">{legend}</div>{figure}'


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round numbers that enclose a range, about so many."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / wanted))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power * wanted >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def _range(firm: Sequence[Line], faint: Sequence[Line]) -> tuple[float, float]:
    values = [y for line in firm for _, y in line.points]
    spiky = sorted(y for line in faint for _, y in line.points)
    if spiky:
        values += [spiky[int(0.02 * (len(spiky) - 1))], spiky[math.ceil(0.98 * (len(spiky) - 1))]]
    return min(values), max(values)


def _level(share: float) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * share
