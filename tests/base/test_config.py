"""Settings: the file a run writes is complete, and every mistake is told in one sentence that names the remedy."""

import tomllib
from pathlib import Path

import pytest

from diffusion_lora.config import (
    TrainConfig,
    allowed_values,
    find_config,
    load_train_config,
    parse_train_config,
    setting_differences,
    shipped,
    to_toml,
)
from diffusion_lora.errors import ConfigError

MINIMAL = "[dataset]\npath = 'pictures'\n"
KINDS = ("style", "subject", "character", "concept")
PRESETS = (
    *(f"{base}-{kind}" for base in ("pocket", "sd15") for kind in KINDS),
    "sd2-style",
    "sdxl-12gb",
    "sdxl-24gb",
)


def parse(text: str = MINIMAL, *overrides: str) -> TrainConfig:
    return parse_train_config(text, source="my.toml", overrides=overrides)


def test_a_written_configuration_reads_back_the_same_with_every_odd_value() -> None:
    config = parse(
        MINIMAL,
        "loss.min_snr_gamma=0",
        'output.comment=say "hi" \\ \x7f ünïcode',
        'lora.targets=["to_q$", "a\\\\.b"]',
        'lora.rank_patterns={"a\\\\.b" = 4, mid_block = 8}',
        "lora.blocks=[0, 1, 1]",
        'preview.prompts=["a", ""]',
        "optimizer.lr=1",
    )
    assert config.loss.min_snr_gamma is None
    assert config.lora.targets == ("to_q$", "a\\.b")
    assert config.lora.rank_patterns == {"a\\.b": 4, "mid_block": 8}
    assert config.lora.blocks == (0, 1, 1)
    assert parse(to_toml(config)) == config


@pytest.mark.parametrize("preset", PRESETS)
def test_a_shipped_preset_is_complete_and_in_the_written_form(preset: str) -> None:
    """A preset that lacked a key would change when a default does."""
    path = shipped("configs", preset)
    written = tomllib.loads(path.read_text(encoding="utf-8"))
    complete = tomllib.loads(to_toml(load_train_config(path)))
    assert {table: set(keys) for table, keys in written.items()} == {t: set(keys) for t, keys in complete.items()}
    output = load_train_config(path).output
    assert output.name == preset
    assert output.kind == (kind if (kind := preset.rpartition("-")[2]) in KINDS else "")


@pytest.mark.parametrize(
    ("text", "overrides", "sentence"),
    [
        (MINIMAL + "[lora]\nrnak = 8", (), "my.toml: unknown key 'lora.rnak'; did you mean 'lora.rank'?"),
        (MINIMAL + "[lroa]\nrank = 8", (), "my.toml: unknown table or key 'lroa'; did you mean [lora]?"),
        (MINIMAL + "lr = 1e-4", (), "my.toml: unknown key 'dataset.lr'; did you mean 'optimizer.lr'?"),
        ("[dataset]\npaht = 'x'", (), "my.toml: unknown key 'dataset.paht'; did you mean 'dataset.path'?"),
        ("", (), "my.toml: dataset.path is missing: folder of pictures"),
        (MINIMAL + "[lora]\nrank = '16'", (), 'my.toml: lora.rank = "16" is not allowed: it must be a whole number'),
        (
            MINIMAL,
            ("lora.rank=0",),
            "--set lora.rank=0: lora.rank = 0 is not allowed: it must be a whole number, at least 1",
        ),
        (MINIMAL, ("lora.rank=true",), "lora.rank = true is not allowed"),
        (MINIMAL, ("train.steps=1.5",), "train.steps = 1.5 is not allowed"),
        (MINIMAL, ("optimizer.lr=nan",), "optimizer.lr = NaN is not allowed"),
        (MINIMAL, ("optimizer.betas=[0.9]",), "optimizer.betas = [0.9] is not allowed: it must be a list of 2"),
        (MINIMAL, ("optimizer.name=sgd",), 'it must be one of "adamw8bit", "adamw"'),
        (MINIMAL, ("train.device=gpu",), 'train.device = "gpu" is not allowed: it must be a text (auto, cpu, cuda'),
        (MINIMAL, ("lora.targets=[]",), "lora.targets = [] is not allowed"),
        (MINIMAL, ("lora.blocks=[0, 2]",), "a list, each item a text, or a list, each item one of 0, 1"),
        (MINIMAL, ("lora.rank_patterns={x = 0}",), "a table { 'pattern' = value }, each value a whole number, at le"),
        (MINIMAL, ("lora.dora=output", "lora.initial=pissa"), "exclude each other"),
        (MINIMAL, ("output.name=a/b",), 'output.name = "a/b" is not allowed'),
        (MINIMAL, ("rank=8",), "--set 'rank=8' is not of the form table.key=value"),
        (MINIMAL, ("lora.rank",), "is not of the form table.key=value"),
        (MINIMAL, ("optimizer.lr=0", "optimizer.text_lr=0"), "leave nothing to train"),
        ("dataset = 'x'", (), "my.toml: [dataset] must be a table"),
        ("dataset = 'x'", ("dataset.path=y",), "'dataset' is a plain value in the file"),
        ("[dataset", (), "my.toml is not valid TOML"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(text: str, overrides: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, *overrides)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value).removeprefix("my.toml is not valid TOML")


def test_every_setting_can_say_what_is_allowed_and_what_it_is() -> None:
    for table, model in TrainConfig.model_fields.items():
        if table == "sweep":  # values of the others
            continue
        for leaf, field in model.annotation.model_fields.items():  # type: ignore[union-attr]
            assert allowed_values(f"{table}.{leaf}")
            assert field.description


def test_paths_are_looked_up_beside_the_config_then_in_the_working_directory_then_among_the_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, here = tmp_path / "beside", tmp_path / "here"
    for folder in (beside / "both", here / "both", here / "mine"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    file = beside / "my.toml"
    for name, found in (("both", beside / "both"), ("mine", here / "mine"), ("configs", shipped("configs", ""))):
        file.write_text(f"[dataset]\npath = '{name}'\n", encoding="utf-8")
        assert Path(load_train_config(file).dataset.path) == found.resolve()
    file.write_text("[dataset]\npath = 'nowhere'\n", encoding="utf-8")
    assert load_train_config(file).dataset.path == "nowhere"


def test_a_config_is_found_by_its_path_or_its_shipped_name(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(MINIMAL, encoding="utf-8")
    assert find_config(str(tmp_path / "a.toml")) == tmp_path / "a.toml"
    assert find_config("pocket-style").name == find_config("configs/pocket-style.toml").name == "pocket-style.toml"
    with pytest.raises(ConfigError, match=r"there is no config 'nope', neither a path nor shipped \(pocket-character"):
        find_config("nope")


def test_differences_name_the_setting_and_both_values() -> None:
    assert setting_differences(parse(), parse(MINIMAL, "lora.rank=8")) == {"lora.rank": (16, 8)}
