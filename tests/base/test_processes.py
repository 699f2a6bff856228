"""Processes find the living, and only those: pids are given out again, and the dead leave files behind."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from diffusion_lora.device_lock import Holder, StillTaken, hold, holder, wanted
from diffusion_lora.errors import OutputError
from diffusion_lora.inbox import ask, taken
from diffusion_lora.processes import (
    Presence,
    Process,
    Taken,
    alive,
    announce,
    only_one,
    open_ui,
    owner,
    read,
    uis_alive,
    withdraw,
)
from diffusion_lora.workspace import Workspace

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}

HOLD = """
import sys, time
from pathlib import Path
from diffusion_lora.device_lock import hold
from diffusion_lora.processes import only_one
from diffusion_lora.workspace import Workspace
workspace = Workspace.open(Path(sys.argv[1]))
with only_one(workspace.state / "a.lock"), hold(workspace, "cuda", sys.argv[2], "theirs"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path)


@contextmanager
def held(workspace: Workspace, kind: str = "run") -> Iterator["subprocess.Popen[str]"]:
    """Another process that has `a.lock` and the device `cuda`."""
    command = [sys.executable, "-c", HOLD, str(workspace.root), kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def dead_process() -> Process:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        return Process(process.pid, time.time())


def test_a_zombie_and_a_pid_that_was_given_out_again_are_dead() -> None:
    me = Process.this()
    assert me.is_alive
    assert not alive(me.pid, me.started - 100)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        started = psutil.Process(child.pid).create_time()
        assert alive(child.pid, started)
        assert child.stdin is not None
        child.stdin.close()
        deadline = time.monotonic() + 60
        while alive(child.pid, started):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert psutil.pid_exists(child.pid)  # nobody has waited for it yet


def test_a_presence_is_for_this_user_alone_and_ends_with_its_process(workspace: Workspace) -> None:
    """The file holds the engine's token."""
    presence = Presence.this(port=1234, token="secret")
    announce(workspace, "engine", presence)
    assert read(workspace, "engine") == presence
    assert read(workspace, "worker") is None
    if os.name == "posix":
        assert (workspace.state / "engine.json").stat().st_mode & 0o777 == 0o600
    withdraw(workspace, "engine")
    assert read(workspace, "engine") is None

    dead = dead_process()
    announce(workspace, "engine", Presence(dead.pid, dead.started))
    assert read(workspace, "engine") is None
    for nonsense in ("", "{", "[1]", '{"pid": 1}'):
        (workspace.state / "engine.json").write_text(nonsense, encoding="utf-8")
        assert read(workspace, "engine") is None


def test_another_process_s_presence_is_not_taken_back(workspace: Workspace) -> None:
    with held(workspace) as other:
        started = json.loads((workspace.state / "a.lock.json").read_text(encoding="utf-8"))["started"]
        announce(workspace, "engine", Presence(other.pid, started))
        withdraw(workspace, "engine")
        assert read(workspace, "engine") is not None


def test_open_pages_are_counted_and_dead_ones_are_not(workspace: Workspace) -> None:
    dead = dead_process()
    stale = workspace.state / f"ui-{dead.pid}.json"
    stale.write_text(json.dumps({"pid": dead.pid, "started": dead.started}), encoding="utf-8")
    with open_ui(workspace, 7860):
        assert [page.port for page in uis_alive(workspace)] == [7860]
    assert uis_alive(workspace) == []
    assert not stale.exists()


def test_a_lock_names_its_holder_and_dies_with_it(workspace: Workspace) -> None:
    lock = workspace.state / "a.lock"
    with held(workspace) as other:
        with pytest.raises(Taken) as caught, only_one(lock):
            pass
        assert caught.value.owner is not None
        assert caught.value.owner.pid == other.pid
    assert owner(lock) is None
    with only_one(lock):
        assert owner(lock) == Process.this()
    assert owner(lock) is None


def test_a_device_has_one_owner_whoever_asks_under_which_name(workspace: Workspace) -> None:
    seen: list[Holder | None] = []
    with held(workspace) as other:
        now = holder(workspace, "cuda:0")
        assert now is not None
        assert (now.kind, now.name, now.pid) == ("run", "theirs", other.pid)
        with (
            pytest.raises(StillTaken) as caught,
            hold(workspace, "cuda:0", "run", "mine", on_wait=seen.append, timeout=0.6),
        ):
            pass
        assert caught.value.holder == now
        assert seen
        assert set(seen) == {now}
        assert wanted(workspace, "cuda") == []
        with hold(workspace, "cpu", "run", "mine", timeout=0):
            pass
    with hold(workspace, "cuda", "run", "mine", timeout=0) as mine:
        assert holder(workspace, "cuda") == mine
    assert holder(workspace, "cuda") is None


def test_whoever_waits_is_seen_and_may_give_up(workspace: Workspace) -> None:
    def look(now: Holder | None) -> None:
        assert [one.name for one in wanted(workspace, "cuda")] == ["mine"]
        raise InterruptedError

    with held(workspace), pytest.raises(InterruptedError), hold(workspace, "cuda", "run", "mine", on_wait=look):
        pass
    assert wanted(workspace, "cuda") == []


def test_a_run_that_waits_goes_before_an_engine(workspace: Workspace) -> None:
    """Else the engine would load its base in the moment between two runs, and the second run would wait for that."""
    me = Process.this()
    wish = workspace.state / f"device-cpu.wanted-{os.getpid() + 1}.json"
    note = {"kind": "run", "name": "next", "pid": me.pid, "started": me.started, "since": time.time()}
    wish.write_text(json.dumps(note), encoding="utf-8")
    with pytest.raises(StillTaken), hold(workspace, "cpu", "engine", "pocket", timeout=0):
        pass
    dead = dead_process()
    wish.write_text(json.dumps(note | {"pid": dead.pid, "started": dead.started}), encoding="utf-8")
    with hold(workspace, "cpu", "engine", "pocket", timeout=0):
        pass
    assert not wish.exists()


def test_requests_are_taken_once(tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    assert taken(tmp_path) == []
    for request in ("sample", "stop", "stop"):
        ask(tmp_path, request)
    assert taken(tmp_path) == ["stop", "sample"]
    assert taken(tmp_path) == []
    (tmp_path / "inbox" / "unknown").touch()
    assert taken(tmp_path) == []


def test_a_note_that_cannot_be_written_is_a_sentence(workspace: Workspace) -> None:
    (workspace.state / "engine.json").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*engine\.json"):
        announce(workspace, "engine", Presence.this())
    assert [path.name for path in workspace.state.iterdir()] == ["engine.json"]
