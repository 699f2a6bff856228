"""A run from its folder to the shelf: asked to stop, pause and sample, published once, its end always told."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from diffusion_lora.config import TrainConfig, parse_train_config, to_toml
from diffusion_lora.errors import DatasetError, OutputError, RunError, RunInterrupted
from diffusion_lora.events import Event, read_events
from diffusion_lora.inbox import ask
from diffusion_lora.lora.adapter import read_adapter
from diffusion_lora.lora.header import read_header
from diffusion_lora.run import Run, run_owner
from diffusion_lora.train.carry_out import carry_out
from diffusion_lora.train.checkpoint import checkpoints
from diffusion_lora.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "workspace")


def changed(config: TrainConfig, *settings: str) -> TrainConfig:
    return parse_train_config(to_toml(config), source="test", overrides=settings)


def at_step(step: int, do: Callable[[], object]) -> Callable[[Event], None]:
    def progress(event: Event) -> None:
        if event["kind"] == "step" and event["step"] == step:
            do()

    return progress


def kinds(run: Run) -> list[str]:
    """What happened, but for steps, and for notes, which differ from machine to machine (a processor without bf16)."""
    events = read_events(run.folder, current=False)
    return [event["kind"] for event in events if event["kind"] not in ("step", "note")]


def losses(run: Run) -> list[tuple[int, float]]:
    return [(event["step"], event["loss"]) for event in read_events(run.folder) if event["kind"] == "step"]


def test_a_run_outside_a_workspace_is_published_nowhere(config: TrainConfig, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "runs" / "a", config)
    assert carry_out(run, resume=False) == run.adapter_path
    assert kinds(run) == ["start", "checkpoint", "parity", "end"]
    assert run_owner(run.folder) is None


@pytest.mark.parametrize("request_", ["stop", "pause"])
def test_asked_to_end_it_saves_and_goes_on_as_if_nothing_had_happened(
    config: TrainConfig, workspace: Workspace, tmp_path: Path, request_: str
) -> None:
    """A stopped run can be tried at once; a paused one is not on the shelf. Either way no step is lost."""
    config = changed(config, "train.steps=5", "output.name=mine")
    whole = Run.create(tmp_path / "whole", config)
    carry_out(whole, resume=False)
    run = Run.create(workspace.run_folder("a"), config)
    ask(run.folder, "stop")  # meant for an earlier process: this one does not hear it
    with pytest.raises(RunInterrupted, match=f"saved at step 2 of 5; go on with: diffusion-lora run {run.folder}"):
        carry_out(run, resume=False, progress=at_step(2, lambda: ask(run.folder, request_)))
    ending = next(event for event in read_events(run.folder) if event["kind"] == request_)
    assert (ending["step"], ending["reason"]) == (2, f"asked to {request_}")
    assert [step for step, _ in checkpoints(run)] == [2]
    assert read_header(run.adapter_path).metadata["ss_steps"] == "2"
    shelf = workspace.loras / "mine.safetensors"
    assert shelf.exists() == (request_ == "stop")

    assert carry_out(run, resume=True) == shelf
    assert losses(run) == losses(whole)
    assert read_adapter(shelf).allclose(read_adapter(whole.adapter_path))
    assert [path.name for path in workspace.loras.iterdir()] == ["mine.safetensors"]


def test_a_sample_is_drawn_when_asked_for_and_changes_nothing(config: TrainConfig, tmp_path: Path) -> None:
    """Without prompts in the configuration, the first captions are drawn."""
    config = changed(config, "preview.steps=2")
    plain = Run.create(tmp_path / "plain", config)
    carry_out(plain, resume=False)
    run = Run.create(tmp_path / "run", config)
    carry_out(run, resume=False, progress=at_step(2, lambda: ask(run.folder, "sample")))
    preview = next(event for event in read_events(run.folder) if event["kind"] == "preview")
    assert preview["step"] == 2
    assert len(preview["paths"]) == 4
    with Image.open(run.folder / preview["paths"][0]) as picture:
        assert picture.size == (64, 64)
    assert losses(run) == losses(plain)


def test_a_longer_run_takes_the_place_of_its_shorter_self(config: TrainConfig, workspace: Workspace) -> None:
    config = changed(config, "output.name=mine")
    run = Run.create(workspace.run_folder("a"), config)
    first = carry_out(run, resume=False)
    assert first == workspace.loras / "mine.safetensors"
    short = first.read_bytes()
    longer = Run.resume(run.folder, changed(config, "train.steps=4"))
    assert carry_out(longer, resume=True) == first
    assert first.read_bytes() != short

    other = Run.create(workspace.run_folder("b"), config)
    second = carry_out(other, resume=False)
    assert second.name == "mine-2.safetensors"
    assert [event["text"] for event in read_events(other.folder) if event["kind"] == "note"][-1] == (
        "there is a LoRA mine already: this one is called mine-2"
    )


def test_one_process_a_folder(config: TrainConfig, tmp_path: Path) -> None:
    """And the one that is refused leaves no trace in the story of the one at work."""
    run = Run.create(tmp_path / "run", config)
    refused: list[str] = []

    def second() -> None:
        for again in (
            lambda: carry_out(run, resume=True),
            lambda: Run.create(run.folder, config),
            lambda: Run.resume(run.folder, changed(config, "train.steps=9")),
        ):
            with pytest.raises(RunError, match=r"the process \d+ is at work on the run in .* already") as caught:
                again()
            refused.append(str(caught.value))

    carry_out(run, resume=False, progress=at_step(1, second))
    assert len(refused) == 3
    assert kinds(run) == ["start", "checkpoint", "parity", "end"]
    assert Run.open(run.folder).config == config


def test_a_run_that_fails_says_why_in_its_folder(config: TrainConfig, workspace: Workspace) -> None:
    run = Run.create(workspace.run_folder("a"), changed(config, "dataset.path=/nowhere/at-all"))
    with pytest.raises(DatasetError) as caught:
        carry_out(run, resume=False)
    assert read_events(run.folder)[-1]["kind"] == "failed"
    assert read_events(run.folder)[-1]["text"] == str(caught.value)

    # A name that could not be published is refused before the first step, not after the last one.
    run = Run.create(workspace.run_folder("b"), changed(config, "output.name=con"))
    with pytest.raises(OutputError, match="'con' cannot be a file's"):
        carry_out(run, resume=False)
    assert kinds(run) == ["failed"]


def test_a_bug_is_told_as_one(config: TrainConfig, workspace: Workspace) -> None:
    run = Run.create(workspace.run_folder("a"), config)
    with pytest.raises(ZeroDivisionError):
        carry_out(run, resume=False, progress=at_step(2, lambda: 1 // 0))
    last = read_events(run.folder)[-1]
    assert (last["kind"], last["text"].split(":")[:2]) == ("failed", ["died", " ZeroDivisionError"])
    assert "Traceback" in (run.folder / "log.txt").read_text(encoding="utf-8")
    assert carry_out(run, resume=True).exists()
    assert [step for step, _ in losses(run)] == [1, 2, 3]


def test_ctrl_c_before_the_first_step_is_no_riddle(config: TrainConfig, tmp_path: Path) -> None:
    def press(event: Event) -> None:
        if event["kind"] == "start":
            raise KeyboardInterrupt

    run = Run.create(tmp_path / "run", config)
    with pytest.raises(KeyboardInterrupt):
        carry_out(run, resume=False, progress=press)
    assert kinds(run) == ["start", "stop"]
