"""A run as one picture, to lie beside its page: figures, the course of the loss, last previews, strength, spectrum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from diffusion_lora.errors import UserError
from diffusion_lora.faces.charts import ticks
from diffusion_lora.faces.page import Canvas, smooth
from diffusion_lora.faces.run_report import Learned, events_by_kind, losses_of, run_facts, thinned
from diffusion_lora.faces.spectrum_plot import draw_spectrum
from diffusion_lora.images import open_image
from diffusion_lora.run import Run

_PAPER, _CARD, _INK, _SOFT, _RULE = "#f4f1ea", "#fffefb", "#26232a", "#7d7783", "#e4dfd5"
_FIRST, _SECOND, _THIRD, _FAINT = "#2e6f8e", "#c2502e", "#5b7f3a", "#b9cdd6"
_WIDTH, _MARGIN, _GAP, _PAD = 1400, 48, 24, 28
_HEAD, _CHARTS, _PICTURES = 236, 420, 236
_SCALE = 2

Course = Sequence[tuple[float, float]]


def draw_run(run: Run, learned: Learned | None = None) -> Image.Image:
    """RGB, 1400 pixels wide. Raises RunError for a run that has not taken a step."""
    of = events_by_kind(run)
    shown = _last_pictures(run, of.get("preview", []))
    spectrum = None if learned is None else _spectrum(run, learned)
    height = _HEAD + _CHARTS + _MARGIN + (_PICTURES + _GAP if shown else 0)
    height += spectrum.height + _GAP if spectrum is not None else 0
    page = Image.new("RGB", (_WIDTH * _SCALE, height * _SCALE), _PAPER)
    canvas = Canvas(page)
    _draw_head(canvas, run, of)
    strengths = of.get("calibration", [])[-1:]
    middle = _WIDTH - _MARGIN - (460 + _GAP if strengths else 0)
    _draw_losses(canvas, of, (_MARGIN, _HEAD, middle, _HEAD + _CHARTS))
    for event in strengths:
        _draw_strengths(canvas, event, (_WIDTH - _MARGIN - 460, _HEAD, _WIDTH - _MARGIN, _HEAD + _CHARTS))
    y = _HEAD + _CHARTS + _GAP
    if shown:
        canvas.box((_MARGIN, y, _WIDTH - _MARGIN, y + _PICTURES), _CARD, radius=14)
        canvas.text((_MARGIN + _PAD, y + 18), f"previews after step {of['preview'][-1]['step']}", 17, _INK)
        side = _PICTURES - 76
        for place, picture in enumerate(shown):
            canvas.paste(picture, (_MARGIN + _PAD + place * (side + 14), y + 50), side)
        y += _PICTURES + _GAP
    sheet = page.resize((_WIDTH, height), Image.Resampling.LANCZOS)
    if spectrum is not None:
        sheet.paste(spectrum, (0, y - _GAP))
    return sheet


def _draw_head(canvas: Canvas, run: Run, of: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    tiles, line = run_facts(run, of)
    canvas.text((_MARGIN, 34), run.config.output.name, 38, _INK, width=_WIDTH - 2 * _MARGIN)
    canvas.text((_MARGIN, 86), line, 17, _SOFT, width=_WIDTH - 2 * _MARGIN)
    wide = (_WIDTH - 2 * _MARGIN - (len(tiles) - 1) * 14) / len(tiles)
    for place, (value, what) in enumerate(tiles):
        x = _MARGIN + place * (wide + 14)
        canvas.box((x, 126, x + wide, 210), _CARD, radius=12)
        canvas.text((x + 18, 138), value, 26, _INK, width=wide - 30)
        canvas.text((x + 18, 176), what, 15, _SOFT, width=wide - 30)


def _draw_losses(
    canvas: Canvas, of: Mapping[str, Sequence[Mapping[str, Any]]], box: tuple[float, float, float, float]
) -> None:
    training, held_out = losses_of(of["step"]), losses_of(of.get("validation", []))
    courses: list[tuple[str, Course, str, float]] = [
        ("each step", thinned(training), _FAINT, 1.2),
        ("smoothed", thinned(smooth(training)), _FIRST, 2.6),
        ("on held-out pictures", held_out, _SECOND, 2.6),
    ]
    ordered = sorted(loss for _, loss in training)
    firm = [loss for _, course, _, _ in courses[1:] for _, loss in course]
    high = max(*firm, ordered[int(0.98 * (len(ordered) - 1))])
    low = min(*firm, ordered[int(0.02 * (len(ordered) - 1))])
    _draw_courses(canvas, "loss", courses, box, (low, high))


def _draw_strengths(canvas: Canvas, event: Mapping[str, Any], box: tuple[float, float, float, float]) -> None:
    looks = [[float(number) for number in look] for look in event["looks"]]
    courses: list[tuple[str, Course, str, float]] = []
    for name, values, hue in (
        ("effect", [look[1] for look in looks], _FIRST),
        ("content", [look[2] for look in looks], _THIRD),
        ("both", [max(0.0, look[1]) * max(0.0, look[2]) for look in looks], _SECOND),
    ):
        greatest = max(map(abs, values)) or 1.0
        course = [(look[0], value / greatest) for look, value in zip(looks, values, strict=True)]
        courses.append((name, course, hue, 2.4))
    lowest = min(value for _, course, _, _ in courses for _, value in course)
    _draw_courses(canvas, "strength", courses, box, (min(lowest, 0.0), 1.0), mark=float(event["strength"]))


def _draw_courses(
    canvas: Canvas,
    title: str,
    courses: Sequence[tuple[str, Course, str, float]],
    box: tuple[float, float, float, float],
    span: tuple[float, float],
    mark: float | None = None,
) -> None:
    canvas.box(box, _CARD, radius=14)
    left, top, right, bottom = box[0] + 92, box[1] + 66, box[2] - _PAD, box[3] - 52
    heights = ticks(*span, 4)
    low, high = heights[0], heights[-1]
    across = [x for _, course, _, _ in courses for x, _ in course]
    first, last = min(across), max(across)

    def place(x: float, y: float) -> tuple[float, float]:
        share = min(max((y - low) / ((high - low) or 1.0), 0.0), 1.0)
        return left + (right - left) * (x - first) / ((last - first) or 1.0), bottom - (bottom - top) * share

    canvas.text((box[0] + _PAD, box[1] + 20), title, 17, _INK)
    legend = box[0] + _PAD + 92
    for name, course, hue, _ in courses:
        if course:
            canvas.line([(legend, box[1] + 31), (legend + 20, box[1] + 31)], hue, 3)
            canvas.text((legend + 27, box[1] + 22), name, 15, _SOFT)
            legend += 52 + 8 * len(name)
    for value in heights:
        y = place(first, value)[1]
        canvas.line([(left, y), (right, y)], _RULE, 1)
        canvas.text((left - 10, y), f"{value:g}", 15, _SOFT, anchor="rm")
    for value in ticks(first, last, 5):
        if first <= value <= last:
            canvas.text((place(value, low)[0], bottom + 12), f"{value:g}", 15, _SOFT, anchor="ma")
    if mark is not None:
        canvas.line([place(mark, low), place(mark, high)], _SOFT, 1.5)
        canvas.text((place(mark, high)[0] + 6, top - 4), f"{mark:.2f}", 15, _INK)
    for _, course, hue, width in courses:
        if len(course) > 1:
            canvas.line([place(x, y) for x, y in course], hue, width)


def _last_pictures(run: Run, previews: Sequence[Mapping[str, Any]]) -> list[Image.Image]:
    found: list[Image.Image] = []
    for name in previews[-1]["paths"] if previews else ():
        try:
            found.append(open_image(run.folder / Path(name)))
        except UserError:  # it was tidied away
            continue
    return found[: (_WIDTH - 2 * (_MARGIN + _PAD)) // (_PICTURES - 62)]


def _spectrum(run: Run, learned: Learned) -> Image.Image:
    advice = learned.advice
    told = (
        f"rank {advice.choice.rank} for all layers keeps {100 * advice.share:g} % of the energy; trained at rank "
        f"{run.config.lora.rank}; norm {learned.spectrum.norm:.4g} at strength 1"
    )
    return draw_spectrum("spectrum", told, learned.spectrum, learned.shares)
