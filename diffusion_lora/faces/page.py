"""A page that tells about trained adapters: facts, the pictures they learned from, the course of the loss.

`draw_page` turns plain facts into one picture. It reads no run folder and no adapter file: the caller does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from diffusion_lora.run import write_atomically

_PAPER, _CARD, _INK, _SOFT, _RULE = "#f4f1ea", "#fffefb", "#26232a", "#7d7783", "#e4dfd5"
_HUES = ("#c2502e", "#2e6f8e", "#5b7f3a", "#80508f")
_WIDTH, _MARGIN, _PAD, _GAP = 1400, 48, 32, 28
_CARD_HEIGHT, _HEAD_HEIGHT = 440, 132
_FACTS_WIDTH = 500
_SCALE = 2  # drawn twice as large and shrunk: PIL's own lines have no antialiasing


@dataclass(frozen=True)
class AdapterFacts:
    """What a page tells of one adapter; `losses` are (step, loss), `pictures` some of those it learned from."""

    name: str
    file: str
    rank: int
    alpha: float
    layers: int
    parameters: int
    share_percent: float
    size_bytes: int
    train_s: float
    trigger_word: str | None
    losses: Sequence[tuple[int, float]]
    pictures: Sequence[Image.Image]

    def rows(self) -> list[tuple[str, str]]:
        """Label and value, in the order in which they are told."""
        rows = [
            ("file", self.file),
            ("rank, alpha", f"{self.rank}, {self.alpha:g}"),
            ("size", size_in_words(self.size_bytes)),
            ("trainable", f"{self.share_percent:.1f} % of the base"),
            ("parameters", f"{self.parameters:,} in {self.layers} layers"),
            ("training", f"{self.losses[-1][0] if self.losses else 0} steps, {self.train_s:.0f} s"),
        ]
        return [*rows, ("its word", self.trigger_word)] if self.trigger_word else rows


def size_in_words(size_bytes: int) -> str:
    """`1234567` -> `"1.2 MB"`, in powers of ten as file managers count."""
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.0f} kB"


def smooth(losses: Sequence[tuple[int, float]], halving_steps: float | None = None) -> list[tuple[int, float]]:
    """Exponential mean of a noisy curve without the start's bias (Kingma & Ba 2015, section 3).

    A value's weight halves every `halving_steps`; by default a thirtieth of the curve's length.
    """
    if not losses:
        return []
    span = max(losses[-1][0] - losses[0][0], 1)
    decay_per_step = 0.5 ** (1 / (halving_steps or max(span / 30, 1)))
    mean, weight, curve, previous = 0.0, 0.0, [], losses[0][0] - 1
    for step, loss in losses:
        decay = decay_per_step ** (step - previous)
        mean, weight, previous = decay * mean + (1 - decay) * loss, decay * weight + 1 - decay, step
        curve.append((step, mean / weight))
    return curve


def draw_page(title: str, subtitle: str, adapters: Sequence[AdapterFacts]) -> Image.Image:
    """One card below the other under a headline; RGB, 1400 pixels wide."""
    height = _HEAD_HEIGHT + len(adapters) * (_CARD_HEIGHT + _GAP) + _MARGIN - _GAP
    page = Image.new("RGB", (_WIDTH * _SCALE, height * _SCALE), _PAPER)
    draw = Canvas(page)
    draw.text((_MARGIN, 34), title, 40, _INK)
    draw.text((_MARGIN, 86), subtitle, 19, _SOFT)
    for index, facts in enumerate(adapters):
        top = _HEAD_HEIGHT + index * (_CARD_HEIGHT + _GAP)
        _draw_card(draw, facts, top, _HUES[index % len(_HUES)])
    return page.resize((_WIDTH, height), Image.Resampling.LANCZOS)


def save_page(page: Image.Image, path: Path) -> None:
    """Write a PNG whole or not at all. Raises OutputError."""
    buffer = BytesIO()
    page.save(buffer, format="PNG", optimize=True)
    write_atomically(path, buffer.getvalue())


class Canvas:
    """ImageDraw in the page's pixels, whatever the scale it is drawn at."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image
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

    def box(self, box: tuple[float, float, float, float], fill: str, radius: float = 0) -> None:
        self._draw.rounded_rectangle([value * _SCALE for value in box], radius=radius * _SCALE, fill=fill)

    def line(self, points: Sequence[tuple[float, float]], fill: str, width: float) -> None:
        scaled = [(x * _SCALE, y * _SCALE) for x, y in points]
        self._draw.line(scaled, fill=fill, width=max(1, round(width * _SCALE)), joint="curve")

    def paste(self, picture: Image.Image, xy: tuple[float, float], side: float) -> None:
        side_px = round(side * _SCALE)
        tile = picture.convert("RGB").resize((side_px, side_px), Image.Resampling.LANCZOS)
        mask = Image.new("L", tile.size, 0)
        ImageDraw.Draw(mask).rounded_rectangle([0, 0, side_px - 1, side_px - 1], radius=6 * _SCALE, fill=255)
        self.image.paste(tile, (round(xy[0] * _SCALE), round(xy[1] * _SCALE)), mask)


