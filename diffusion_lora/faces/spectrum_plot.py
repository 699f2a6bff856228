"""The spectrum of an adapter as one picture: how much of the energy a rank keeps, and where in the model it lies.

Left, the share of the energy against the rank, for the whole and for each block; right, every singular value of every
layer as a coloured cell, layers from top to bottom. It draws what it is given: figures are `lora.spectrum`'s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from diffusion_lora.lora.spectrum import Spectrum

_PAPER, _CARD, _INK, _SOFT, _RULE = "#f4f1ea", "#fffefb", "#26232a", "#7d7783", "#e4dfd5"
_HUES = (
    "#c2502e", "#2e6f8e", "#5b7f3a", "#80508f", "#b0892f", "#3f8f86",
    "#d07ea0", "#5a6472", "#8a5a3c", "#6f8fd0", "#a3b75b", "#b06fc0",
)  # fmt: skip
_COLD, _WARM = (255, 254, 251), (122, 31, 38)
_WIDTH, _HEIGHT, _MARGIN = 1400, 860, 48
_LEFT = (_MARGIN + 64, 150, 720, 760)  # the curves' axes: left, top, right, bottom
_RIGHT = (880, 150, _WIDTH - _MARGIN - 24, 760)
_SCALE = 2  # drawn twice as large and shrunk: PIL's own lines have no antialiasing
_DECADES = 4.0  # colours span values down to this many powers of ten below the largest


def draw_spectrum(title: str, subtitle: str, spectrum: Spectrum, shares: Sequence[float]) -> Image.Image:
    """RGB, 1400 x 860 pixels; `shares` of the energy are marked on the curve of the whole."""
    page = Image.new("RGB", (_WIDTH * _SCALE, _HEIGHT * _SCALE), _PAPER)
    canvas = _Canvas(page)
    canvas.text((_MARGIN, 34), title, 34, _INK, width=_WIDTH - 2 * _MARGIN)
    canvas.text((_MARGIN, 84), subtitle, 18, _SOFT, width=_WIDTH - 2 * _MARGIN)
    canvas.box((_MARGIN, 122, 760, _HEIGHT - _MARGIN), _CARD)
    canvas.box((800, 122, _WIDTH - _MARGIN, _HEIGHT - _MARGIN), _CARD)
    _draw_curves(canvas, spectrum, shares)
    _draw_values(canvas, page, spectrum)
    return page.resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS)


class _Canvas:
    """ImageDraw in the page's pixels, whatever the scale it is drawn at."""

    def __init__(self, image: Image.Image) -> None:
        self._draw = ImageDraw.Draw(image)

    def text(
        self, xy: tuple[float, float], text: str, size: float, fill: str, anchor: str = "la", width: float | None = None
    ) -> None:
        font = ImageFont.load_default(size * _SCALE)
        if width is not None and font.getlength(text) > width * _SCALE:
            while text and font.getlength(text + "…") > width * _SCALE:
                text = text[:-1]
            text += "…"
        self._draw.text((xy[0] * _SCALE, xy[1] * _SCALE), text, fill=fill, font=font, anchor=anchor)

    def box(self, box: tuple[float, float, float, float], fill: str) -> None:
        self._draw.rounded_rectangle([value * _SCALE for value in box], radius=14 * _SCALE, fill=fill)

    def dot(self, x: float, y: float, radius: float, fill: str) -> None:
        self._draw.ellipse([v * _SCALE for v in (x - radius, y - radius, x + radius, y + radius)], fill=fill)

    def line(self, points: Sequence[tuple[float, float]], fill: str, width: float) -> None:
        scaled = [(x * _SCALE, y * _SCALE) for x, y in points]
        self._draw.line(scaled, fill=fill, width=max(1, round(width * _SCALE)), joint="curve")


