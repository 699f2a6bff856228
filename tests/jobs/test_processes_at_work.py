"""The worker and the runs it starts, as processes: killed one at a time, nothing is lost and nothing is run twice."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from diffusion_lora.device_lock import holder, wanted
from diffusion_lora.events import read_events
from diffusion_lora.inbox import ask
from diffusion_lora.jobs.launch import ensure_worker
from diffusion_lora.jobs.store import Job, Queue
from diffusion_lora.processes import Presence, announce, open_ui, read
from diffusion_lora.run import Run, run_owner
from diffusion_lora.workspace import Workspace

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
MakeRun = Callable[..., Run]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX"),
]


def wait_for(seen: Callable[[], object], *, seconds: float = 1200) -> None:
    deadline = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)


def kinds(run: Run) -> list[str]:
    """Everything that ever happened in a run but its steps."""
    return [event["kind"] for event in read_events(run.folder, current=False) if event["kind"] != "step"]


def step(run: Run) -> int:
    return max((event["step"] for event in read_events(run.folder) if event["kind"] == "step"), default=0)


def job(queue: Queue, run: Run) -> Job:
    found = queue.job(run.folder.name)
    assert found is not None
    return found


def settled(queue: Queue, run: Run) -> Callable[[], bool]:
    return lambda: job(queue, run).state not in ("waiting", "starting", "running")


def test_a_broken_run_is_told_and_the_next_one_has_its_turn(
    queue: Queue, workspace: Workspace, make_run: MakeRun
) -> None:
    """A run that cannot begin is not in the way of the others; a LoRA of the same name is not written over."""
    (workspace.loras / "good.safetensors").write_bytes(b"somebody else's")
    broken = make_run("broken", dataset__path="/nowhere/at-all")
    good = make_run("good")
    for run in (broken, good):
        queue.add(run.folder.name)
    ensure_worker(workspace)
    wait_for(settled(queue, good))
    assert job(queue, broken).state == "failed"
    assert "/nowhere/at-all" in job(queue, broken).text
    assert job(queue, good).state == "done"
    assert kinds(good) == ["start", "checkpoint", "parity", "end", "note", "published"]
    assert (workspace.loras / "good.safetensors").read_bytes() == b"somebody else's"
    assert (workspace.loras / "good-2.safetensors").read_bytes() == good.adapter_path.read_bytes()


def test_the_worker_is_killed_then_the_trainer_and_the_run_still_takes_every_step_once(
    queue: Queue, workspace: Workspace, make_run: MakeRun
) -> None:
    run = make_run("run", train__steps=400, checkpoint__every=10)
    queue.add("run")
    first = ensure_worker(workspace)
    wait_for(lambda: step(run) >= 12 and job(queue, run).state == "running")

    # The worker: the run goes on, and the next worker finds it.
    os.kill(first.pid, signal.SIGKILL)
    wait_for(lambda: read(workspace, "worker") is None)
    trainer = run_owner(run.folder)
    assert trainer is not None
    reached = step(run)
    second = ensure_worker(workspace)
    assert second.pid != first.pid
    wait_for(lambda: step(run) > reached)
    assert run_owner(run.folder) == trainer
    assert job(queue, run).process == trainer
    assert kinds(run).count("start") == 1

    # The trainer: said in a sentence; a retry goes on from the newest checkpoint.
    os.kill(trainer.pid, signal.SIGKILL)
    wait_for(settled(queue, run))
    assert job(queue, run).state == "failed"
    saved = max(event["step"] for event in read_events(run.folder) if event["kind"] == "checkpoint")
    assert job(queue, run).text == f"the process died; go on from step {saved}"
    assert read(workspace, "worker") == second
    queue.retry("run")
    wait_for(settled(queue, run))
    assert job(queue, run).state == "done", job(queue, run).text
    assert kinds(run).count("start") == 2
    assert [e["step"] for e in read_events(run.folder, current=False) if e["kind"] == "resume"] == [saved]
    assert [e["step"] for e in read_events(run.folder) if e["kind"] == "step"] == list(range(1, 401))
    assert (workspace.loras / "run.safetensors").is_file()


def test_pause_goes_on_and_stop_leaves_an_adapter_to_try(queue: Queue, workspace: Workspace, make_run: MakeRun) -> None:
    """The first pause comes while the process is still starting: it is heard all the same."""
    run = make_run("run", train__steps=100_000)
    published = workspace.loras / "run.safetensors"
    queue.add("run")
    ensure_worker(workspace)
    wait_for(lambda: job(queue, run).state in ("starting", "running"))
    queue.pause("run")
    wait_for(settled(queue, run))
    paused = step(run)
    assert (job(queue, run).state, job(queue, run).text) == ("paused", f"saved at step {paused}")
    assert not published.exists()

    queue.resume("run")
    wait_for(lambda: step(run) > paused and job(queue, run).state == "running")
    ask(run.folder, "sample")
    wait_for(lambda: "preview" in kinds(run))
    queue.cancel("run")
    wait_for(settled(queue, run))
    assert job(queue, run).state == "stopped"
    assert kinds(run)[-2:] == ["stop", "published"]
    assert published.read_bytes() == run.adapter_path.read_bytes()


ENGINE = """
import sys, time
from pathlib import Path
from diffusion_lora.device_lock import hold, wanted
from diffusion_lora.workspace import Workspace
workspace = Workspace.open(Path(sys.argv[1]))
for _ in range(2):
    with hold(workspace, "cpu", "engine", "tiny"):
        print("has it", flush=True)
        while not wanted(workspace, "cpu"):
            time.sleep(0.25)
