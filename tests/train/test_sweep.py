"""Several adapters trained in one pass over the base: each is what it would be alone, and one can fail by itself."""

from pathlib import Path

import pytest
import torch

from diffusion_lora.config import TrainConfig, parse_train_config, to_toml, variants
from diffusion_lora.errors import ConfigError, RunError, RunInterrupted
from diffusion_lora.events import Event, read_events
from diffusion_lora.inbox import ask
from diffusion_lora.lora.adapter import read_adapter
from diffusion_lora.run import Run
from diffusion_lora.train.carry_out import carry_out
from diffusion_lora.train.checkpoint import checkpoints
from diffusion_lora.train.trainer import train
from diffusion_lora.workspace import Workspace

EXACT = ("train.precision=fp32", "optimizer.name=adamw", "output.dtype=fp32")


def changed(config: TrainConfig, *settings: str) -> TrainConfig:
    return parse_train_config(to_toml(config), source="test", overrides=settings)


def steps(run: Run) -> list[dict[str, object]]:
    return [event for event in read_events(run.folder) if event["kind"] == "step"]


def own(run: Run, name: str) -> list[float]:
    return [number for event in steps(run) for number in event["adapters"][name].values()]


def alone(config: TrainConfig, name: str, folder: Path) -> tuple[Run, list[float]]:
    single = variants(config)[name]
    run = Run.create(folder, single)
    train(run, single)
    return run, [number for event in steps(run) for number in (event["loss"], event["grad_norm"])]


SWEEPS = {
    "ranks": ("sweep.lora.rank=[1, 2, 4, 8]", "dataset.flip=true"),
    "rates": ("sweep.optimizer.lr=[1e-2, 3e-2]", "sweep.optimizer.max_grad_norm=[0.1, 0]"),
    "targets": ('sweep.lora.targets=["qv", "wide"]', 'sweep.lora.text_targets=["none", "attention"]'),
    "forms": ('sweep.lora.dora=["off", "output"]', "lora.dropout=0.1", "lora.module_dropout=0.2", "lora.alpha=2"),
    "words": ("word.text=thing", "sweep.optimizer.word_lr=[1e-3, 1e-2]", "optimizer.text_lr=0"),
    "losses": ("sweep.loss.min_snr_gamma=[0, 5]", "sweep.loss.noise_offset=[0, 0.1]"),
}


@pytest.mark.parametrize("sweep", SWEEPS)
def test_side_by_side_each_adapter_is_what_it_is_alone(config: TrainConfig, tmp_path: Path, sweep: str) -> None:
    """Rows, draws, masks, clipping and optimizer are its own: only rounding may tell that it had company."""
    config = changed(config, *EXACT, *SWEEPS[sweep], "train.steps=3", "train.accumulation=2")
    run = Run.create(tmp_path / "run", config)
    train(run, config)
    names = list(variants(config))
    assert len(names) in (2, 4)
    for name in names[:: len(names) - 1]:
        single, story = alone(config, name, tmp_path / name)
        assert own(run, name) == pytest.approx(story, rel=1e-5)
        ours, theirs = read_adapter(run.adapter_file(name)), read_adapter(single.adapter_path)
        assert ours.allclose(theirs, rtol=1e-3, atol=1e-4)
        assert ours.metadata["ss_network_dim"] == theirs.metadata["ss_network_dim"]
        assert ours.metadata["ss_output_name"] == theirs.metadata["ss_output_name"] == f"adapter-{name}"


@pytest.mark.parametrize("optimizer", ["adamw8bit", "adamw"])
def test_a_sweep_that_is_stopped_twice_ends_as_if_nothing_had_happened(
    config: TrainConfig, tmp_path: Path, optimizer: str
) -> None:
    config = changed(
        config, "sweep.lora.rank=[2, 4]", "lora.rank_dropout=0.2", "dataset.flip=true", f"optimizer.name={optimizer}"
    )
    config = changed(config, "train.steps=5")
    whole = Run.create(tmp_path / "whole", config)
    train(whole, config)
    run = Run.create(tmp_path / "run", config)
    for at in (2, 4):
        with pytest.raises(RunInterrupted):
            train(run, config, resume=True, progress=stop_at(run, at))
    train(run, config, resume=True)
    assert [own(run, name) for name in ("rank2", "rank4")] == [own(whole, name) for name in ("rank2", "rank4")]
    ours, theirs = (torch.load(checkpoints(one)[-1][1], weights_only=True)["side_by_side"] for one in (run, whole))
    for name in ("rank2", "rank4"):
        segments = theirs[name]["segments"]
        assert all(torch.equal(ours[name]["segments"][group], segments[group]) for group in segments)
        assert read_adapter(run.adapter_file(name)).allclose(read_adapter(whole.adapter_file(name)))


def stop_at(run: Run, step: int):
    def progress(event: Event) -> None:
        if event["kind"] == "step" and event["step"] == step:
            ask(run.folder, "stop")

    return progress


