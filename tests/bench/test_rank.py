"""docs/rank.md: made from runs by one command, and nothing in it that is not in the figures."""

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from bench.rank.__main__ import FIGURES, figures, write_page
from bench.rank.page import page
from bench.rank.runs import Plan

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.slow
def test_the_page_is_made_from_runs(tmp_path: Path) -> None:
    """Wrong: a part that no longer runs, a figure that is not what it says, a plot that is no SVG."""
    small = ("dataset.size_px=64", "train.batch_size=1", "preview.steps=1", 'preview.prompts=["a"]')
    plan = Plan((1, 2), 1, rates=(8e-3, 2e-3), alphas=(4.0, 16.0), coupled_steps=1, timed_steps=4, prompts=1,
                narrow_ranks=(1, 2), drawings=1, more=small)  # fmt: skip
    found = figures(tmp_path, plan)
    assert [row["rank"] for row in found["ranks"]["rows"]] == [1, 2]
    assert [row["on_the_diagonal"] for row in found["coupled"]["rows"]] == [True, False, False, True]
    assert found["coupled"]["rows"][3]["likeness"] == pytest.approx(1, abs=1e-4)
    full, *narrow = found["spectrum"]["rows"]
    assert full["curve"][2] < 0.99, "the whole of a weight changes in many directions"
    assert full["curve"][-1] == pytest.approx(1)
    assert [row["curve"][row["rank"]] for row in narrow] == pytest.approx([1, 1], abs=1e-6)
    of_the_base = found["held_out"]["of the base"]
    losses = [row["held_out"] for row in (*found["ranks"]["rows"], *found["coupled"]["rows"], full, *narrow)]
    assert len({of_the_base, *losses}) == len(losses) + 1, "every change is measured, and none of them is the base"
    for what in ("all weights", "attention whole", "LoRA, rank 16"):
        whole, halved = (found["memory"][f"pocket, {what}, {bits}-bit Adam"] for bits in (32, 8))
        assert whole["moments"] == 2 * whole["weights"]
        assert 2 / 8 < halved["moments"] / whole["moments"] < 2.6 / 8
    write_page(found, tmp_path / "docs")
    for plot in (tmp_path / "docs" / "rank").glob("*.svg"):
        ElementTree.parse(plot)


def test_the_page_that_is_shipped_is_that_of_its_figures() -> None:
    """Wrong: a figure mended by hand, or a page that was not written again."""
    for name, text in page(json.loads(FIGURES.read_text(encoding="utf-8"))).items():
        assert (DOCS / name).read_text(encoding="utf-8") == text, name
    shown = {f"rank/{file.name}" for file in (DOCS / "rank").glob("*.svg")}
    assert shown == set(page(json.loads(FIGURES.read_text(encoding="utf-8")))) - {"rank.md"}, "a plot is left over"


def test_every_figure_in_a_table_is_in_the_committed_figures() -> None:
    """Wrong: a number that was typed into a table, or one that stands beside another run's name."""
    facts = json.loads(FIGURES.read_text(encoding="utf-8"))
    curves = facts["spectrum"]["rows"]
    known = {
        *(f"{row[key]:{form}}" for part in ("ranks", "coupled", "spectrum") for row in facts[part]["rows"]
          for key, form in (("loss", ".4f"), ("held_out", ".4f"), ("change", ".1f"), ("change", ".2f"))),
        *(f"{row['likeness']:.2f}" for row in facts["coupled"]["rows"]),
        *(f"{row[key]:g}" for row in facts["coupled"]["rows"] for key in ("alpha", "lr")),
        *(f"{row['alpha'] / facts['coupled']['middle']['rank'] * row['lr']:g}" for row in facts["coupled"]["rows"]),
        *(f"{row['bytes'] / 1e6:.2f}" for row in facts["ranks"]["rows"]),
        *(f"{row['seconds_a_step']:.3f}" for row in facts["ranks"]["rows"]),
        *(f"{100 * share:.1f}" for row in curves for share in row["curve"]),
        *(f"{size / 2**20:.1f}" for row in facts["memory"].values() for size in row.values()),
    }  # fmt: skip
    tables = [line for line in page(facts)["rank.md"].splitlines() if line.startswith("|")]
    told = {word for line in tables for word in re.findall(r"\d+\.\d+", line.replace("SD 1.5", ""))}
    assert told
    assert not told - known
