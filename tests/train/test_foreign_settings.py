"""Settings from elsewhere: what has an equal is taken over, what has none is listed, the result starts."""

import json
import os
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from diffusion_lora.config import TrainConfig, parse_train_config, to_toml
from diffusion_lora.errors import ConfigError
from diffusion_lora.run import Run
from diffusion_lora.train.foreign_kohya import from_metadata
from diffusion_lora.train.foreign_settings import foreign_toml, read_foreign
from diffusion_lora.train.trainer import train

HERE = Path(__file__).parent / "foreign"
CHECKOUT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("LORA_TEST_DATA", CHECKOUT.parent / "shared" / "data"))
CommandLine = Callable[..., "subprocess.CompletedProcess[str]"]


def starts(config: TrainConfig, base: Path, pictures: Path, folder: Path) -> None:
    """Two steps of it, with base, pictures and device of this test."""
    settings = [f"model.base={base}", f"dataset.path={pictures}", "dataset.layout=flat", "dataset.size_px=64",
                "train.steps=2", "train.device=cpu", "train.threads=1", "optimizer.warmup_steps=0"]  # fmt: skip
    short = parse_train_config(to_toml(config), source="test", overrides=settings)
    train(Run.create(folder, short), short)


def test_a_kohya_ss_form_is_taken_over_and_starts(base: Path, pictures: Path, tmp_path: Path) -> None:
    foreign = read_foreign(HERE / "kohya_ss.json")
    config = foreign.config
    assert (config.lora.rank, config.lora.alpha, config.lora.dropout, config.lora.conv_rank) == (32, 16.0, 0.1, 0)
    assert (config.optimizer.lr, config.optimizer.text_lr, config.optimizer.warmup_steps) == (2e-4, 5e-5, 120)
    assert (config.optimizer.name, config.optimizer.weight_decay, config.optimizer.betas) == (
        "adamw8bit", 0.05, (0.9, 0.99))  # fmt: skip
    assert (config.optimizer.schedule, config.optimizer.cycles) == ("cosine-restarts", 2)
    train_table = config.train
    assert (train_table.steps, train_table.batch_size, train_table.accumulation, train_table.seed) == (1200, 4, 2, 1234)
    assert (config.dataset.path, config.dataset.layout, config.dataset.size_px) == ("/data/img", "kohya", 624)
    assert (config.dataset.shuffle, config.dataset.keep_first, config.dataset.flip) == (True, 1, True)
    assert (config.dataset.caption_tokens, config.dataset.enlarge) == (150, False)
    assert (config.loss.min_snr_gamma, config.loss.pyramid_noise, config.loss.pyramid_levels) == (5.0, 0.3, 6)
    lost = " | ".join(foreign.lost)
    for key in ("clip_skip = 2", "scale_weight_norms = 1", "v_parameterization = True", "noise_offset_type"):
        assert key in lost
    assert "xformers" not in lost
    assert len(foreign.lost) == 4
    starts(config, base, pictures, tmp_path / "run")


def test_a_onetrainer_preset_is_taken_over_and_starts(base: Path, pictures: Path, tmp_path: Path) -> None:
    foreign = read_foreign(HERE / "onetrainer.json")
    config = foreign.config
    lora = config.lora
    assert (lora.rank, lora.alpha, lora.dora, lora.text_targets) == (16, 1.0, "input", "none")
    assert (config.optimizer.lr, config.optimizer.text_lr, config.optimizer.warmup_steps) == (3e-4, 0.0, 200)
    assert (config.optimizer.name, config.optimizer.weight_decay) == ("adamw8bit", 0.02)
    assert (config.dataset.path, config.dataset.size_px, config.dataset.caption_dropout) == ("/data/cats", 512, 0.1)
    assert (config.loss.min_snr_gamma, config.loss.noise_offset, config.loss.timesteps) == (5.0, 0.05, "logit-normal")
    lost = " | ".join(foreign.lost)
    for key in ("CAME", "peft_type = 'LOHA'", "mae_strength"):
        assert key in lost
    assert any("100 epochs" in note for note in foreign.notes)
    assert any("/data/dogs" in note for note in foreign.notes)
    starts(config, base, pictures, tmp_path / "run")


