"""The run folder: nothing is written over, files are whole or old, and a resumed story has no loops."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_lora.config import TrainConfig, load_train_config, parse_train_config, shipped
from diffusion_lora.errors import OutputError, RunError
from diffusion_lora.events import read_events
from diffusion_lora.run import Run, write_atomically


@pytest.fixture
def config() -> TrainConfig:
    return parse_train_config("[dataset]\npath = '/pictures'\n", source="test")


def changed(config: TrainConfig, table: str, **values: object) -> TrainConfig:
    return config.model_copy(update={table: getattr(config, table).model_copy(update=values)})


def test_a_run_opens_with_the_configuration_it_was_created_with(config: TrainConfig, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "a" / "run", config)
    assert Run.open(run.folder) == run


def test_a_folder_that_holds_anything_is_not_taken(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(RunError, match="is not empty: add --resume"):
        Run.create(tmp_path, config)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_an_output_path_below_a_file_names_that_file(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for folder in (tmp_path / "file", tmp_path / "file" / "deep" / "run"):
        with pytest.raises(OutputError, match="file is a file; choose another place"):
            Run.create(folder, config)


def test_no_run_in_a_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a run folder: it has no config\.toml"):
        Run.open(tmp_path / "nothing")


def test_a_run_may_grow_but_not_become_another_run(config: TrainConfig, tmp_path: Path) -> None:
    """If the rank could change on the way, the second half would not be the run that the folder describes."""
    run = Run.create(tmp_path / "run", config)
    run.emit("step", step=1, loss=1.0)
    before = (run.folder / "config.toml").read_bytes()
    with pytest.raises(RunError, match=r"was started with lora\.rank = 16, not 8"):
        Run.resume(run.folder, changed(config, "lora", rank=8))
    longer = Run.resume(run.folder, changed(config, "train", steps=2000))
    assert Run.open(run.folder).config == longer.config
    assert (run.folder / "config.1.toml").read_bytes() == before
    Run.resume(run.folder, longer.config)
    assert not (run.folder / "config.2.toml").exists()


def test_a_run_that_ended_before_its_first_step_may_be_started_anew(config: TrainConfig, tmp_path: Path) -> None:
    """Else a misspelt dataset.path would block the folder: not empty, and not to be resumed with another path."""
    run = Run.create(tmp_path / "run", config)
    run.emit("problem", picture="a.png", text="broken")
    mended = changed(config, "dataset", path="/mended")
    assert Run.create(run.folder, mended).config == Run.open(run.folder).config == mended
    assert Run.resume(run.folder, config).config == config
    (run.folder / "precious.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(RunError, match="is not empty"):
        Run.create(run.folder, config)


def test_resuming_an_empty_folder_starts_a_run(config: TrainConfig, tmp_path: Path) -> None:
    assert Run.resume(tmp_path, config).folder == tmp_path


@pytest.mark.parametrize("preset", ["pocket-style", "pocket-subject"])
def test_a_run_from_before_presets_said_their_kind_goes_on_by_its_preset(preset: str, tmp_path: Path) -> None:
    """The kind is told in the file alone: a run folder without it is still the preset's."""
    new = load_train_config(shipped("configs", preset))
    run = Run.create(tmp_path / "run", new)
    run.emit("step", step=1, loss=1.0)
    written = run.folder / "config.toml"
    lines = written.read_text(encoding="utf-8").splitlines(keepends=True)
    old = [line for line in lines if line != next(k for k in lines if k.startswith(f'kind = "{new.output.kind}"'))]
    written.write_text("".join(old), encoding="utf-8")
    assert Run.open(run.folder).config.output.kind == ""
    assert Run.resume(run.folder, new).config == new


def test_events_after_the_step_that_was_resumed_are_superseded(config: TrainConfig, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", config)
    for step in (1, 2):
        run.emit("step", step=step, loss=float(step))
    run.emit("checkpoint", step=2, path="x")
    run.emit("step", step=3, loss=3.0)
    run.emit("stop", step=2, reason="asked to stop")
    run.emit("resume", step=2)
    run.emit("step", step=3, loss=33.0)
    current = [(event["kind"], event["step"], event.get("loss")) for event in read_events(run.folder)]
    assert current == [
        ("step", 1, 1.0), ("step", 2, 2.0), ("checkpoint", 2, None), ("resume", 2, None), ("step", 3, 33.0),
    ]  # fmt: skip
    assert len(read_events(run.folder, current=False)) == 7


def test_a_line_torn_by_a_crash_costs_that_line_only(config: TrainConfig, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", config)
    run.emit("step", step=1, loss=1.0)
    with (run.folder / "events.jsonl").open("ab") as file:
        file.write(b'{"kind": "st')
    run.emit("step", step=2, loss=2.0)
    assert [event["step"] for event in read_events(run.folder)] == [1, 2]


def test_an_event_holds_json_only(config: TrainConfig, tmp_path: Path) -> None:
    """A bare NaN in the file would be no JSON and break other readers."""
    run = Run.create(tmp_path / "run", config)
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.emit("step", step=1, loss=float("nan"))
    assert json.loads(json.dumps(run.emit("note", text="ü"))) == read_events(run.folder)[0]


FILL = """
import resource, sys
from pathlib import Path
from diffusion_lora.errors import OutputError
from diffusion_lora.run import write_atomically
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomically(Path(sys.argv[1]), b"x" * 5000)
except OutputError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_previous_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    write_atomically(path, b"old")
    done = subprocess.run([sys.executable, "-c", FILL, str(path)], capture_output=True, text=True, check=True)
    assert f"cannot write {path}: File too large" in done.stdout
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_written_file_is_readable_by_others(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"x")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644