def _draw_curves(canvas: _Canvas, spectrum: Spectrum, shares: Sequence[float]) -> None:
    left, top, right, bottom = _LEFT
    longest = max((len(layer.values) for layer in spectrum.layers), default=1)
    ranks = range(min(longest, max(4, math.ceil(1.5 * spectrum.rank_for(max(shares))))) + 1)

    def place(rank: float, kept: float) -> tuple[float, float]:
        return left + (right - left) * rank / ranks[-1], bottom - (bottom - top) * kept

    for tenth in range(0, 11, 2):
        y = place(0, tenth / 10)[1]
        canvas.line([(left, y), (right, y)], _RULE, 1)
        canvas.text((left - 10, y), f"{10 * tenth} %", 15, _SOFT, "rm")
    for rank in _ticks(ranks[-1]):
        canvas.text((place(rank, 0)[0], bottom + 10), str(rank), 15, _SOFT, "ma")
    canvas.text(((left + right) / 2, bottom + 32), "rank", 15, _SOFT, "ma")
    blocks = spectrum.by_block()
    curves = [(block.curve(), _HUES[index % len(_HUES)], 1.4) for index, block in enumerate(blocks.values())]
    whole = spectrum.curve()
    for curve, hue, width in (*curves, (whole, _INK, 3)):
        canvas.line([place(rank, curve[min(rank, len(curve) - 1)]) for rank in ranks], hue, width)
    for share in shares:
        rank = spectrum.rank_for(share)
        x, y = place(rank, whole[min(rank, len(whole) - 1)])
        canvas.line([(x, y), (x, bottom)], _RULE, 1.5)
        canvas.dot(x, y, 5, _INK)
        canvas.text((x, y + 12), f"{100 * share:.0f} %", 14, _INK, "ra" if x > right - 60 else "la")
    names = [("all layers", _INK), *((name, _HUES[i % len(_HUES)]) for i, name in enumerate(blocks))]
    rows = (len(names) + 1) // 2
    canvas.box((right - 212, bottom - 30 - 21 * rows, right, bottom - 4), _CARD)
    for index, (name, hue) in enumerate(names):
        x, y = right - 200 + 104 * (index // rows), bottom - 18 - 21 * (rows - 1 - index % rows)
        canvas.line([(x, y), (x + 18, y)], hue, 3 if not index else 2)
        canvas.text((x + 24, y), name, 14, _INK, "lm")


def _draw_values(canvas: _Canvas, page: Image.Image, spectrum: Spectrum) -> None:
    left, top, right, bottom = _RIGHT
    longest = max((len(layer.values) for layer in spectrum.layers), default=1)
    columns = min(longest, 128)
    largest = max((layer.values[0] for layer in spectrum.layers if layer.values), default=1.0)
    blocks = spectrum.by_block()
    cells = Image.new("RGB", (max(columns, 1), max(len(spectrum.layers), 1)), _COLD)
    for row, layer in enumerate(layer for block in blocks.values() for layer in block.layers):
        for column, value in enumerate(layer.values[:columns]):
            cells.putpixel((column, row), _colour(value / largest))
    size = ((right - left) * _SCALE, (bottom - top) * _SCALE)
    page.paste(cells.resize(size, Image.Resampling.NEAREST), (left * _SCALE, top * _SCALE))
    height, y = (bottom - top) / max(len(spectrum.layers), 1), float(top)
    for name, block in blocks.items():
        canvas.line([(left, y), (right, y)], _RULE, 1)
        canvas.text((left - 8, y + height * len(block.layers) / 2), name, 14, _SOFT, "rm")
        y += height * len(block.layers)
    for value in _ticks(columns):
        if value:
            x = left + (right - left) * (value - 0.5) / columns
            canvas.text((x, bottom + 10), str(value), 15, _SOFT, "ma")
    label = f"singular values, largest {largest:.3g} (dark) to a {10**_DECADES:,.0f}th of it (light)"
    canvas.text(((left + right) / 2, bottom + 32), label, 15, _SOFT, "ma", width=right - left + 60)


def _ticks(last: int) -> list[int]:
    """At most seven round numbers from 0 to `last`."""
    step = next(step for step in (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100, 128, 256, 512, 10**9) if last / step <= 6)
    return list(range(0, last + 1, step))


def _colour(share: float) -> tuple[int, int, int]:
    """From light to dark on a logarithmic scale."""
    depth = 1 + math.log10(share) / _DECADES if share > 0 else 0.0
    depth = min(max(depth, 0.0), 1.0)
    red, green, blue = (round(cold + (warm - cold) * depth) for cold, warm in zip(_COLD, _WARM, strict=True))
    return red, green, blue