def _draw_card(draw: Canvas, facts: AdapterFacts, top: float, hue: str) -> None:
    left, right = _MARGIN, _WIDTH - _MARGIN
    draw.box((left, top, right, top + _CARD_HEIGHT), _CARD, radius=14)
    draw.box((left, top + 34, left + 6, top + 74), hue, radius=3)
    draw.text((left + _PAD, top + 32), facts.name, 30, _INK, width=_FACTS_WIDTH)
    y = top + 92
    for label, value in facts.rows():
        draw.text((left + _PAD, y), label, 17, _SOFT)
        draw.text((left + _PAD + 112, y), value, 17, _INK, width=_FACTS_WIDTH - 112)
        y += 29
    side, between = 72, 10
    y = top + _CARD_HEIGHT - _PAD - side
    if facts.pictures:
        draw.text((left + _PAD, y - 26), "learned from pictures like these", 15, _SOFT)
    for index, picture in enumerate(facts.pictures[: (_FACTS_WIDTH + between) // (side + between)]):
        draw.paste(picture, (left + _PAD + index * (side + between), y), side)
    chart = (left + _PAD + _FACTS_WIDTH + 76, top + 74, right - _PAD, top + _CARD_HEIGHT - 64)
    _draw_losses(draw, facts.losses, chart, hue)


def _draw_losses(
    draw: Canvas, losses: Sequence[tuple[int, float]], box: tuple[float, float, float, float], hue: str
) -> None:
    left, top, right, bottom = box
    draw.text((left, top - 42), "loss", 17, _INK)
    draw.text((left + 44, top - 42), "each step, and smoothed", 17, _SOFT)
    if not losses:
        draw.text(((left + right) / 2, (top + bottom) / 2), "no steps recorded", 17, _SOFT, anchor="mm")
        return
    curve = smooth(losses)
    # The highest spikes would flatten everything else: the axis ends a little above the 98th percentile.
    ordered = sorted(loss for _, loss in losses)
    ceiling = max(ordered[int(0.98 * (len(ordered) - 1))], max(loss for _, loss in curve)) * 1.08 or 1.0
    last = losses[-1][0]

    def place(step: float, loss: float) -> tuple[float, float]:
        x = left + (right - left) * step / last
        return x, max(top, bottom - (bottom - top) * loss / ceiling)

    for tick in _ticks(ceiling):
        y = place(0, tick)[1]
        draw.line([(left, y), (right, y)], _RULE, 1)
        draw.text((left - 10, y), f"{tick:g}", 15, _SOFT, anchor="rm")
    for tick in _ticks(last):
        draw.text((place(tick, 0)[0], bottom + 12), f"{tick:g}", 15, _SOFT, anchor="ma")
    draw.text(((left + right) / 2, bottom + 34), "step", 15, _SOFT, anchor="ma")
    draw.line([place(step, loss) for step, loss in losses], _blend(hue, _CARD, 0.72), 1)
    draw.line([place(step, loss) for step, loss in curve], hue, 3)
    x, y = place(*curve[-1])
    draw.box((x - 5, y - 5, x + 5, y + 5), hue, radius=5)
    draw.text((right, top - 42), f"{curve[-1][1]:.3f} at the end", 17, hue, anchor="ra")


def _ticks(top: float, wanted: int = 5) -> list[float]:
    """Round numbers 0, d, 2d, ... up to `top`, d of 1, 2 or 5 times a power of ten."""
    unit = 10.0 ** _exponent(top / wanted)
    distance = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= top / wanted)
    return [round(index * distance, 10) for index in range(int(top / distance + 1e-9) + 1)]


def _exponent(value: float) -> int:
    return int(f"{value:e}".split("e")[1])


def _blend(colour: str, ground: str, share: float) -> str:
    """`share` of `ground` mixed into `colour`, both "#rrggbb"."""
    channels = [(int(colour[i : i + 2], 16), int(ground[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(c * (1 - share) + g * share):02x}" for c, g in channels)
