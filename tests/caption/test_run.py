"""A captioning as a run: its folder tells everything, an inbox stops it, parts are runs too, and the queue knows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusion_lora.caption.carry_out import carry_out_run
from diffusion_lora.caption_config import CaptionConfig, caption_config, caption_toml, parse_caption_config
from diffusion_lora.caption_run import CaptionRun
from diffusion_lora.data.edits import history, undo
from diffusion_lora.errors import CaptionerError, ConfigError, RunError, RunInterrupted
from diffusion_lora.events import read_events
from diffusion_lora.faces.queue import told_queue
from diffusion_lora.inbox import ask
from diffusion_lora.jobs.store import Queue
from diffusion_lora.run import run_kind
from diffusion_lora.workspace import Workspace
from webui.files import Thumbnails
from webui.queueview import table
from webui.runs import Stories
from webui.watch import Look

torch.set_num_threads(1)
COUNT = 6


@pytest.fixture
def config(tmp_path: Path, saved: Callable[[str], Path]) -> Callable[..., CaptionConfig]:
    """Of a captioning of six pictures by a miniature."""
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(COUNT):
        Image.new("RGB", (16, 16), (number * 40, 255 - number * 40, number)).save(folder / f"{number}.png")

    def of(**settings: object) -> CaptionConfig:
        given = {"folder": str(folder), "captioner": str(saved("pair")), "new_tokens": 4, "batch": 1, "device": "cpu"}
        return caption_config({**given, **settings}, "here")

    return of


def one_after_the_other(folders: Sequence[Path], look: Callable[[], object]) -> None:
    """As processes would, in this one."""
    for folder in folders:
        carry_out_run(CaptionRun.open(folder), one_after_the_other)
        look()


def captions(config: CaptionConfig) -> dict[str, str]:
    return {file.name: file.read_text() for file in Path(config.caption.folder).glob("*.txt")}


def kinds(run: CaptionRun) -> list[str]:
    return list(dict.fromkeys(event["kind"] for event in read_events(run.folder)))


def test_the_settings_are_in_the_folder_and_read_back(config: Callable[..., CaptionConfig], tmp_path: Path) -> None:
    made = config(rules=["regex: ^a => \\1", 'replace: "x" => y'], prefix="zib, ", blacklist=["a", "b"], threshold=0.5)
    assert parse_caption_config(caption_toml(made), "x") == made
    run = CaptionRun.create(tmp_path / "run", made)
    assert CaptionRun.open(run.folder).config == made
    assert run_kind(run.folder) == "caption"
    with pytest.raises(RunError, match="exists already"):
        CaptionRun.create(tmp_path / "run", made)
    for settings, sentence in (
        ({"polcy": "append"}, "did you mean 'caption.policy'"),
        ({"batch": 0}, "caption.batch = 0 is not allowed"),
        ({"shard": [2, 2]}, "the shard 2/2 is not one of 0/2 to 1/2"),
        ({"shard": [0, 2], "processes": 2}, "starts the shards itself"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            config(**settings)
    with pytest.raises(ConfigError, match=r"caption.folder is missing: folder of pictures"):
        caption_config({}, "here")


def test_one_process_and_several_say_the_same_and_tell_it_in_one_folder(
    config: Callable[..., CaptionConfig], tmp_path: Path
) -> None:
    alone = CaptionRun.create(tmp_path / "alone", config(rules=["replace: red => grey"]))
    assert carry_out_run(alone, one_after_the_other).written == COUNT
    told = captions(alone.config)
    events = read_events(alone.folder)
    assert kinds(alone) == ["start", "captioning", "end"]
    assert events[0]["pictures"] == events[-2]["done"] == events[-2]["written"] == events[-1]["written"] == COUNT
    undo(Path(alone.config.caption.folder))

    shared = CaptionRun.create(tmp_path / "shared", config(rules=["replace: red => grey"], processes=3))
    assert carry_out_run(shared, one_after_the_other).written == COUNT
    assert captions(shared.config) == told
    assert read_events(shared.folder)[-1]["written"] == COUNT
    assert kinds(shared)[-1] == "end"
    assert len(list((shared.folder / "shards").iterdir())) == 3
    assert len(history(Path(shared.config.caption.folder))) == 1, "the parts are one edit"


def test_a_request_stops_it_and_the_same_run_goes_on(config: Callable[..., CaptionConfig], tmp_path: Path) -> None:
    run = CaptionRun.create(tmp_path / "run", config())

    def hear(event: dict) -> None:
        if event["kind"] == "captioning" and event["done"] == 2:
            ask(run.folder, "pause")

    with pytest.raises(RunInterrupted, match="paused: 2 captions are written"):
        carry_out_run(run, one_after_the_other, hear)
    last = read_events(run.folder)[-1]
    assert (last["kind"], last["written"]) == ("pause", 2)
    assert carry_out_run(run, one_after_the_other).written == COUNT - 2
    assert len(history(Path(run.config.caption.folder))) == 1


def test_a_part_that_ends_badly_is_the_end_of_the_run(config: Callable[..., CaptionConfig], tmp_path: Path) -> None:
    run = CaptionRun.create(tmp_path / "run", config(processes=2))
    with pytest.raises(CaptionerError, match="one of 2 processes ended badly: it died"):
        carry_out_run(run, lambda folders, look: None)
    assert read_events(run.folder)[-1]["kind"] == "failed"
    assert carry_out_run(run, one_after_the_other).written == COUNT


def test_queue_and_page_show_it_as_any_run(config: Callable[..., CaptionConfig], tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "workspace")
    run = CaptionRun.create(workspace.run_folder("caption-set"), config())
    queue = Queue(workspace)
    assert queue.add("caption-set").kind == "caption"
    carry_out_run(run, one_after_the_other)
    assert f"{COUNT} of {COUNT} pictures" in told_queue(workspace, queue.jobs())
    stories = Stories(workspace)
    assert stories.names() == [], "the Train tab lists trainings"
    shown = table(Look(None, tuple(queue.jobs())), stories, workspace, Thumbnails(workspace))
    assert f"{COUNT} pictures" in shown
    assert "Caption</i>" in shown
    assert 'data-act="cancel"' in shown
