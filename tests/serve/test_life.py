"""The engine's life: killed, followed by another, one a workspace, gone when nobody needs it."""

import time
from collections.abc import Callable
from typing import Any

from diffusion_lora.device_lock import holder
from diffusion_lora.generate.request import Request
from diffusion_lora.processes import open_ui, read
from webui.engine import End, Failed, Step

SERVE_SHORTLY = """
import sys
from diffusion_lora.workspace import Workspace
from diffusion_lora.serve.process import serve
serve(Workspace.open(), device="cpu", idle_s=1.5)
"""


def test_killed_in_the_middle_it_is_said_and_a_new_one_starts(own_engine: Callable[..., Any]) -> None:
    """A dead engine would leave a page that waits for ever, or a state that keeps the next one from starting."""
    engine = own_engine()
    engine.wait_until("ready")
    drawing = engine.client.generate([Request("a red cat on a sky background", steps=900)])
    while not isinstance(next(drawing), Step):
        pass
    engine.kill()
    rest = list(drawing)
    assert isinstance(rest[-1], Failed)
    assert "stopped in the middle" in rest[-1].text
    assert engine.client.status().state == "down"
    assert [type(event) for event in engine.client.generate([Request("a cat")])] == [Failed]
    assert read(engine.workspace, "engine") is None
    assert holder(engine.workspace, "cpu") is None
    engine.start()
    engine.wait_until("ready")
    assert isinstance(list(engine.client.generate([Request("a red cat", steps=1)]))[-1], End)
    assert engine.leave() == 0
    assert "Traceback" not in engine.output()
    assert engine.client.status().state == "down"


def test_a_workspace_has_one_engine(engine: Any, command_line: Any) -> None:
    """Two engines would take turns on the device and on each other's note."""
    done = command_line("serve", "--workspace", engine.workspace.root)
    assert done.returncode == 2
    assert f"has an engine already, process {engine.pid}" in done.stderr
    assert read(engine.workspace, "engine") is not None


def test_it_leaves_when_nobody_needs_it_and_no_page_is_open(own_engine: Callable[..., Any]) -> None:
    """Engines would stay in memory after the last page is closed, or leave while somebody looks at a page."""
    engine = own_engine(SERVE_SHORTLY)
    with open_ui(engine.workspace, 1):
        engine.wait_for(lambda status: status.device == "cpu")
        time.sleep(4)
        assert engine.client.status().state != "down"
    assert engine.ended(600) == 0
    assert read(engine.workspace, "engine") is None
