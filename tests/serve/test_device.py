"""One device, one owner: the engine lets go for a run and comes back after it."""

import threading
import time
from pathlib import Path
from typing import Any

from diffusion_lora.device_lock import hold, holder
from diffusion_lora.generate.request import Request
from webui.engine import End, Start, Waiting

PATIENCE_S = 600
CAT = Request("a big red cat on a sky background", steps=2)


def test_a_run_gets_the_device_and_pictures_wait_until_it_is_back(engine: Any) -> None:
    """A run and the engine would fill one memory, or an order given meanwhile would be lost."""
    workspace = engine.workspace
    mine = holder(workspace, "cpu")
    assert mine is not None
    assert (mine.kind, mine.name, mine.pid) == ("engine", "pocket", engine.pid)
    with hold(workspace, "cpu", "run", "my-style", timeout=PATIENCE_S):
        status = engine.wait_for(lambda status: status.holder == "my-style")
        assert status.state == "away"
        assert "my-style" in status.text
        drawing = engine.client.generate([CAT])
        assert isinstance(next(drawing), Start)
        waiting = next(drawing)
        assert isinstance(waiting, Waiting)
        assert waiting.holder == "my-style"
    assert isinstance(list(drawing)[-1], End)
    engine.wait_until("ready")


def test_a_picture_in_the_making_is_finished_before_a_run_gets_the_device(engine: Any) -> None:
    """A run that starts would spoil the picture somebody waits for."""
    drawing = engine.client.generate([Request(CAT.prompt, steps=40)])
    next(drawing)
    got: list[float] = []

    def run() -> None:
        with hold(engine.workspace, "cpu", "run", "other", timeout=PATIENCE_S):
            got.append(time.monotonic())

    thread = threading.Thread(target=run)
    thread.start()
    assert isinstance(list(drawing)[-1], End)
    done = time.monotonic()
    thread.join(PATIENCE_S)
    assert got[0] >= done - 0.5
    engine.wait_until("ready")


def test_another_base_and_none(engine: Any, tmp_path: Path) -> None:
    """A base that is not there would end the engine; what is wrong with it would not be told."""
    assert engine.client.load(str(tmp_path / "no-such-base")) == ""
    failed = engine.wait_until("failed")
    assert "no-such-base" in failed.text
    assert engine.client.unload() == ""
    engine.wait_until("away")
    assert holder(engine.workspace, "cpu") is None
    assert engine.client.load("pocket") == ""
    assert engine.wait_until("ready").base == "pocket"