"""


def test_the_engine_lets_go_for_a_run_and_comes_back_after_it(workspace: Workspace, make_run: MakeRun) -> None:
    """And a run by hand, outside the queue, is held by the same lock. A second process in its folder is refused."""
    run = make_run("run", train__steps=60)
    command = [sys.executable, "-m", "diffusion_lora", "run", str(run.folder)]
    holding = [sys.executable, "-c", ENGINE, str(workspace.root)]
    with (
        subprocess.Popen(holding, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as engine,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as trainer,
    ):
        assert engine.stdout is not None
        try:
            wait_for(lambda: run_owner(run.folder))
            again = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
            assert again.returncode == 2
            assert f"the process {trainer.pid} is at work on the run" in again.stderr
            assert trainer.wait(timeout=1200) == 0
            assert [engine.stdout.readline() for _ in range(2)] == ["has it\n"] * 2
            now = holder(workspace, "cpu")
            assert now is not None
            assert now.pid == engine.pid
        finally:
            engine.kill()
            trainer.kill()
    events = read_events(run.folder)
    assert events[0]["holder"] == {"kind": "engine", "name": "tiny"}
    assert events[0]["text"] == "waiting for cpu: the engine has it"
    assert kinds(run)[:2] == ["waiting", "start"]
    assert kinds(run)[-1] == "published"
    assert wanted(workspace, "cpu") == []
    assert holder(workspace, "cpu") is None


def test_a_run_that_waits_for_its_device_hears_too(workspace: Workspace, queue: Queue, make_run: MakeRun) -> None:
    """Otherwise a queue behind a long run of somebody else's could not be cleared."""
    from diffusion_lora.device_lock import hold

    run = make_run("run")
    with hold(workspace, "cpu", "run", "other"):
        queue.add("run")
        ensure_worker(workspace)
        wait_for(lambda: kinds(run) == ["waiting"] and job(queue, run).state == "running")
        queue.cancel("run")
        wait_for(settled(queue, run))
    assert job(queue, run).state == "stopped"
    assert kinds(run) == ["waiting", "stop"]


WORK = """
import sys
from pathlib import Path
from diffusion_lora.jobs.worker import work
from diffusion_lora.workspace import Workspace
print(work(Workspace.open(Path(sys.argv[1])), idle_s=1.0))
"""


def test_the_worker_stays_for_a_page_and_goes_when_nobody_needs_it(workspace: Workspace) -> None:
    command = [sys.executable, "-c", WORK, str(workspace.root)]
    with open_ui(workspace, 7860):
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
        wait_for(lambda: read(workspace, "worker"))
        second = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=True)
        assert second.stdout == "False\n"
        time.sleep(2)
        assert worker.poll() is None
    assert worker.communicate(timeout=30)[0] == "True\n"
    assert read(workspace, "worker") is None


def test_started_twice_at_once_there_is_one_worker(workspace: Workspace) -> None:
    """And what a dead one left behind is not taken for a living one."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    announce(workspace, "worker", Presence(dead.pid, time.time()))
    found: list[Presence] = []
    threads = [threading.Thread(target=lambda: found.append(ensure_worker(workspace))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len({presence.pid for presence in found}) == 1
    assert found[0].pid != dead.pid