def test_one_that_diverges_leaves_the_others_alone(config: TrainConfig, tmp_path: Path) -> None:
    """Two rates of three are too high: the third adapter is what it would have been, and the table says who failed."""
    config = changed(config, *EXACT, "sweep.optimizer.lr=[1e30, 1e-2, 1e31]", "train.steps=4")
    config = changed(config, "optimizer.warmup_steps=0", "checkpoint.every=2")
    run = Run.create(tmp_path / "run", config)
    assert train(run, config) == run.adapter_file("lr0.01")
    single, story = alone(config, "lr0.01", tmp_path / "alone")
    assert own(run, "lr0.01") == pytest.approx(story, rel=1e-5)
    assert read_adapter(run.adapter_file("lr0.01")).allclose(read_adapter(single.adapter_path), atol=1e-4)
    assert [path.name for path in run.folder.glob("*.safetensors")] == ["adapter-lr0.01.safetensors"]
    notes = [event["text"] for event in read_events(run.folder) if event["kind"] == "note"]
    assert [note.split(" ")[0] for note in notes[-2:]] == ["lr1e+30", "lr1e+31"]
    assert all("; the other adapters go on" in note for note in notes[-2:])
    rows = next(event["rows"] for event in read_events(run.folder) if event["kind"] == "sweep")
    assert [row["diverged_at"] for row in rows] == [1, None, 1]
    # Going on keeps to it: what has diverged is not taken up again.
    longer = changed(config, "train.steps=5", "optimizer.schedule=cosine")
    train(Run.resume(run.folder, longer), longer, resume=True)
    assert set(steps(run)[-1]["adapters"]) == {"lr0.01"}

    hopeless = changed(config, "sweep.optimizer.lr=[1e30, 1e31]")
    with pytest.raises(RunError, match="stopped in step 2: "):
        train(Run.create(tmp_path / "hopeless", hopeless), hopeless)


def test_a_sweep_is_compared_published_and_previewed(config: TrainConfig, tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "workspace")
    config = changed(config, "sweep.lora.rank=[2, 8]", "output.name=mine", "preview.every=3", "preview.steps=1")
    config = changed(config, 'preview.prompts=["a red thing"]')
    run = Run.create(workspace.run_folder("mine"), config)
    assert Run.open(run.folder).config == config
    assert carry_out(run, resume=False) == workspace.loras / "mine-rank2.safetensors"
    assert sorted(path.stem for path in workspace.loras.iterdir()) == ["mine-rank2", "mine-rank8"]
    previews = next(event["paths"] for event in read_events(run.folder) if event["kind"] == "preview")
    assert previews == ["previews/step-000003-rank2-0.png", "previews/step-000003-rank8-0.png"]
    first, second = ((run.folder / path).read_bytes() for path in previews)
    assert first != second
    rows = next(event["rows"] for event in read_events(run.folder) if event["kind"] == "sweep")
    assert [row["settings"] for row in rows] == [{"lora.rank": 2}, {"lora.rank": 8}]
    for row in rows:
        adapter = read_adapter(run.folder / row["path"])
        assert row["bytes"] == (run.folder / row["path"]).stat().st_size
        change = sum(layer.norm() ** 2 for layer in adapter.layers.values()) ** 0.5
        assert row["change"] == pytest.approx(change, rel=1e-2)
        assert row["loss"] == steps(run)[-1]["adapters"][row["name"]]["loss"]
    assert rows[0]["bytes"] < rows[1]["bytes"]
    log = (run.folder / "log.txt").read_text(encoding="utf-8")
    assert "  adapter    loss" in " ".join(log.split(" ")), log

    # Carried on, it takes the places it has.
    longer = changed(config, "train.steps=4")
    carry_out(Run.resume(run.folder, longer), resume=True)
    assert len(list(workspace.loras.iterdir())) == 2


def test_what_cannot_be_swept_is_told(config: TrainConfig) -> None:
    for setting, sentence in (
        ("sweep.train.steps=[1, 2]", "train.steps cannot be swept"),
        ("sweep.loss.zero_terminal_snr=[false, true]", "loss.zero_terminal_snr cannot be swept"),
        ("sweep.dataset.path=['a', 'b']", "dataset.path cannot be swept"),
        ("sweep.lora.rank=4", r"sweep.lora.rank = 4 must be a list of values"),
        ("sweep.lora.rank=[]", "must be a list of values"),
        ("sweep.lora.rank=[4, 0]", r"lora.rank = 0 is not allowed: it must be a whole number, at least 1"),
        ("sweep.lora.rank=[4, 4]", "holds a value twice"),
        ("sweep.lora.rnak=[4]", "unknown key 'lora.rnak'; did you mean 'lora.rank'"),
        (f"sweep.lora.rank={list(range(1, 70))}", "makes 69 adapters: 64 side by side are the most"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            changed(config, setting)


def test_values_become_names_of_files(config: TrainConfig) -> None:
    swept = changed(
        config, 'sweep.lora.targets=["attention+mlp", [".attn1.", "proj_in"]]', "sweep.optimizer.lr=[1e-4, 0.002]"
    )
    assert list(variants(swept)) == [
        "targets-attention+mlp-lr0.0001",
        "targets-attention+mlp-lr0.002",
        "targets-.attn1._proj_in-lr0.0001",
        "targets-.attn1._proj_in-lr0.002",
    ]
    assert parse_train_config(to_toml(swept), source="test") == swept
    in_toml = to_toml(config) + "\n[sweep]\nlora.rank = [4, 8]\n'optimizer.lr' = [1e-4]\n"
    assert parse_train_config(in_toml, source="test").sweep == {"lora.rank": (4, 8), "optimizer.lr": (1e-4,)}


def test_a_run_goes_on_with_its_own_sweep_only(config: TrainConfig, tmp_path: Path) -> None:
    config = changed(config, "sweep.lora.rank=[2, 4]", "train.steps=1")
    run = Run.create(tmp_path / "run", config)
    train(run, config)
    other = changed(config, "sweep.lora.rank=[2, 8]")
    with pytest.raises(RunError, match="was started with sweep = "):
        Run.resume(run.folder, other)
    with pytest.raises(RunError, match=r"made with another \[sweep\]"):
        train(run, other, resume=True)
