"""Validation: held-out pictures are not trained on, measured without a trace, and say when to stop."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_lora.config import TrainConfig, parse_train_config, to_toml
from diffusion_lora.data.held_out import held_out_count
from diffusion_lora.events import read_events
from diffusion_lora.lora.adapter import read_adapter
from diffusion_lora.run import Run
from diffusion_lora.train.trainer import train


def changed(config: TrainConfig, *settings: str) -> TrainConfig:
    return parse_train_config(to_toml(config), source="test", overrides=settings)


def trained(folder: Path, config: TrainConfig) -> Run:
    run = Run.create(folder, config)
    train(run, config)
    return run


def told(run: Run, kind: str) -> list[dict[str, object]]:
    return [event for event in read_events(run.folder) if event["kind"] == kind]


@pytest.mark.parametrize(("pictures", "wanted", "held"), [(11, -1, 0), (12, -1, 2), (24, -1, 2), (40, -1, 4),
                                                          (5000, -1, 32), (24, 0, 0), (6, 3, 3), (3, 9, 2)])
def test_a_small_share_is_held_out_from_twelve_pictures_up(pictures: int, wanted: int, held: int) -> None:
    assert held_out_count(pictures, wanted) == held


def test_held_out_pictures_are_never_trained_on_and_stay_the_same_when_others_come(
    config: TrainConfig, pictures: Path, tmp_path: Path
) -> None:
    """Twelve pictures: the split is automatic. A leak would show as a held-out name among the trained ones."""
    for i in range(6):
        pixels = np.random.default_rng(90 + i).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"more{i}.png")
        (pictures / f"more{i}.txt").write_text(f"more {i}", encoding="utf-8")
    run = trained(tmp_path / "run", changed(config, "train.steps=2"))
    adapter = read_adapter(run.adapter_path)
    assert adapter.metadata["ss_num_train_images"] == "10"
    assert [event["step"] for event in told(run, "validation")] == [0, 1, 2]
    assert all(event["pictures"] == 2 for event in told(run, "validation"))


def test_measuring_leaves_no_trace_in_what_is_learned_and_repeats_itself(config: TrainConfig, tmp_path: Path) -> None:
    """Also with an average that is measured in place of the weights, with dropout and a text encoder that stops."""
    settings = ["train.steps=6", "validation.pictures=2", "optimizer.ema_decay=0.9", "lora.dropout=0.1",
                "optimizer.text_stop_step=3", "optimizer.warmup_steps=0"]  # fmt: skip
    often = trained(tmp_path / "often", changed(config, *settings, "validation.every=1"))
    rarely = trained(tmp_path / "rarely", changed(config, *settings, "validation.every=6"))
    assert [e["loss"] for e in told(often, "step")] == [e["loss"] for e in told(rarely, "step")]
    assert read_adapter(often.adapter_path).allclose(read_adapter(rarely.adapter_path), rtol=0, atol=0)
    measured = {event["step"]: event["loss"] for event in told(often, "validation")}
    assert [event["loss"] for event in told(rarely, "validation")] == [measured[0], measured[6]]
    assert len(set(measured.values())) > 4


def test_early_stop_ends_the_run_where_the_loss_turned_with_the_best_adapter(
    config: TrainConfig, tmp_path: Path
) -> None:
    """Pictures of noise teach nothing that holds for others: learnt by heart, they make held-out ones worse."""
    settings = changed(
        config, "train.steps=100", "train.batch_size=4", "validation.pictures=2", "validation.every=3",
        "validation.patience=2", "validation.timesteps=4", "optimizer.lr=0.1", "optimizer.schedule=constant",
    )  # fmt: skip
    run = trained(tmp_path / "run", settings)
    course = [(int(str(e["step"])), float(str(e["loss"]))) for e in told(run, "validation")]
    best_step, best = min(course[1:], key=lambda pair: pair[1])
    end = int(str(told(run, "end")[0]["step"]))
    assert end < 100
    assert end == best_step + 2 * 3
    assert course[-1][1] > best
    kept = read_adapter(run.folder / "best.safetensors")
    assert kept.metadata["ss_steps"] == str(best_step)
    assert run.adapter_path.read_bytes() == (run.folder / "best.safetensors").read_bytes()
    notes = " | ".join(str(event["text"]) for event in told(run, "note"))
    assert f"stopped early, after step {end}" in notes
    assert f"the loss was lowest after step {best_step}" in notes


def test_each_adapter_of_a_sweep_is_measured_on_its_own(config: TrainConfig, tmp_path: Path) -> None:
    """Side by side, the measured numbers are those of each trained alone."""
    exact = changed(config, "train.precision=fp32", "optimizer.name=adamw", "validation.pictures=2")
    alone = trained(tmp_path / "alone", changed(exact, "lora.rank=2"))
    swept = to_toml(exact) + "\n[sweep]\nlora.rank = [2, 4]\n"
    both = trained(tmp_path / "both", parse_train_config(swept, source="test"))
    own = [event["adapters"]["rank2"] for event in told(both, "validation")]  # type: ignore[index]
    assert own == pytest.approx([event["loss"] for event in told(alone, "validation")], rel=1e-4)
