"""A grid of pictures as values: two axes from the browser and what they make of form and desk. No Gradio, no torch.

The axes are the library's (`generate.axes`), which also draws the sheet; what is on the desk is `desk`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from diffusion_lora.errors import PromptError
from diffusion_lora.generate.axes import parse_axis
from diffusion_lora.generate.axis import Axis, cells_of
from diffusion_lora.generate.request import Request
from diffusion_lora.workspace import Workspace
from webui.desk import MAX_PICTURES, Channel, Form, request_of, sounding
from webui.sources import Source

MAX_AXIS_CHARS = 2000


@dataclass(frozen=True)
class Grid:
    """Two axes as the library reads them (`generate.axes`), `strength:NAME=0,0.5,1` for one."""

    rows: str
    columns: str
    theme: str = "light"


@dataclass(frozen=True)
class Table:
    """A grid made ready: the request that its axes change, and all that they make of it, row by row."""

    asked: Grid
    request: Request
    requests: tuple[Request, ...]
    rows: Axis
    columns: Axis


def grid_of(data: Mapping[str, Any]) -> Grid:
    """The grid that the browser asks for. Raises PromptError."""
    rows, columns = (str(data.get(side) or "").strip() for side in ("rows", "columns"))
    if max(len(rows), len(columns)) > MAX_AXIS_CHARS:
        raise PromptError(f"an axis of the grid is longer than {MAX_AXIS_CHARS} characters")
    return Grid(rows, columns, "dark" if data.get("theme") == "dark" else "light")


def table_of(form: Form, channels: Iterable[Channel], grid: Grid, workspace: Workspace) -> Table:
    """What a grid draws. A channel that an axis names is there, muted or not, and beside those that are soloed.

    Raises PromptError and AdapterFileError, in words.
    """
    rows, columns = parse_axis(grid.rows), parse_axis(grid.columns)
    count = len(rows.changes) * len(columns.changes)
    if count > MAX_PICTURES:
        raise PromptError(f"the grid has {count} pictures: give axes that make at most {MAX_PICTURES}")
    every = tuple(channels)
    soloed = any(channel.solo for channel in every)
    named = {axis.partition("=")[0].partition(":")[2].strip() for axis in (grid.rows, grid.columns)}
    heard = [replace(one, muted=False, solo=soloed) if one.name in named else one for one in every]
    sounds = sounding(heard)
    request = request_of(form, [one for one in heard if one in sounds or one.name in named], workspace)
    return Table(grid, request, tuple(cells_of(request, rows, columns)), rows, columns)


def begun(table: Table, source: Source) -> Table:
    """The same table of pictures that begin with this."""
    (request,) = source.of([table.request])
    return replace(table, request=request, requests=tuple(source.of(table.requests)))
