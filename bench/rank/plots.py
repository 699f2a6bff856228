"""Plots as SVG files that read on light and dark pages: lines over named places, nothing but text and strokes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from diffusion_lora.faces.charts import ticks

_WIDTH, _HEIGHT = 720, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 700, 56, 268
_COLOURS = ("#3565c4", "#c2571a", "#2f8f5b", "#8a4fbf", "#b03a5b", "#5d6673")


def plot(title: str, below: str, places: Sequence[str], lines: Mapping[str, Sequence[float]]) -> str:
    """One line a name, with a value for every place; the places lie at equal distances."""
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
    skip = -(-len(places) // 17)
    for number, place in enumerate(places):
        if number % skip == 0:
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
    return _drawn(title, parts)


def bars(title: str, rows: Mapping[str, Mapping[str, float]], unit: str) -> str:
    """One bar a row, its parts one after the other, their sum behind it."""
    most = max(sum(parts.values()) for parts in rows.values())
    left, step = 210, (_BOTTOM - _TOP) / len(rows)
    wide = (_RIGHT - left - 80) / most
    parts = [f'<text x="{_LEFT}" y="20" font-size="15" font-weight="600">{escape(title)}</text>']
    across = _LEFT
    names = next(iter(rows.values()))
    for name, colour in zip(names, _COLOURS, strict=False):
        parts.append(f'<rect x="{across}" y="31" width="12" height="12" rx="2" fill="{colour}"/>')
        parts.append(f'<text x="{across + 18}" y="42">{escape(name)}</text>')
        across += 34 + 7 * len(name)
    for number, (row, values) in enumerate(rows.items()):
        top, from_left = _TOP + step * number + 8, float(left)
        middle = top + (step - 16) / 2 + 4
        parts.append(f'<text x="{left - 10}" y="{middle:.1f}" text-anchor="end">{escape(row)}</text>')
        for value, colour in zip(values.values(), _COLOURS, strict=False):
            parts.append(
                f'<rect x="{from_left:.1f}" y="{top:.1f}" width="{wide * value:.1f}" height="{step - 16:.1f}" '
                f'fill="{colour}"/>'
            )
            from_left += wide * value
        told = f"{sum(values.values()):.2f} {unit}"
        parts.append(f'<text x="{from_left + 8:.1f}" y="{middle:.1f}">{escape(told)}</text>')
    return _drawn(title, parts)


def _drawn(title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(title)}" font-family="system-ui, sans-serif" font-size="12" fill="#6b7480">'
        f"{''.join(parts)}</svg>\n"
    )
