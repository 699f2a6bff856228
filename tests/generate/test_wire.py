"""What engine and page say to each other survives the way, and neither end needs torch to say it."""

import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_lora.generate.request import LoraUse, Request
from diffusion_lora.generate.wire import (
    Cancelled,
    DrawingEvent,
    Drawn,
    End,
    EngineStatus,
    Failed,
    Preview,
    Queued,
    Start,
    Step,
    Waiting,
    from_line,
    status_fields,
    status_from,
    to_line,
)

REQUEST = Request("a „red“ cat", seed=7, width=128, height=64, loras=(LoraUse("x", Path("loras/x.safetensors"), 0.5),))


@pytest.mark.parametrize(
    "event",
    [
        Start("ab12"),
        Waiting("The run my-style has the device.", "my-style"),
        Queued(2),
        Step(3, 20),
        Preview(1, "UklGRg=="),
        Drawn(4, "pictures/00001-7.png", REQUEST, ("a note",)),
        End(1.5, 13.3),
        Cancelled(),
        Failed("x.safetensors is cut off"),
    ],
)
def test_every_event_is_one_line_and_comes_back_equal(event: DrawingEvent) -> None:
    """The page would miss, or misread, what the engine tells."""
    line = to_line(event)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert from_line(line) == event


@pytest.mark.parametrize("line", ["", "[]", "{}", '{"kind": "else"}', '{"kind": "step"}', '{"kind": "step", "x": 1}'])
def test_anything_else_is_no_event(line: str) -> None:
    """A program that is no engine would be taken for one."""
    with pytest.raises(ValueError, match="no event"):
        from_line(line)


def test_a_status_comes_back_equal_and_a_newer_one_is_understood() -> None:
    """A page left open over an update would break on a field that it does not know."""
    status = EngineStatus("away", "The run x has the device.", base="pocket", holder="x", loads=3, drawn=2)
    assert status_from(status_fields(status)) == status
    assert status_from(status_fields(status) | {"mood": "fine"}) == status


def test_the_page_s_end_needs_no_torch(checkout: Path) -> None:
    """The page would take seconds and a gigabyte more to start."""
    code = "import sys, webui.engine; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=checkout, check=False).returncode == 0
