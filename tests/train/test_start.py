"""Where a run begins: at any of its checkpoints, from a LoRA that exists, on top of LoRAs that are part of the base."""

import math
from pathlib import Path

import pytest
import torch

from diffusion_lora.config import TrainConfig, parse_train_config, to_toml
from diffusion_lora.errors import AdapterFileError, ConfigError, RunError
from diffusion_lora.events import read_events
from diffusion_lora.families.family import load_base
from diffusion_lora.lora.adapter import Adapter, read_adapter, write_adapter
from diffusion_lora.lora.bank import AdapterBank
from diffusion_lora.run import Run
from diffusion_lora.train.carry_out import carry_out
from diffusion_lora.train.checkpoint import checkpoints
from diffusion_lora.train.prepare import prepare
from diffusion_lora.train.trainer import train
from diffusion_lora.workspace import Workspace


def changed(config: TrainConfig, *settings: str) -> TrainConfig:
    return parse_train_config(to_toml(config), source="test", overrides=settings)


def story(run: Run) -> list[tuple[int, float]]:
    return [(event["step"], event["loss"]) for event in read_events(run.folder) if event["kind"] == "step"]


def started(config: TrainConfig) -> Adapter:
    """The adapter as it is before its first step."""
    return prepare(config, on_problem=lambda picture, why: None).adapter.adapter()


@pytest.fixture
def trained(config: TrainConfig, tmp_path: Path) -> Path:
    """A LoRA of rank 4 on the attention layers, in fp32."""
    config = changed(config, "output.dtype=fp32", "output.name=first")
    return train(Run.create(tmp_path / "first", config), config)


# --- from any checkpoint ----------------------------------------------------------------------------------------------


def test_a_run_goes_on_from_any_of_its_checkpoints(config: TrainConfig, tmp_path: Path) -> None:
    config = changed(config, "train.steps=5", "checkpoint.every=1", "checkpoint.keep=4", "output.dtype=fp32")
    run = Run.create(tmp_path / "run", config)
    whole = read_adapter(train(run, config)), story(run)
    train(run, config, from_step=3)
    assert (read_adapter(run.adapter_path).allclose(whole[0]), story(run)) == (True, whole[1])
    resumes = [event["step"] for event in read_events(run.folder, current=False) if event["kind"] == "resume"]
    assert resumes == [3]
    aside = run.folder / "checkpoints" / "set-aside-1"
    assert sorted(path.name for path in aside.iterdir()) == ["step-00000004.pt", "step-00000005.pt"]
    # Had it been stopped before its next save, it would go on from step 3, not from what it had left behind.
    with pytest.raises(RunError, match="has no checkpoint of step 1, those of these steps are there: 2, 3, 4, 5"):
        carry_out(run, resume=True, from_step=1)
    assert [step for step, _ in checkpoints(run)] == [2, 3, 4, 5]


# --- from a LoRA ------------------------------------------------------------------------------------------------------


def test_training_starts_with_the_numbers_of_a_lora(config: TrainConfig, trained: Path, tmp_path: Path) -> None:
    config = changed(config, f"lora.start_from={trained}", "output.dtype=fp32")
    assert started(config).allclose(read_adapter(trained))
    run = Run.create(tmp_path / "run", config)
    train(run, config)
    assert story(run)[0][1] != story(Run.open(trained.parent))[0][1]
    # Going on reads the checkpoint: the file may be gone by then.
    trained.unlink()
    longer = changed(config, "train.steps=4")
    train(Run.resume(run.folder, longer), longer, resume=True)
    assert [step for step, _ in story(run)] == [1, 2, 3, 4]
    with pytest.raises(AdapterFileError, match=r"lora\.start_from: there is no file"):
        train(Run.create(tmp_path / "other", config), config)


def test_a_wider_start_at_another_scale_is_the_same_change(config: TrainConfig, trained: Path) -> None:
    """Rank 4 and scale 1 into rank 6 and scale 2: rows that are new change nothing yet, and can learn."""
    config = changed(config, f"lora.start_from={trained}", "lora.rank=6", "lora.alpha=12", "lora.targets=attention+mlp")
    wide, source = started(config), read_adapter(trained)
    for key, layer in source.layers.items():
        assert torch.allclose(wide.layers[key].delta(), layer.delta(), atol=1e-6)
        assert wide.layers[key].down[4:].abs().max() > 0
    fresh = wide.layers.keys() - source.layers.keys()
    assert fresh
    assert all(wide.layers[key].up.abs().max() == 0 for key in fresh)


