"""Captioning a folder: policies, problems, kills at any moment, several processes, and undo."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lora.caption.captioner import Captioner, Options
from diffusion_lora.caption.find import open_captioner
from diffusion_lora.caption.work import Order, Outcome, carry_out
from diffusion_lora.data.edits import history, undo
from diffusion_lora.data.rules import Shape, parse_rule
from diffusion_lora.errors import ConfigError, DatasetError, RunInterrupted

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def captioner(saved: Callable[[str], Path]) -> Captioner:
    return open_captioner(str(saved("pair")), Options(new_tokens=8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten pictures; 0 and 1 have captions, 2 an empty one, 3 one that is not UTF-8, 4 cannot be read."""
    root = tmp_path / "set"
    root.mkdir()
    rng = np.random.default_rng(1)
    for number in range(10):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(root / f"{number}.png")
    (root / "0.txt").write_text("my own words")
    (root / "1.caption").write_text("other words\n")
    (root / "2.txt").write_bytes(b"")
    (root / "3.txt").write_bytes(b"caf\xe9")
    (root / "4.png").write_bytes(b"not a picture")
    return root


def captions(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(root.iterdir()) if path.suffix in (".txt", ".caption")}


def work(order: Order, captioner: Captioner, asked: dict | None = None, **options) -> Outcome:
    return carry_out(order, captioner, asked or {"policy": order.policy}, **options)


def test_only_what_is_missing_is_described_by_default(folder: Path, captioner: Captioner) -> None:
    was = captions(folder)
    events: list[dict] = []
    outcome = work(Order(folder, batch=3), captioner, progress=events.append)
    now = captions(folder)
    assert now["0.txt"] == was["0.txt"]
    assert now["1.caption"] == was["1.caption"]
    assert "1.txt" not in now
    assert outcome.written == 6, "2 and 5 to 9: an empty caption is none, bytes that are not UTF-8 are somebody's words"
    assert now["3.txt"] == was["3.txt"]
    assert {(problem.kind, problem.picture) for problem in outcome.problems} == {
        ("unreadable", "4.png"), ("caption encoding", "3.png"),
    }  # fmt: skip
    for number in (2, *range(5, 10)):
        picture = Image.open(folder / f"{number}.png")
        assert now[f"{number}.txt"].decode() == captioner.describe([picture])[0]
    assert events[0]["pictures"] == events[-2]["total"] == events[-2]["done"] + 1
    assert work(Order(folder), captioner).written == 0
    undo(folder)
    assert captions(folder) == was


def test_overwrite_and_append_and_what_the_shape_makes_of_it(folder: Path, captioner: Captioner) -> None:
    was = captions(folder)
    (folder / "4.png").unlink()
    shape = Shape((parse_rule("replace: red => grey"),), prefix="zib, ")
    work(Order(folder, "append", shape), captioner)
    told = captioner.describe([Image.open(folder / "0.png")])[0].replace("red", "grey")
    assert captions(folder)["0.txt"].decode() == f"zib, my own words, {told}"
    assert captions(folder)["3.txt"] == b"caf\xe9", "nothing can be put after what is not text"
    undo(folder)
    work(Order(folder, "overwrite", shape), captioner)
    assert captions(folder)["0.txt"].decode() == f"zib, {told}"
    undo(folder)
    assert captions(folder) == was


def test_a_dry_run_shows_and_writes_nothing(folder: Path, captioner: Captioner) -> None:
    was, shown = captions(folder), []
    outcome = work(Order(folder, "overwrite"), captioner, show=lambda *row: shown.append(row))
    assert len(shown) == 9
    assert shown[0][:2] == ("0.png", "my own words")
    assert outcome.written == 0
    assert captions(folder) == was
    assert history(folder) == []


def test_shards_share_a_folder_without_meeting(folder: Path, captioner: Captioner) -> None:
    """Each picture belongs to one of them; together they are one edit, taken back as one."""
    was = captions(folder)
    written = [work(Order(folder, shard=(number, 3)), captioner).written for number in range(3)]
    assert sum(written) == 6
    assert all(count < 6 for count in written)
    assert len(history(folder)) == 1
    undo(folder)
    assert captions(folder) == was
    with pytest.raises(ConfigError, match="shard 3/3"):
        Order(folder, shard=(3, 3))


def test_ctrl_c_keeps_what_was_said(folder: Path, captioner: Captioner) -> None:
    def stop(event: dict) -> None:
        if event["kind"] == "captioning" and event["done"] >= 4:
            raise KeyboardInterrupt

    was = captions(folder)
    with pytest.raises(RunInterrupted, match="the same command goes on"):
        work(Order(folder, batch=2), captioner, progress=stop)
    done = sum(1 for name, data in captions(folder).items() if data != was.get(name))
    assert 0 < done < 6
    assert work(Order(folder, batch=2), captioner).written == 6 - done
    assert len(history(folder)) == 1
    assert undo(folder).restored == 6
    assert captions(folder) == was


def test_a_set_without_a_folder_is_told(tmp_path: Path, captioner: Captioner) -> None:
    with pytest.raises(DatasetError, match="there is no such folder"):
        work(Order(tmp_path / "none"), captioner)


@pytest.mark.parametrize("policy", ["missing", "append"])
def test_killed_at_random_moments_it_goes_on_where_it_was(
    tmp_path: Path, captioner: Captioner, policy: str
) -> None:
    """No caption is half written, none is made twice, a person's words stay, and all of it is one edit to take back.

    `scripts/soak` does the same with 500 pictures and the command line.
    """
    root, rng = tmp_path / "set", random.Random(policy)
    root.mkdir()
    for number in range(40):
        Image.new("RGB", (16, 16), (number * 6, 255 - number * 6, number)).save(root / f"{number:02}.png")
        if policy == "append":
            (root / f"{number:02}.txt").write_text("before")
    was = captions(root)
    whole = tmp_path / "whole"
    shutil.copytree(root, whole)
    started = time.monotonic()
    work(Order(whole, policy, batch=4), captioner)
    wanted, seconds = captions(whole), time.monotonic() - started
    for _ in range(3):
        process = os.fork()
        if process == 0:
            try:
                work(Order(root, policy, batch=4), captioner)
                os._exit(0)
            finally:
                os._exit(1)
        time.sleep(rng.uniform(0.1, 0.3) * seconds)
        os.kill(process, signal.SIGKILL)
        if not os.WIFSIGNALED(os.waitpid(process, 0)[1]):
            pytest.skip("the child was done before it could be killed")
        half = {name: data for name, data in captions(root).items() if data not in (wanted[name], was.get(name))}
        assert not half
    changed = next((name for name, data in captions(root).items() if data != was.get(name)), None)
    if changed is not None:
        (root / changed).write_text("a person's own words")
    left = sum(1 for name in wanted if captions(root).get(name) == was.get(name))
    assert work(Order(root, policy, batch=4), captioner).written == left
    now = captions(root)
    if changed is not None:
        assert now.pop(changed) == b"a person's own words"
        wanted.pop(changed)
    assert now == wanted
    assert len(history(root)) == 1
    kept = undo(root).kept
    assert kept == ((changed,) if changed is not None else ())
    assert {name: data for name, data in captions(root).items() if name not in kept} == {
        name: data for name, data in was.items() if name not in kept
    }
