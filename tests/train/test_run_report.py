"""The report: every figure is the run's, nothing is fetched from elsewhere, no text of the user's is markup."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from diffusion_lora.config import TrainConfig, parse_train_config, to_toml
from diffusion_lora.errors import RunError
from diffusion_lora.events import read_events
from diffusion_lora.faces.charts import Line, line_chart, ticks
from diffusion_lora.faces.run_report import run_report
from diffusion_lora.images import open_image
from diffusion_lora.run import Run
from diffusion_lora.train.trainer import train

CommandLine = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(config: TrainConfig, tmp_path: Path) -> Run:
    settings = ["train.steps=6", "preview.every=3", 'preview.prompts=["a red thing"]', "preview.steps=2",
                "validation.pictures=2", "validation.every=2", 'output.name="<b>mine"']  # fmt: skip
    return Run.create(tmp_path / "run", parse_train_config(to_toml(config), source="test", overrides=settings))


def test_the_page_tells_the_run_and_needs_nothing_beside_it(run: Run, command_line: CommandLine) -> None:
    with pytest.raises(RunError, match="has not taken a step yet"):
        run_report(run)
    train(run, run.config)
    looks = [[0.5, 0.3, 0.9], [1.0, 0.5, 0.8], [2.0, 0.6, 0.1]]
    run.emit("calibration", step=6, path="adapter.safetensors", strength=1.05, folded=False, looks=looks, seconds=2.0,
             text="strength 1.05 suits it")  # fmt: skip
    done = command_line("report", run.folder)
    assert done.returncode == 0, done.stderr
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    measured = [event["loss"] for event in read_events(run.folder) if event["kind"] == "validation"]
    assert f"{min(measured):.4f}" in page
    assert page.count("data:image/png;base64,") == 3, "two previews and the spectrum"
    assert "6 captions of 6 pictures; 3 to 3 words" in page, "captions of the set, those of held-out pictures too"
    assert "adapter.safetensors, read again, draws what the training showed" in page
    assert "lora.rank" in page
    assert "<td>[&quot;a red thing&quot;]</td><td class=dim>[]</td>" in page, "settings as they stand in a file"
    assert "strength 1.05 suits it" in page
    assert "one rank for all layers that keeps 95 % of the energy" in page
    assert "<li>no warning</li>" in page
    assert "<b>mine" not in page
    assert not re.search(r"""(src|href)=(?!["']?data:)""", page), "the page asks for another file"
    assert open_image(run.folder / "report.png").size[0] == 1400


def test_a_chart_holds_every_point_and_round_numbers() -> None:
    chart = line_chart([Line("a <line>", [(0, 0.11), (50, 0.32), (100, 0.19)], "first", dots=True)], "told", "step")
    assert chart.count("<circle") == 3
    assert [text for text in re.findall(r'text-anchor="end">([^<]*)<', chart) if text != "step"] == [
        "0.1", "0.2", "0.3", "0.4"]  # fmt: skip
    assert "a &lt;line&gt;" in chart
    assert ticks(3.0, 3.0, 4)[0] <= 3.0 <= ticks(3.0, 3.0, 4)[-1], "a course that stands still has no height"
    assert line_chart([Line("nothing", [], "first")], "told", "step") == ""
    spikes = [(step, 0.1 + 5.0 * (step == 50)) for step in range(100)]
    flat = line_chart([Line("raw", spikes, "raw", faint=True), Line("s", [(0, 0.1), (99, 0.12)], "first")], "t", "step")
    assert "5.1" not in flat, "one spike flattened the rest"
