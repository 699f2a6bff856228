"""docs/rank.md: made from runs by one command, and nothing in it that is not in the figures."""

import json
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
    plan = Plan((1, 2), 2, rates=(8e-3, 2e-3), alphas=(4.0, 16.0), coupled_steps=3, timed_steps=4, prompts=1)
    found = figures(tmp_path, plan)
    assert [row["rank"] for row in found["ranks"]] == [1, 2]
    assert [row["on_the_diagonal"] for row in found["coupled"]["rows"]] == [True, False, False, True]
    assert found["coupled"]["rows"][3]["likeness"] == pytest.approx(1, abs=1e-4)
    assert found["spectrum"]["curves"]["full"][-1] == pytest.approx(1)
    assert found["spectrum"]["curves"]["lora"][2] == pytest.approx(1, abs=1e-6)
    for what in ("all weights", "LoRA, rank 16"):
        full, halved = (found["memory"][f"pocket, {what}, {bits}-bit Adam"] for bits in (32, 8))
        assert full["moments"] == 2 * full["weights"]
        assert 2 / 8 < halved["moments"] / full["moments"] < 2.6 / 8
    write_page(found, tmp_path / "docs")
    for plot in (tmp_path / "docs" / "rank").glob("*.svg"):
        ElementTree.parse(plot)


def test_the_page_that_is_shipped_is_that_of_its_figures() -> None:
    """Wrong: a figure mended by hand, or a page that was not written again."""
    for name, text in page(json.loads(FIGURES.read_text(encoding="utf-8"))).items():
        assert (DOCS / name).read_text(encoding="utf-8") == text, name
