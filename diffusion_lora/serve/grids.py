"""A grid asked for over HTTP: its cells are pictures like all others, and behind the last of them comes the sheet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from diffusion_lora.adopted import lora_path
from diffusion_lora.errors import PromptError
from diffusion_lora.generate.axes import parse_axis, with_baseline
from diffusion_lora.generate.axis import cells_of
from diffusion_lora.generate.grid import sheet_of
from diffusion_lora.generate.picture import save_png
from diffusion_lora.generate.request import LoraUse, Request
from diffusion_lora.generate.wire import SheetDrawn
from diffusion_lora.images import open_image
from diffusion_lora.serve.asked import MAX_REQUESTS, Grid
from diffusion_lora.serve.drawing import Finish
from diffusion_lora.workspace import Workspace

SHEETS = "sheets"


def planned(asked: Grid, workspace: Workspace) -> tuple[list[Request], Finish]:
    """The cells' requests, row by row, and what makes the sheet of their files. Raises PromptError."""

    def found(use: LoraUse) -> LoraUse:
        return replace(use, path=lora_path(workspace, use.path))

    rows, columns = parse_axis(asked.rows, found), parse_axis(asked.columns, found)
    columns = with_baseline(columns) if asked.baseline else columns
    count = len(rows.changes) * len(columns.changes)
    if count > MAX_REQUESTS:
        raise PromptError(f"the grid has {count} pictures; at most {MAX_REQUESTS} are drawn")

    def finish(paths: Mapping[int, Path]) -> SheetDrawn:
        images = [open_image(paths[place]) for place in range(count)]
        sheet = sheet_of(images, rows, columns, asked.title, f"seed {asked.request.seed}", asked.theme)
        folder = workspace.pictures / asked.owner / SHEETS
        return SheetDrawn(workspace.relative(save_png(folder, sheet, "sheet")))

    return cells_of(asked.request, rows, columns), finish
