"""Grids of requests: what two axes (`axis`) make of one, drawn as mixed batches, shown as one sheet.

    sheet = grid(engine, Request("a cat", seed=1), rows=strength_axis(style, (0, 0.5, 1)), columns=seed_axis((1, 2)))
    sheet.image.save("sheet.png")

Every cell is a request of its own; those that can share a batch do, each row of the batch with its own gates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from diffusion_lora.errors import PromptError, UserError
from diffusion_lora.generate.axis import Axis, cells_of
from diffusion_lora.generate.picture import Picture, replace_png
from diffusion_lora.generate.reading import read_picture
from diffusion_lora.generate.request import Request
from diffusion_lora.generate.sheet import THEMES, draw_sheet
from diffusion_lora.images import open_image

if TYPE_CHECKING:
    from diffusion_lora.generate.engine import Engine

@dataclass(frozen=True, eq=False)
class Sheet:
    """A labelled sheet and the pictures on it, `pictures[row][column]`."""

    image: Image.Image
    pictures: tuple[tuple[Picture, ...], ...]


def grid(
    engine: "Engine",
    request: Request,
    *,
    rows: Axis,
    columns: Axis,
    title: str = "",
    subtitle: str = "",
    theme: str = "light",
    progress: Callable[[int, int], None] | None = None,
    batch_size: int | None = None,
    cells: Path | None = None,
) -> Sheet:
    """Draw `request` changed by every pair of a row and a column (the row's change first).

    `title` and `subtitle` stand above; `theme` is light or dark. In the folder `cells` every picture is kept as it is
    drawn, and what lies there from an earlier call of the same grid is not drawn again. Errors as in `Engine.stream`.
    """
    _check_theme(theme)
    width = len(columns.changes)
    requests = cells_of(request, rows, columns)
    paths = [None if cells is None else cells / cell_name(*divmod(place, width)) for place in range(len(requests))]
    kept = {
        place: picture
        for place, (path, wanted) in enumerate(zip(paths, requests, strict=True))
        if path is not None and (picture := _kept(path, engine.resolved(wanted)))
    }
    missing = [place for place in range(len(requests)) if place not in kept]
    for index, picture in engine.stream(
        [requests[place] for place in missing], progress=progress, batch_size=batch_size
    ):
        place = missing[index]
        kept[place] = picture
        if (path := paths[place]) is not None:
            replace_png(path, picture)
    drawn = [kept[place] for place in range(len(requests))]
    pictures = tuple(tuple(drawn[start : start + width]) for start in range(0, len(drawn), width))
    image = sheet_of([picture.image for picture in drawn], rows, columns, title, subtitle, theme)
    return Sheet(image, pictures)


def sheet_of(
    images: Sequence[Image.Image], rows: Axis, columns: Axis, title: str = "", subtitle: str = "", theme: str = "light"
) -> Image.Image:
    """The labelled sheet of a grid's pictures, given row by row. Raises PromptError for an unknown theme."""
    _check_theme(theme)
    width = len(columns.changes)
    return draw_sheet(
        [images[start : start + width] for start in range(0, len(images), width)],
        row_labels=rows.labels,
        column_labels=columns.labels,
        row_title=rows.title,
        column_title=columns.title,
        title=title,
        subtitle=subtitle,
        theme=THEMES[theme],
    )


def _check_theme(theme: str) -> None:
    if theme not in THEMES:
        raise PromptError(f"the theme {theme!r} is unknown; say {' or '.join(THEMES)}")


def cell_name(row: int, column: int) -> str:
    """The file of a cell in the folder of a grid."""
    return f"{row + 1:02d}-{column + 1:02d}.png"


def _kept(path: Path, request: Request) -> Picture | None:
    """The picture of an earlier call, if it is the one that this request draws."""
    if not path.is_file():
        return None
    try:
        reading = read_picture(path)
        image = open_image(path)
    except UserError:
        return None  # half a file, or somebody else's: it is drawn anew
    if reading.request != request:
        return None
    import torch

    return Picture(image, request, torch.empty(0), company=reading.company)
