"""Lay pictures out as one labelled sheet: a card with rows and columns, their labels, a title.

Only layout: what the cells show and what the labels say is the caller's. Fonts are Pillow's own, or one of the system's
for letters that it lacks. No torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_MARGIN, _PAD, _GAP = 48, 32, 12
_CELL_PX = (192, 512)  # small pictures are shown larger, smoothly; large ones smaller
_RADIUS, _CELL_RADIUS = 18, 10
_TITLE, _SUBTITLE, _LABEL, _AXIS = 34, 18, 19, 16
_LEADING = 1.3
_ROW_LABELS_PX = 230
_MAX_LINES = 5
_SMOOTHING = 4  # shapes are drawn larger and shrunk: Pillow's own edges are jagged
_OTHER_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf")


@dataclass(frozen=True)
class Theme:
    """Colours of a sheet."""

    paper: str
    card: str
    ink: str
    soft: str
    rule: str


THEMES = {
    "light": Theme(paper="#f4f1ea", card="#fffefb", ink="#26232a", soft="#7d7783", rule="#e4dfd5"),
    "dark": Theme(paper="#17181b", card="#202226", ink="#eceaf0", soft="#96939e", rule="#34363c"),
}


def draw_sheet(
    cells: Sequence[Sequence[Image.Image]],
    *,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    row_title: str = "",
    column_title: str = "",
    title: str = "",
    subtitle: str = "",
    theme: Theme = THEMES["light"],
) -> Image.Image:
    """The sheet of `cells[row][column]`; every cell gets the size of the first. Labels wrap to the room they have."""
    text = _Type([*row_labels, *column_labels, row_title, column_title, title, subtitle])
    width, height = _cell_size(cells[0][0])
    rows = [text.wrapped(label, _LABEL, _ROW_LABELS_PX) for label in row_labels]
    columns = [text.wrapped(label, _LABEL, width) for label in column_labels]
    subtitles = text.wrapped(subtitle, _SUBTITLE, max(900, len(columns) * width))
    label_px = round(max((text.length(line, _LABEL) for lines in rows for line in lines), default=0))
    label_px = max(label_px, round(min(text.length(row_title, _AXIS), _ROW_LABELS_PX)))
    left = _MARGIN + _PAD + label_px + (2 * _GAP if label_px else 0)

    title_px = (round(_TITLE * _LEADING) if title else 0) + _lines_px(subtitles, _SUBTITLE)
    card_top = _MARGIN + (title_px + _PAD if title_px else 0)
    axis_px = round(_AXIS * 1.8) if column_title or row_title else 0
    columns_px = max((_lines_px(lines, _LABEL) for lines in columns), default=0)
    top = card_top + _PAD + axis_px + columns_px + _GAP
    right = left + len(columns) * (width + _GAP) - _GAP
    bottom = top + len(rows) * (height + _GAP) - _GAP
    head_px = max([text.length(title, _TITLE), *(text.length(line, _SUBTITLE) for line in subtitles)])
    size = (max(right + _PAD, _MARGIN + round(head_px)) + _MARGIN, bottom + _PAD + _MARGIN)

    sheet = Image.new("RGB", size, theme.paper)
    _paste_rounded(sheet, Image.new("RGB", (size[0] - 2 * _MARGIN, bottom + _PAD - card_top), theme.card),
                   (_MARGIN, card_top), _RADIUS)  # fmt: skip
    draw = ImageDraw.Draw(sheet)
    if title:
        text.write(draw, [title], (_MARGIN, _MARGIN), _TITLE, theme.ink)
    text.write(draw, subtitles, (_MARGIN, _MARGIN + title_px - _lines_px(subtitles, _SUBTITLE)), _SUBTITLE, theme.soft)
    if row_title:
        text.write(draw, [row_title], (_MARGIN + _PAD, top - _GAP - round(_LABEL * _LEADING)), _AXIS, theme.soft)
    if column_title:
        text.write(draw, [column_title], (left, card_top + _PAD), _AXIS, theme.soft)
        rule_y = card_top + _PAD + round(_AXIS * _LEADING / 2)
        draw.line((left + round(text.length(column_title, _AXIS)) + _GAP, rule_y, right, rule_y), theme.rule)
    for column, lines in enumerate(columns):
        centre = left + column * (width + _GAP) + width // 2
        text.write(draw, lines, (centre, top - _GAP - _lines_px(lines, _LABEL)), _LABEL, theme.ink, centred=True)
    for row, (lines, images) in enumerate(zip(rows, cells, strict=True)):
        y = top + row * (height + _GAP)
        text.write(draw, lines, (_MARGIN + _PAD, y + (height - _lines_px(lines, _LABEL)) // 2), _LABEL, theme.ink)
        for column, image in enumerate(images):
            shown = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
            _paste_rounded(sheet, shown, (left + column * (width + _GAP), y), _CELL_RADIUS)
    return sheet


def _cell_size(image: Image.Image) -> tuple[int, int]:
    long, short = max(image.size), min(image.size)
    scale = 1.0
    if long > _CELL_PX[1]:
        scale = _CELL_PX[1] / long
    elif short < _CELL_PX[0]:
        scale = _CELL_PX[0] / short
    return round(image.width * scale), round(image.height * scale)


class _Type:
    """The font of one sheet: Pillow's own, which has few letters beyond ASCII, or else one of the system's."""

    def __init__(self, texts: Sequence[str]) -> None:
        plain = all(ord(letter) < 127 or letter in "…·“”" for text in texts for letter in text)
        self._font = _own_font if plain else _font_with_more_letters

    def length(self, text: str, size: int) -> float:
        """Width in px."""
        return self._font(size).getlength(text)

    def wrapped(self, text: str, size: int, width: int) -> list[str]:
        """The text in lines of at most `width` px; what five lines, or a line, cannot hold ends in an ellipsis."""
        lines: list[str] = []
        for word in text.split():
            if lines and self.length(f"{lines[-1]} {word}", size) <= width:
                lines[-1] += f" {word}"
            else:
                lines.append(word)
        if len(lines) > _MAX_LINES:
            lines = [*lines[: _MAX_LINES - 1], lines[_MAX_LINES - 1] + " …"]
        return [self._clipped(line, size, width) for line in lines]

    def write(
        self,
        draw: ImageDraw.ImageDraw,
        lines: Sequence[str],
        at: tuple[int, int],
        size: int,
        fill: str,
        *,
        centred: bool = False,
    ) -> None:
        x, y = at
        for number, line in enumerate(lines):
            place = (x - (self.length(line, size) / 2 if centred else 0), y + number * size * _LEADING)
            draw.text(place, line, fill, self._font(size))

    def _clipped(self, line: str, size: int, width: int) -> str:
        if self.length(line, size) <= width:
            return line
        while line and self.length(line + "…", size) > width:
            line = line[:-1]
        return line.rstrip() + "…"


def _lines_px(lines: Sequence[str], size: int) -> int:
    return round(len(lines) * size * _LEADING)


@cache
def _own_font(size: int) -> Font:
    return ImageFont.load_default(size)


@cache
def _font_with_more_letters(size: int) -> Font:
    for name in _OTHER_FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return _own_font(size)


def _paste_rounded(sheet: Image.Image, image: Image.Image, at: tuple[int, int], radius: int) -> None:
    sheet.paste(image, at, _rounded(image.size, radius))


@cache
def _rounded(size: tuple[int, int], radius: int) -> Image.Image:
    large = (size[0] * _SMOOTHING, size[1] * _SMOOTHING)
    mask = Image.new("L", large)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, large[0] - 1, large[1] - 1), radius * _SMOOTHING, 255)
    return mask.resize(size, Image.Resampling.LANCZOS)