def test_the_real_lokr_files_metadata_become_a_config_that_starts(base: Path, pictures: Path, tmp_path: Path) -> None:
    path = DATA / "loras" / "lycoris_smart_falcon_4_lokr.safetensors"
    if not path.exists():
        pytest.skip("the real files are not here")
    foreign = read_foreign(path)
    config = foreign.config
    assert (config.lora.rank, config.lora.conv_rank, config.lora.targets) == (4, 4, "everything")
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.weight_decay, optimizer.warmup_steps) == ("lion8bit", 0.1, 301)
    assert (config.train.steps, config.train.seed, config.loss.noise_offset) == (3010, 42, 0.03)
    assert config.model.base == "animefull-final-pruned.safetensors"
    assert [line.split(":")[0] for line in foreign.lost] == ["the optimizer Lion", "algo = 'lokr'"]
    starts(config, base, pictures, tmp_path / "run")


def test_what_we_write_into_a_header_comes_back(config: TrainConfig, tmp_path: Path) -> None:
    """Make one like this, of a file of our own: nothing is lost, and the settings are those it was trained with."""
    told = parse_train_config(
        to_toml(config), source="test",
        overrides=["loss.noise_offset=0.05", "loss.kind=huber", "lora.rank=8", "dataset.flip=true", "train.seed=7"],
    )  # fmt: skip
    path = train(Run.create(tmp_path / "run", told), told)
    again = read_foreign(path, dataset=told.dataset.path).config
    for key in ("lora.rank", "lora.alpha", "optimizer.lr", "optimizer.text_lr", "optimizer.schedule", "optimizer.name",
                "train.steps", "train.batch_size", "train.seed", "loss.kind", "loss.noise_offset", "loss.min_snr_gamma",
                "dataset.flip", "dataset.caption_dropout", "dataset.size_px", "output.name"):  # fmt: skip
        table, leaf = key.split(".")
        wanted = 64 if key == "dataset.size_px" else getattr(getattr(told, table), leaf)
        assert getattr(getattr(again, table), leaf) == wanted, key


def test_values_that_are_not_understood_are_listed_and_do_no_harm() -> None:
    told = from_metadata(
        {"ss_network_dim": "Dynamic", "ss_unet_lr": "fast", "ss_learning_rate": "1e-4", "ss_future": "7"}
    )
    assert told.settings["optimizer.lr"] == 1e-4
    assert told.lost == [
        "unet_lr = 'fast' is not understood",
        "network_dim = 'Dynamic' is not understood",
        "future = '7': there is no such setting here",
    ]


def test_other_files_are_refused(tmp_path: Path) -> None:
    for name, text, sentence in (
        ("a.json", "[1, 2]", "holds no settings of kohya_ss"),
        ("b.json", "not json", "is neither a LoRA"),
        ("c.json", json.dumps({"training_method": "FINE_TUNE"}), "for FINE_TUNE, and not for a LoRA"),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=sentence):
            read_foreign(tmp_path / name)


def test_the_command_writes_a_config_with_the_list_on_top(command_line: CommandLine, tmp_path: Path) -> None:
    done = command_line("config", "from", HERE / "kohya_ss.json", "--out", tmp_path / "x.toml", "--dataset", "mine")
    assert done.returncode == 0, done.stderr
    assert "no equal here: clip_skip = 2" in done.stdout
    text = (tmp_path / "x.toml").read_text(encoding="utf-8")
    assert text.startswith("# from kohya_ss.json (kohya_ss)\n# what has no equal here:\n")
    assert tomllib.loads(text)["dataset"]["path"] == "mine"
    assert foreign_toml(read_foreign(HERE / "kohya_ss.json", dataset="mine"), HERE / "kohya_ss.json") == text
