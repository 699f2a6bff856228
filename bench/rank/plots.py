"""Plots as SVG files that read on light and dark pages: lines over named places, and bars."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from diffusion_lora.faces.charts import ticks

_WIDTH, _HEIGHT = 720, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 700, 56, 268
_COLOURS = ("#3565c4", "#c2571a", "#2f8f5b", "#8a4fbf", "#b03a5b", "#5d6673")


def plot(title: str, below: str, places: Sequence[str], lines: Mapping[str, Sequence[float]]) -> str:
    """One line a name, with a value for every place; the places lie at equal distances, and some may be unnamed."""
    values = [value for line in lines.values() for value in line]
    heights = ticks(min(0.0, *values), max(values), 4)
    low, high = heights[0], heights[-1]
    step = (_RIGHT - _LEFT) / max(1, len(places) - 1)

    def level(value: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * (value - low) / (high - low)

    parts = [f'<text x="{_LEFT}" y="20" font-size="15" font-weight="600">{escape(title)}</text>']
    for value in heights:
        parts.append(f'<path d="M{_LEFT} {level(value):.1f}H{_RIGHT}" stroke="#8a93a0" stroke-opacity=".35"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{level(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    skip = 1 if "" in places else -(-len(places) // 17)
    for number, place in enumerate(places):
        if place and number % skip == 0:
            parts.append(
                f'<text x="{_LEFT + step * number:.1f}" y="{_BOTTOM + 18}" text-anchor="middle">{escape(place)}</text>'
            )
    parts.append(f'<text x="{_RIGHT}" y="{_BOTTOM + 38}" text-anchor="end">{escape(below)}</text>')
    across = _LEFT
    for (name, line), colour in zip(lines.items(), _COLOURS, strict=False):
        points = [f"{_LEFT + step * number:.1f},{level(value):.1f}" for number, value in enumerate(line)]
        parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(points) <= 17:
            parts += [f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"/>' for x, y in (p.split(",") for p in points)]
        parts.append(f'<rect x="{across}" y="31" width="12" height="12" rx="2" fill="{colour}"/>')
        parts.append(f'<text x="{across + 18}" y="42">{escape(name)}</text>')
        across += 34 + 7 * len(name)
    return _svg(title, _HEIGHT, parts)


def bars(title: str, stacks: Mapping[str, Mapping[str, float]]) -> str:
    """A lying bar for each name, made of parts one after the other, by the logarithm of its sum, which is told."""
    left, right, high = 250, 610, 30
    sums = {name: sum(parts.values()) for name, parts in stacks.items()}
    low = math.floor(math.log10(min(sums.values()))) - 1
    span = math.log10(max(sums.values())) - low
    names = list(dict.fromkeys(part for parts in stacks.values() for part in parts))
    parts = [f'<text x="{_LEFT}" y="20" font-size="15" font-weight="600">{escape(title)}</text>']
    across = _LEFT
    for part, colour in zip(names, _COLOURS, strict=False):
        parts.append(f'<rect x="{across}" y="31" width="12" height="12" rx="2" fill="{colour}"/>')
        parts.append(f'<text x="{across + 18}" y="42">{escape(part)}</text>')
        across += 34 + 7 * len(part)
    for number, (name, stack) in enumerate(stacks.items()):
        y, x = _TOP + high * number + 4, float(left)
        length = (right - left) * (math.log10(sums[name]) - low) / span
        parts.append(f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>')
        for part, colour in zip(names, _COLOURS, strict=False):
            width = length * stack[part] / sums[name]
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="20" fill="{colour}"/>')
            x += width
        parts.append(f'<text x="{x + 8:.1f}" y="{y + 15}">{sums[name]:,.0f}</text>')
    foot = _TOP + high * len(stacks) + 24
    note = "lengths by the logarithm of the sum, colours by the share of it"
    parts.append(f'<text x="{_RIGHT}" y="{foot}" text-anchor="end">{note}</text>')
    return _svg(title, foot + 14, parts)


def _svg(title: str, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}" font-family="system-ui, sans-serif" font-size="12" fill="#6b7480">'
        f"{''.join(parts)}</svg>\n"
    )
