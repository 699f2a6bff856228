"""Going on is exact: killed at any moment, twice in a row, and the numbers are those of a run that nobody disturbed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from diffusion_lora.config import TrainConfig, parse_train_config, to_toml
from diffusion_lora.errors import RunError, RunInterrupted
from diffusion_lora.events import Event, read_events
from diffusion_lora.lora.adapter import read_adapter
from diffusion_lora.run import Run
from diffusion_lora.train.checkpoint import checkpoints
from diffusion_lora.train.trainer import train

PROCESS = """
import sys
from pathlib import Path
from diffusion_lora.config import load_train_config
from diffusion_lora.errors import UserError
from diffusion_lora.run import Run
from diffusion_lora.train.trainer import train
config = load_train_config(Path(sys.argv[1]))
try:
    train(Run.resume(Path(sys.argv[2]), config), config, resume=True)
except UserError as error:
    sys.exit(str(error))
"""


def changed(config: TrainConfig, *settings: str) -> TrainConfig:
    return parse_train_config(to_toml(config), source="test", overrides=settings)


def story(run: Run) -> list[tuple[int, float, float]]:
    return [
        (event["step"], event["loss"], event["grad_norm"])
        for event in read_events(run.folder)
        if event["kind"] == "step"
    ]


def start_process(config: TrainConfig, tmp_path: Path, run_folder: Path, prefix: str = "") -> subprocess.Popen[str]:
    """A process of its own that carries the run out, from its newest checkpoint if there is one."""
    file = tmp_path / "config.toml"
    file.write_text(to_toml(config), encoding="utf-8")
    command = [sys.executable, "-c", prefix + PROCESS, str(file), str(run_folder)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})


def wait_for(run_folder: Path, process: subprocess.Popen[str], seen: Callable[[list[Event]], bool]) -> None:
    deadline = time.monotonic() + 300
    while not (run_folder.is_dir() and seen(list(read_events(run_folder, current=False)))):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def steps_done(events: list[Event]) -> int:
    """The last step of the present process: what an earlier one did is before the newest `resume`."""
    done = 0
    for event in events:
        done = {"step": event.get("step", 0), "resume": 0}.get(event["kind"], done)
    return done


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw8bit", "adamw"])
def test_killed_at_step_17_and_again_a_run_of_40_ends_as_if_nothing_had_happened(
    config: TrainConfig, tmp_path: Path, optimizer: str
) -> None:
    config = changed(config, "train.steps=40", "checkpoint.every=5", f"optimizer.name={optimizer}")
    whole = Run.create(tmp_path / "whole", config)
    train(whole, config)

    folder = tmp_path / "killed"
    for at_least in (17, 27):
        with start_process(config, tmp_path, folder) as process:
            wait_for(folder, process, lambda events, step=at_least: steps_done(events) >= step)
            process.send_signal(signal.SIGKILL)
    killed = Run.open(folder)
    assert 27 <= story(killed)[-1][0] < 40
    train(killed, config, resume=True)

    resumed = [event["step"] for event in read_events(folder, current=False) if event["kind"] == "resume"]
    assert len(resumed) == 2
    assert resumed[0] >= 15
    assert resumed[1] >= 25
    assert story(killed) == story(whole)
    assert [step for step, *_ in story(killed)] == list(range(1, 41))
    assert read_adapter(killed.adapter_path).allclose(read_adapter(whole.adapter_path))
    ours, theirs = (torch.load(checkpoints(run)[-1][1], weights_only=True) for run in (killed, whole))
    assert all(torch.equal(ours["segments"][name], theirs["segments"][name]) for name in theirs["segments"])
    parts = theirs["optimizer"]["parts"].values()
    state = {key: value for part in parts for group in part["state"].values() for key, value in group.items()}
    held_in_8_bits = "state1" in (state.get("__bnb_optimizer_quant_state__") or state)
    assert held_in_8_bits == (optimizer == "adamw8bit")


def test_a_run_killed_before_its_first_checkpoint_starts_again_from_the_start(
    config: TrainConfig, tmp_path: Path
) -> None:
    whole = Run.create(tmp_path / "whole", config)
    train(whole, config)
    run = Run.create(tmp_path / "run", config)
    run.emit("step", step=1, loss=123.0, grad_norm=0.0)
    train(run, config, resume=True)
    assert story(run) == story(whole)


def test_a_run_is_extended_by_raising_its_steps(config: TrainConfig, tmp_path: Path) -> None:
    config = changed(config, "optimizer.schedule=constant")
    run = Run.create(tmp_path / "run", config)
    train(run, config)
    longer = changed(config, "train.steps=5")
    train(Run.resume(run.folder, longer), longer, resume=True)
    whole = Run.create(tmp_path / "whole", longer)
    train(whole, longer)
    assert story(run) == story(whole)
    assert read_adapter(run.adapter_path).allclose(read_adapter(whole.adapter_path))


def test_a_run_that_is_done_writes_its_adapter_again_without_another_step(config: TrainConfig, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", config)
    before = read_adapter(train(run, config))
    run.adapter_path.unlink()
    assert read_adapter(train(run, config, resume=True)).allclose(before)
    assert len(story(run)) == 3


def test_going_on_must_be_asked_for(config: TrainConfig, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", config)
    train(run, config)
    with pytest.raises(RunError, match="holds a run at step 3: add --resume"):
        train(run, config)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_the_step_it_is_in_and_says_how_to_go_on(
    config: TrainConfig, tmp_path: Path, number: signal.Signals
) -> None:
    whole = Run.create(tmp_path / "whole", config)
    train(whole, config)
    run = Run.create(tmp_path / "run", config)

    def press(event: Event) -> None:
        if event["kind"] == "step" and event["step"] == 2:
            os.kill(os.getpid(), number)

    with pytest.raises(RunInterrupted) as caught:
        train(run, config, progress=press)
    assert str(caught.value) == f"stopped and saved at step 2 of 3; go on with: diffusion-lora run {run.folder}"
    assert [step for step, _ in checkpoints(run)] == [2]
    assert read_events(run.folder)[-1]["reason"] == "asked to stop"
    train(run, config, resume=True)
    assert story(run) == story(whole)
    assert read_adapter(run.adapter_path).allclose(read_adapter(whole.adapter_path))


def test_the_newest_checkpoints_are_kept(config: TrainConfig, tmp_path: Path) -> None:
    config = changed(config, "train.steps=5", "checkpoint.every=1", "checkpoint.keep=2", "checkpoint.adapters=true")
    run = Run.create(tmp_path / "run", config)
    train(run, config)
    assert [step for step, _ in checkpoints(run)] == [4, 5]
    kept = sorted((run.folder / "checkpoints").glob("*.safetensors"))
    assert [path.stem for path in kept] == [f"adapter-step-{step:08d}" for step in range(1, 6)]
    assert read_adapter(kept[-1]).allclose(read_adapter(run.adapter_path))
    assert not read_adapter(kept[0]).allclose(read_adapter(run.adapter_path))


def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(config: TrainConfig, tmp_path: Path) -> None:
    config = changed(config, "checkpoint.every=2")
    run = Run.create(tmp_path / "run", config)
    train(run, config)
    newest = checkpoints(run)[-1][1]
    newest.write_bytes(newest.read_bytes()[:500])
    with pytest.raises(RunError, match=r"step-00000003\.pt is damaged .* delete it to go on from the one before"):
        train(run, config, resume=True)
    newest.unlink()
    train(run, config, resume=True)
    assert [step for step, *_ in story(run)] == [1, 2, 3]


def test_a_config_edited_into_another_shape_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", config)
    train(run, config)
    other = changed(config, "lora.rank=8")
    with pytest.raises(RunError, match="made with other lora settings"):
        train(run, other, resume=True)
    other = changed(config, "optimizer.name=adamw")
    with pytest.raises(RunError, match="made with AdamW8bit, but here AdamW is used"):
        train(run, other, resume=True)


def test_a_disk_that_fills_up_at_a_save_leaves_the_last_checkpoint_to_go_on_from(
    config: TrainConfig, tmp_path: Path
) -> None:
    """The limit on file sizes stands in for a full disk: it hits the second process at its first save."""
    run = Run.create(tmp_path / "run", config)
    train(run, config)
    good = checkpoints(run)[-1][1].read_bytes()
    longer = changed(config, "train.steps=5")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
    with start_process(longer, tmp_path, run.folder, prefix=limit) as process:
        sentence = process.communicate()[1]
    assert process.returncode == 1
    assert "cannot write" in sentence.splitlines()[-1]
    assert "step-00000005.pt: File too large; free some space" in sentence
    assert [step for step, _ in checkpoints(run)] == [3]
    assert checkpoints(run)[-1][1].read_bytes() == good
    train(Run.open(run.folder), longer, resume=True)
    assert [step for step, *_ in story(run)] == [1, 2, 3, 4, 5]
