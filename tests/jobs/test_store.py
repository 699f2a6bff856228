"""The queue: an order, states that only change where they may, and a file that survives everything."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffusion_lora.errors import OutputError, RunError, ServiceError
from diffusion_lora.inbox import taken
from diffusion_lora.jobs.store import Queue
from diffusion_lora.workspace import Workspace

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path)


def put(queue: Queue, *names: str) -> None:
    for name in names:
        folder = queue.workspace.runs / name
        folder.mkdir()
        (folder / "config.toml").touch()
        queue.add(name)


def states(queue: Queue) -> dict[str, str]:
    return {job.run: job.state for job in queue.jobs()}


def test_runs_have_their_turn_in_the_order_they_came_and_are_told_by_urgency(queue: Queue) -> None:
    put(queue, "a", "b", "c", "d")
    first = queue.next_waiting()
    assert first is not None
    assert first.run == "a"
    assert queue.claim("a", 0) is not None
    queue.settle("a", "done", "")
    queue.claim("c", 0)
    queue.cancel("b")
    assert list(states(queue)) == ["c", "d", "b", "a"]


def test_a_run_is_there_once_and_must_exist(queue: Queue) -> None:
    put(queue, "a")
    with pytest.raises(RunError, match=r"run a is in the queue already \(waiting\)"):
        queue.add("a")
    with pytest.raises(RunError, match="there is no run 'b'"):
        queue.add("b")
    for name in ("../a", "", "a/b"):
        with pytest.raises(OutputError, match="name"):
            queue.add(name)
    with pytest.raises(RunError, match="there is no run 'b' in the queue"):
        queue.cancel("b")


def test_a_request_goes_to_where_it_can_be_heard(queue: Queue) -> None:
    """If a request to a starting process went into the inbox, that process would take it for an earlier one's."""
    put(queue, "a", "b")
    folder = queue.workspace.runs / "a"
    assert queue.cancel("b").state == "stopped"
    queue.claim("a", 0)
    assert queue.pause("a").asked == "pause"
    assert taken(folder) == []
    queue.note_running("a")
    assert taken(folder) == ["pause"]
    queue.cancel("a")
    assert taken(folder) == ["stop"]
    queue.settle("a", "failed", "why")
    with pytest.raises(RunError, match=r"has ended already \(failed\)"):
        queue.cancel("a")


def test_a_request_made_while_nothing_had_begun_is_kept(queue: Queue) -> None:
    """The worker died between taking a job and starting its process: who had cancelled it means it."""
    put(queue, "a", "b")
    queue.claim("a", 0)
    queue.cancel("a")
    queue.give_back("a")
    queue.claim("b", 0)
    queue.give_back("b")
    assert states(queue) == {"a": "stopped", "b": "waiting"}


def test_a_retried_run_waits_behind_the_others(queue: Queue) -> None:
    put(queue, "a", "b")
    queue.pause("a")
    job = queue.retry("a")
    assert (job.state, job.text, job.pid) == ("waiting", "", None)
    assert list(states(queue)) == ["b", "a"]
    with pytest.raises(RunError, match="run a is waiting already"):
        queue.resume("a")


def test_what_is_removed_lies_in_the_trash(queue: Queue) -> None:
    put(queue, "a")
    queue.claim("a", 0)
    with pytest.raises(RunError, match="cancel it before it is removed"):
        queue.remove("a")
    queue.settle("a", "done", "")
    place = queue.remove("a")
    assert place is not None
    assert place.parent == queue.workspace.trash
    assert (place / "config.toml").is_file()
    assert not (queue.workspace.runs / "a").exists()
    assert queue.job("a") is None
    put(queue, "a")
    assert queue.remove("a") != place


CLAIM = """
import sys
from pathlib import Path
from diffusion_lora.jobs.store import Queue
from diffusion_lora.workspace import Workspace
queue = Queue(Workspace.open(Path(sys.argv[1])))
while (job := queue.next_waiting()) is not None:
    if queue.claim(job.run, 0) is not None:
        print(job.run)
"""


def test_two_who_claim_at_once_never_get_the_same_job(queue: Queue) -> None:
    names = [f"run-{number}" for number in range(40)]
    put(queue, *names)
    command = [sys.executable, "-c", CLAIM, str(queue.workspace.root)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) for _ in range(2)]
    claimed = [name for process in both for name in process.communicate(timeout=60)[0].split()]
    assert sorted(claimed) == sorted(names)


WRITE = """
import sys
from pathlib import Path
from diffusion_lora.jobs.store import Queue
from diffusion_lora.workspace import Workspace
queue = Queue(Workspace.open(Path(sys.argv[1])))
print("at work", flush=True)
while True:
    queue.cancel("a")
    queue.retry("a")
"""


def test_a_process_killed_while_it_writes_leaves_the_queue_whole(queue: Queue) -> None:
    put(queue, "a", "b")
    for _ in range(3):
        command = [sys.executable, "-c", WRITE, str(queue.workspace.root)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "at work\n"
            time.sleep(0.2)
            process.send_signal(signal.SIGKILL)
        told = states(Queue(queue.workspace))
        assert told.keys() == {"a", "b"}
        assert told["a"] in ("stopped", "waiting")
        if told["a"] == "stopped":
            queue.retry("a")


def test_a_queue_that_cannot_be_read_is_a_sentence(workspace: Workspace) -> None:
    (workspace.state / "queue.db").write_bytes(b"no database " * 100)
    with pytest.raises(ServiceError, match=r"cannot be used .* move the file away"):
        Queue(workspace)


def test_the_line_is_put_in_order(queue: Queue) -> None:
    """Wrong: a run that was put later still comes first, or one that is at work is moved."""
    put(queue, "a", "b", "c", "d")
    queue.claim("a", 0)
    queue.move("d", sooner=True)
    queue.move("b", sooner=False)
    queue.move("d", sooner=True)
    queue.move("c", sooner=False)
    assert list(states(queue)) == ["a", "d", "b", "c"]
    queue.move("d", sooner=True)
    assert list(states(queue)) == ["a", "d", "b", "c"], "the first of the line stays the first"
    first = queue.next_waiting()
    assert first is not None
    assert first.run == "d"
    with pytest.raises(RunError, match="does not wait"):
        queue.move("a", sooner=False)
