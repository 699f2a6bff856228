"""A grid's cells are the pictures their requests give alone, and its sheet is laid out evenly."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_lora.errors import PromptError
from diffusion_lora.faces.sheet_page import sheet_page
from diffusion_lora.generate.axes import parse_axis, with_baseline
from diffusion_lora.generate.axis import Axis, lora_axis, prompt_axis, seed_axis, strength_axis
from diffusion_lora.generate.engine import Engine
from diffusion_lora.generate.grid import Sheet, grid
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


def labels(axis: Axis) -> tuple[str, ...]:
    return axis.labels


def test_axes_are_what_is_written(style: LoraUse) -> None:
    request = Request("a cat, a dog", loras=(style,))
    assert [c(request).steps for c in parse_axis("steps=10, 20").changes] == [10, 20]
    assert [c(request).sampler for c in parse_axis("sampler=euler,lcm").changes] == ["euler", "lcm"]
    assert [c(request).loras[0].strength for c in parse_axis("strength:style=0,-0.5").changes] == [0.0, -0.5]
    assert [c(request).prompt for c in parse_axis(r"replace=a cat\, a,one,the").changes] == [
        "a cat, a dog", "one dog", "the dog",
    ]  # fmt: skip
    (block,) = parse_axis("block:style=MID").changes
    assert dict(block(request).loras[0].blocks) == {"down": 0.0, "mid": 0.0, "up": 0.0, "BASE": 0.0, "MID": 1.0}
    based = with_baseline(parse_axis("strength:style=0.5,1"))
    assert labels(based) == ("no LoRA", "0.5", "1")
    assert based.changes[0](request).loras == ()
    for wrong in ("steps", "steps=", "steps=many", "colour=red", "strength=1", "size=64"):
        with pytest.raises(PromptError):
            parse_axis(wrong)
    for wrong in ("strength:hero=1", "replace=house,cat"):
        with pytest.raises(PromptError):
            parse_axis(wrong).changes[0](request)


def test_a_grid_that_was_stopped_goes_on(engine: Engine, style: LoraUse, tmp_path: Path) -> None:
    """Pictures that are there and are the same request's are taken; a changed or damaged one is drawn anew."""
    request = Request("a cat", seed=4, steps=2, width=64, height=64, loras=(style,))
    axes = {"rows": seed_axis((1, 2)), "columns": parse_axis("strength:style=0,1")}
    drawn: list[int] = []

    def draw() -> Sheet:
        drawn.clear()
        return grid(engine, request, **axes, progress=lambda _, total: drawn.append(total), cells=tmp_path)

    first = draw()
    assert drawn == [2, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["01-01.png", "01-02.png", "02-01.png", "02-02.png"]
    again = draw()
    assert drawn == []
    assert again.image.tobytes() == first.image.tobytes()
    (tmp_path / "01-02.png").write_bytes(b"half")
    (tmp_path / "02-01.png").unlink()
    assert draw().image.tobytes() == first.image.tobytes()
    assert drawn == [2, 2], "two of the four, in one batch"


def test_the_page_of_a_sheet_escapes_what_people_wrote() -> None:
    page = sheet_page([[("01-01.png", 'a "cat" <b>')]], row_labels=["<script>"], column_labels=["&"], title="<x>")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert 'title="a &quot;cat&quot; &lt;b&gt;"' in page


def test_an_axis_of_a_run_s_checkpoints(tmp_path: Path) -> None:
    """Which step of a training was best could only be seen file by file."""
    kept = tmp_path / "runs" / "ink" / "checkpoints"
    kept.mkdir(parents=True)
    for step in (20, 40):
        (kept / f"adapter-step-{step:08d}.safetensors").touch()
    for path in (tmp_path / "runs" / "ink" / "adapter.safetensors", tmp_path / "loras" / "ink.safetensors"):
        request = Request("a cat", loras=(LoraUse("ink", path, 0.7, sha="0" * 12),))
        axis = parse_axis("checkpoint:ink=20,40,end")
        uses = [change(request).loras[0] for change in axis.changes]
        assert [use.path.name for use in uses[:2]] == ["adapter-step-00000020.safetensors",
                                                      "adapter-step-00000040.safetensors"]  # fmt: skip
        assert uses[2] == request.loras[0]
        assert {use.strength for use in uses} == {0.7}
        with pytest.raises(PromptError, match="no adapter of step 30; those of these steps are: 20, 40"):
            parse_axis("checkpoint:ink=30").changes[0](request)
