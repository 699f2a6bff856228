"""`kill -9` of page, engine, worker and training: the others go on or say so, nothing is lost or done twice.

One long story, because each death falls into the life of the others: that is what happens on a real machine.
"""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
from playwright.sync_api import expect

from diffusion_lora.events import read_events
from diffusion_lora.jobs.store import Job, Queue
from diffusion_lora.workspace import Workspace
from tests.ui.conftest import OpenPage, StartDesk
from tests.ui.person import Person
from tests.ui.process import DeskProcess, wait_for
from tests.ui.watch import come_back

CommandLine = Callable[..., "subprocess.CompletedProcess[str]"]

STEPS = 120
SHORT = (
    f"train.steps={STEPS}", "train.batch_size=2", "lora.rank=4", "lora.targets=qv", "lora.text_targets=none",
    "checkpoint.every=10", "output.name=victim",
)  # fmt: skip


class Training:
    """The one run of this story, as its folder and the queue tell it."""

    def __init__(self, desk: DeskProcess) -> None:
        self._workspace = Workspace(desk.workspace)
        self._queue = Queue(self._workspace)
        self.folder = desk.workspace / "runs" / "victim"

    def job(self) -> Job:
        job = self._queue.job("victim")
        assert job is not None
        return job

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.folder, current=False) if event["kind"] == kind]

    def step(self) -> int:
        return max((event["step"] for event in self.events("step")), default=0)

    def wait_for_step(self, step: int) -> None:
        wait_for(f"step {step} of the training", lambda: self.step() >= step)

    def pid(self) -> int:
        pid = self.job().pid
        assert pid is not None
        return pid


@pytest.mark.slow
def test_each_may_die_and_the_others_go_on(
    start_desk: StartDesk, open_page: OpenPage, command_line: CommandLine
) -> None:
    desk = start_desk()
    watch = open_page(desk.url)
    person = Person(watch.page)
    person.wait_for_status("ready")
    added = command_line("queue", "add", "pocket-style", *(word for pair in SHORT for word in ("--set", pair)),
                         "--workspace", desk.workspace)  # fmt: skip
    assert added.returncode == 0, added.stderr
    training = Training(desk)
    training.wait_for_step(1)
    trainer = training.pid()
    person.wait_for_status("training")

    # The worker: the training does not notice, and the next worker finds it.
    worker = desk.wait_for_presence("worker")["pid"]
    psutil.Process(worker).kill()
    desk.wait_for_presence("worker", other_than=worker)
    training.wait_for_step(training.step() + 2)
    assert training.pid() == trainer
    assert training.job().state == "running"

    # The engine, while it is away: the page says so, another one comes, and it does not take the device.
    engine = desk.wait_for_presence("engine")["pid"]
    psutil.Process(engine).kill()
    desk.wait_for_presence("engine", other_than=engine)
    training.wait_for_step(training.step() + 2)
    assert training.pid() == trainer

    # The page: nobody notices, and the next page finds all of them.
    others = {name: desk.wait_for_presence(name)["pid"] for name in ("engine", "worker")}
    before = training.step()
    with watch.excused():
        desk.kill()
        training.wait_for_step(before + 2)
        desk.start()
        come_back(watch.page, desk.url)
        expect(watch.page.locator("#status")).to_be_visible()
    assert {name: desk.wait_for_presence(name)["pid"] for name in others} == others
    assert training.pid() == trainer
    person.go_to("queue")
    row = watch.page.locator("#queue-list [data-run='victim']")
    expect(row).to_have_attribute("data-state", "running")

    # The training: the queue says what happened and from where it can go on.
    wait_for("a checkpoint", lambda: training.events("checkpoint"))
    psutil.Process(trainer).kill()
    expect(row).to_have_attribute("data-state", "failed")
    saved = training.events("checkpoint")[-1]["step"]
    expect(row).to_contain_text(f"step {saved}")
    person.wait_for_status("ready")

    row.get_by_role("button", name=re.compile("resume|retry|go on", re.IGNORECASE)).click()
    expect(row).to_have_attribute("data-state", "done")

    # Nothing lost, nothing twice: two attempts, the second from the checkpoint on, one adapter.
    assert len(training.events("start")) == 2
    assert [event["step"] for event in training.events("resume")] == [saved]
    assert len(training.events("end")) == 1
    kept = [event["step"] for event in read_events(training.folder) if event["kind"] == "step"]
    assert kept == list(range(1, STEPS + 1))
    assert [path.name for path in (desk.workspace / "loras").iterdir()] == ["victim.safetensors"]


@pytest.mark.slow
def test_an_engine_that_dies_while_drawing_is_told_and_replaced(start_desk: StartDesk, open_page: OpenPage) -> None:
    """Somebody waits for that picture: the page must not wait with them for ever."""
    desk = start_desk()
    watch = open_page(desk.url)
    person = Person(watch.page)
    person.wait_for_status("ready")
    person.go_to("generate")
    person.ask_for("a red cat on a sky background", seed=1, steps=300)
    person.button("generate-go").click()
    wait_for("the engine to draw", lambda: desk.engine_status().get("state") == "busy")
    engine = desk.wait_for_presence("engine")["pid"]
    psutil.Process(engine).kill()
    expect(watch.page.locator("#stage [data-phase]")).to_have_attribute("data-phase", "failed")
    expect(watch.page.locator("#stage")).to_contain_text("engine stopped")
    desk.wait_for_presence("engine", other_than=engine)
    person.wait_for_status("ready")
    person.ask_for("a red cat on a sky background", seed=1, steps=4)
    assert len(person.draw()) == 1


@pytest.mark.slow
def test_two_pages_share_engine_and_worker(start_desk: StartDesk, tmp_path: Path) -> None:
    """And when the first goes, the second has them still; when the last goes, so do they."""
    first = start_desk()
    second = start_desk()
    pids = {name: first.wait_for_presence(name)["pid"] for name in ("engine", "worker")}
    for word in ("serve", "worker"):
        assert len([process for process in first.processes(f"\0{word}\0") if process.is_running()]) == 1
    assert first.stop() in {0, 130}
    assert {name: second.wait_for_presence(name)["pid"] for name in pids} == pids