def test_a_dora_is_gone_on_with_and_what_does_not_fit_is_refused(
    config: TrainConfig, trained: Path, tmp_path: Path
) -> None:
    dora = changed(config, "lora.dora=output", "output.dtype=fp32")
    file = train(Run.create(tmp_path / "dora", dora), dora)
    assert started(changed(dora, f"lora.start_from={file}")).allclose(read_adapter(file), atol=1e-6)
    for settings, sentence in (
        ([f"lora.start_from={file}"], 'asks for lora.dora = "output", not "off"'),
        ([f"lora.start_from={trained}", "lora.rank=2"], "has rank 4 and lora.rank gives it 2: set lora.rank = 4"),
        ([f"lora.start_from={trained}", "lora.targets=qv"], "are not trained here, the first is unet"),
        ([f"lora.start_from={trained}", "lora.text_targets=none"], "are not trained here, the first is te"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            started(changed(config, *settings))
    with pytest.raises(ConfigError, match="exclude each other"):
        changed(config, f"lora.start_from={trained}", "lora.initial=pissa")


# --- on top of folded LoRAs -------------------------------------------------------------------------------------------


def test_a_base_with_a_lora_in_it_trains_as_one_that_was_made_so(
    config: TrainConfig, trained: Path, tmp_path: Path
) -> None:
    """The first loss is that of the mix: nothing of the second adapter acts yet. The file says what it stands on."""
    config = changed(config, "train.precision=fp32", "output.dtype=fp32")
    plain = prepare(config, on_problem=lambda picture, why: None).model
    folded = prepare(changed(config, f"model.fold=[['{trained}', 0.8]]"), on_problem=lambda picture, why: None)
    weights = read_adapter(trained)
    key = next(key for key in weights.layers if key.startswith("unet."))
    mixed = load_base(config.model.base, device="cpu", dtype="fp32")
    bank = AdapterBank(mixed.components, "tiny")
    bank.load("a", weights)
    latents, steps = torch.randn(2, *plain.latent_shape(64, 64)), torch.tensor([10, 900])
    hidden = torch.randn(2, 77, 32)
    with torch.no_grad(), bank.mix({"a": 0.8}):
        wanted = mixed.unet(latents, steps, hidden).sample
    with torch.no_grad():
        got = folded.model.unet(latents, steps, hidden).sample
        untouched = plain.unet(latents, steps, hidden).sample
    assert torch.allclose(got, wanted, atol=1e-5)
    assert not torch.allclose(got, untouched, atol=1e-4)
    assert key in folded.adapter.layers

    config = changed(config, f"model.fold=[['{trained}', 0.8]]", "output.name=second")
    run = Run.create(tmp_path / "run", config)
    second = read_adapter(train(run, config))
    assert second.metadata["ss_training_comment"] == "trained on top of adapter:0.8"
    notes = " ".join(event["text"] for event in read_events(run.folder) if event["kind"] == "note")
    assert "made for the base with adapter at 0.8 in it" in notes
    assert math.isfinite(story(run)[-1][1])

    # Another file under the same name would be another base: going on notices.
    longer = changed(config, "train.steps=4")
    write_adapter(second, trained)
    with pytest.raises(RunError, match=r"are not those that the checkpoint .* was made with"):
        train(Run.resume(run.folder, longer), longer, resume=True)


def test_loras_are_found_by_their_names_in_the_workspace(config: TrainConfig, trained: Path, tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "workspace")
    workspace.publish(trained, "mine")
    config = changed(config, "model.fold=[['mine', 0.5]]", "lora.start_from=mine", "train.steps=1")
    run = Run.create(workspace.run_folder("a"), config)
    train(run, config)
    lost = changed(config, "model.fold=[['other', 0.5]]")
    with pytest.raises(AdapterFileError, match=r"model\.fold: there is no file other, nor a LoRA of this name in .*s"):
        train(Run.create(workspace.run_folder("b"), lost), lost)
