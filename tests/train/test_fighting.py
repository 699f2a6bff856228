"""Pictures that fight the rest: wrong captions come first; looking leaves no trace; it costs what it may."""

from pathlib import Path

import pytest

from diffusion_lora.config import TrainConfig, load_train_config, parse_train_config, shipped, to_toml
from diffusion_lora.events import read_events
from diffusion_lora.lora.adapter import read_adapter
from diffusion_lora.run import Run
from diffusion_lora.train.fighting import look_steps, ranked, sentence
from diffusion_lora.train.trainer import train


def changed(config: TrainConfig, *settings: str) -> TrainConfig:
    return parse_train_config(to_toml(config), source="test", overrides=settings)


def test_a_score_far_from_the_others_stands_out_and_its_caption_is_shown() -> None:
    pictures = [(f"{i}.png", f"a thing, {i}") for i in range(12)]
    scores = [-0.3 + 0.01 * (i % 5) for i in range(10)] + [-0.02, 0.1]
    found = ranked(pictures, scores)
    assert [one.name for one in found[:2]] == ["11.png", "10.png"]
    assert found[1].z > 3.5 > found[2].z
    assert sentence(found[:2]) == (
        'these pictures or their captions fight the rest (11.png: "a thing, 11"; 10.png: "a thing, 10"): '
        "look whether each caption says what is on its picture"
    )


def test_looks_lie_in_the_middles_of_the_run_and_cost_a_twentieth_at_most(config: TrainConfig) -> None:
    settings = ["train.steps=300", "train.batch_size=4"]
    assert look_steps(changed(config, *settings, "validation.picture_looks=3"), 1000) == [50, 150, 250]
    assert look_steps(changed(config, *settings), 1000) == []
    automatic = look_steps(changed(config, *settings), 10)
    assert len(automatic) == 2  # 80 rows a look, of 180: a twentieth of 1200 rows that cost three forward passes each
    assert look_steps(changed(config, *settings, "validation.picture_looks=0"), 10) == []


def test_looking_leaves_no_trace_in_what_is_learned(config: TrainConfig, tmp_path: Path) -> None:
    folder = Path(config.dataset.path)
    for i, path in enumerate(sorted(folder.glob("*.jpg"))):
        for end in (".jpg", ".txt"):
            (folder / f"again{i}{end}").write_bytes(path.with_suffix(end).read_bytes())
    twice = changed(config, "train.steps=4", "validation.pictures=0")
    runs = []
    for looks in (0, 2):
        runs.append(Run.create(tmp_path / f"run{looks}", changed(twice, f"validation.picture_looks={looks}")))
        train(runs[-1], runs[-1].config)
    plain, watched = (read_adapter(run.adapter_path) for run in runs)
    assert plain.allclose(watched, rtol=0, atol=0)
    looks = [event for event in read_events(runs[1].folder) if event["kind"] == "pictures"]
    assert [event["step"] for event in looks] == [1, 3]
    assert len(looks[0]["names"]) == len(looks[0]["scores"]) == 12
    assert len(looks[0]["first"]) == 3


@pytest.mark.parametrize("preset", ["pocket-style", "pocket-subject"])
def test_the_presets_of_the_demo_spend_nothing_on_it(preset: str) -> None:
    shown = load_train_config(shipped("configs", preset))
    assert look_steps(shown, 24) == []
    assert shown.validation.pictures == 0
