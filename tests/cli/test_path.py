"""The whole path as a person types it: train, stop, go on, draw, compare."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from diffusion_lora.events import read_events
from diffusion_lora.lora.header import read_header, tensor_hash

CHECKOUT = Path(__file__).resolve().parents[2]
CommandLine = Callable[..., "subprocess.CompletedProcess[str]"]

SETTINGS = {
    "dataset.path": "pictures",
    "train.batch_size": "2",
    "lora.rank": "2",
    "lora.targets": "qv",
    "output.name": "mine",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for index, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (128, 128), colour).save(tmp_path / "pictures" / f"{index}.png")
        (tmp_path / "pictures" / f"{index}.txt").write_text(f"a {colour} star on a paper background", encoding="utf-8")
    return tmp_path


def train_command(steps: int, *more: str, **settings: str) -> list[str]:
    pairs = [f"{key}={value}" for key, value in {**SETTINGS, **settings}.items()]
    return ["train", "pocket-style", "--steps", str(steps), *(w for pair in pairs for w in ("--set", pair)), *more]


@pytest.mark.slow
def test_train_then_generate_then_grid(command_line: CommandLine, folder: Path) -> None:
    trained = command_line(*train_command(3))
    assert trained.returncode == 0, trained.stderr
    adapter = folder / "runs" / "mine" / "adapter.safetensors"
    assert str(adapter) in trained.stdout.splitlines()[-1]
    assert read_header(adapter).metadata["ss_output_name"] == "mine"

    lora = adapter.relative_to(folder)
    drawn = command_line("generate", "a red star", "--lora", f"{lora}:0.8", "--steps", 2, "--seed", 3, "--count", 2)
    assert drawn.returncode == 0, drawn.stderr
    assert [Path(line).parent for line in drawn.stdout.splitlines()] == [Path("pictures")] * 2

    command = ("grid", "a red star", "a blue star", "--lora", f"{lora}:0,1", "--steps", 2, "--out", "sheet.png")
    sheet = command_line(*command)
    assert sheet.returncode == 0, sheet.stderr
    with Image.open(folder / "sheet.png") as image:
        assert image.width > 2 * 128
    again = command_line(*command)
    assert again.returncode == 2
    assert "exists already" in again.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_ctrl_c_saves_says_how_to_go_on_and_the_run_goes_on(command_line: CommandLine, folder: Path) -> None:
    run = folder / "run"
    with subprocess.Popen(
        [sys.executable, "-m", "diffusion_lora", *train_command(100_000, "--out", "run")],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        while process.poll() is None and not (run.is_dir() and [e for e in read_events(run) if e["kind"] == "step"]):
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in complaint
    assert len(complaint.strip().splitlines()) == 1
    assert f"diffusion-lora run {run}" in complaint

    step = max(event["step"] for event in read_events(run) if event["kind"] == "checkpoint")
    done = command_line(*train_command(step + 2, "--out", "run", "--resume"))
    assert done.returncode == 0, done.stderr
    assert f"going on from step {step}" in done.stdout
    assert [event["step"] for event in read_events(run) if event["kind"] == "step"] == list(range(1, step + 3))


@pytest.mark.slow
def test_run_carries_out_a_folder(command_line: CommandLine, folder: Path) -> None:
    """A finished run is left as it is, whoever asks again."""
    assert command_line(*train_command(2, "--out", "run")).returncode == 0
    before = tensor_hash(folder / "run" / "adapter.safetensors")
    again = command_line("run", "run")
    assert again.returncode == 0, again.stderr
    assert tensor_hash(folder / "run" / "adapter.safetensors") == before
    assert "is not a run folder" in command_line("run", "pictures").stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["a cat", "--lora", "x.safetensors:0,one"], "not a list of numbers"),
        (["a cat", "--lora", "x.safetensors:1"], "0 LoRAs have a list"),
        (["a cat", "a dog", "--lora", "x.safetensors:0,1", "--lora", "y.safetensors:0,1"], "give one prompt"),
        (["a cat", "--lora", "x.safetensors:0,1"], "x.safetensors does not exist"),
    ],
)
def test_a_grid_that_makes_no_sense(command_line: CommandLine, arguments: list[str], told: str) -> None:
    done = command_line("grid", *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.cuda
def test_on_a_gpu_bf16_with_8_bit_adam_trains_resumes_and_draws(command_line: CommandLine, folder: Path) -> None:
    """The real thing on the device: 8-bit state, bf16 arithmetic, a resume that changes nothing, pictures."""
    from diffusion_lora.run import Run
    from diffusion_lora.train.checkpoint import checkpoints

    settings = {"train.device": "cuda", "train.precision": "bf16", "lora.rank": "16", "lora.targets": "wide"}
    command = train_command(40, "--out", "run", **settings, **{"checkpoint.every": "20", "checkpoint.keep": "2"})
    run = folder / "run"

    def losses() -> list[float]:
        return [event["loss"] for event in read_events(run) if event["kind"] == "step"]

    whole = command_line(*command)
    assert whole.returncode == 0, whole.stderr
    assert "cuda" in whole.stdout
    assert "AdamW8bit" in whole.stdout
    undisturbed = losses()
    assert len(undisturbed) == 40
    assert sum(undisturbed[-10:]) < sum(undisturbed[:10])

    checkpoints(Run.open(run))[-1][1].unlink()
    resumed = command_line(*command, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "going on from step 20" in resumed.stdout
    assert losses() == pytest.approx(undisturbed, rel=0.02)  # bf16 sums on a GPU have no fixed order
    drawn = command_line(
        "generate", "a red star", "--lora", "run/adapter.safetensors:0.8", "--count", 4, "--device", "cuda"
    )
    assert drawn.returncode == 0, drawn.stderr
    assert len(drawn.stdout.splitlines()) == 4
