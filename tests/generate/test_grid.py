"""A grid's cells are the pictures their requests give alone, and its sheet is laid out evenly."""

import numpy as np
import pytest
from PIL import Image

from diffusion_lora.errors import PromptError
from diffusion_lora.generate.engine import Engine
from diffusion_lora.generate.grid import Axis, grid, lora_axis, prompt_axis, seed_axis, strength_axis
from diffusion_lora.generate.request import LoraUse, Request
from diffusion_lora.generate.sheet import THEMES, draw_sheet


def test_every_cell_is_its_request_alone_and_all_are_one_batch(engine: Engine, style: LoraUse, hero: LoraUse) -> None:
    evaluations: list[int] = []
    sheet = grid(
        engine,
        Request("a cat", seed=4, steps=3),
        rows=strength_axis(style, (0, 1)),
        columns=strength_axis(hero, (0, 0.5, 1)),
        progress=lambda step, steps: evaluations.append(steps),
    )
    assert evaluations == [3, 3, 3], "six cells, one batch"
    assert [[tuple(use.strength for use in cell.request.loras) for cell in row] for row in sheet.pictures] == [
        [(0, 0), (0, 0.5), (0, 1)],
        [(1, 0), (1, 0.5), (1, 1)],
    ]
    (alone,) = engine.draw([Request("a cat", seed=4, steps=3, loras=(style.at(1.0), hero.at(0.5)))])
    difference = np.asarray(sheet.pictures[1][1].image).astype(int) - np.asarray(alone.image)
    assert np.abs(difference).max() <= 1


def test_axes_change_what_they_name() -> None:
    style, hero = LoraUse("style", "style.safetensors"), LoraUse("hero", "hero.safetensors", 0.3)  # type: ignore[arg-type]
    request = Request("a cat", loras=(hero, style))
    assert [c(request).prompt for c in prompt_axis(("a", "b")).changes] == ["a", "b"]
    assert [c(request).seed for c in seed_axis((3, 4)).changes] == [3, 4]
    swept = [c(request).loras for c in strength_axis(style, (0.5,)).changes]
    assert swept == [(hero, style.at(0.5))], "the swept file stands once in the stack"
    stacks = lora_axis(((), (style, hero)))
    assert stacks.labels == ("none", "style 1 + hero 0.3")
    with pytest.raises(PromptError, match="no values"):
        Axis("seed", (), ())


def test_a_theme_that_is_none_is_told(engine: Engine) -> None:
    with pytest.raises(PromptError, match="theme 'pink' is unknown; say light or dark"):
        grid(engine, Request(), rows=seed_axis((1,)), columns=seed_axis((1,)), theme="pink")


@pytest.mark.parametrize("theme", THEMES.values())
@pytest.mark.parametrize(
    "title", ["", "One style", "A title that is a good deal wider than two small pictures beside each other"]
)
def test_a_sheet_has_even_margins_and_all_cells(theme: object, title: str) -> None:
    cells = [[Image.new("RGB", (128, 128), (250, 10, 10 * column)) for column in range(2)] for _ in range(3)]
    sheet = draw_sheet(
        cells, row_labels=["a red cat on a sky background", "b", "ünïcode 猫"], column_labels=["0", "1"],
        row_title="prompt", column_title="strength", title=title, subtitle="pocket" if title else "", theme=theme,
    )  # fmt: skip
    x = np.asarray(sheet).astype(int)
    paper = x[0, 0]
    inked = np.argwhere((x != paper).any(-1))
    (top, left), (bottom, right) = inked.min(0), inked.max(0)
    assert left == 48
    assert sheet.width - 1 - right == 48
    assert sheet.height - 1 - bottom == 48
    assert 48 <= top <= 60, "a title's letters stand a little below its line's top"
    red = (x[..., 0] == 250) & (x[..., 1] == 10)
    assert 0.97 < red.sum() / (6 * 192 * 192) <= 1, "six cells of 192 px, their corners rounded"


def test_large_pictures_are_shown_smaller() -> None:
    sheet = draw_sheet([[Image.new("RGB", (1024, 512), "red")]], row_labels=[""], column_labels=[""])
    assert sheet.size == (512 + 2 * (48 + 32), 256 + 2 * (48 + 32) + 12)
