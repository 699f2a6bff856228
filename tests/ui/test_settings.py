"""The settings beyond the form: all that `config` declares, each said once; what is typed is what is trained with."""

from diffusion_lora.config import load_train_config, parse_train_config, shipped, to_toml
from webui import settings


def test_every_setting_has_its_help_and_none_is_said_twice() -> None:
    found = {setting["key"]: setting for setting in settings.declared()}
    assert {"lora.dora", "optimizer.schedule", "loss.min_snr_gamma", "dataset.flip"} <= found.keys()
    assert not {"lora.rank", "train.steps", "output.name"} & found.keys(), "the form has these"
    assert all(setting["help"] for setting in found.values())
    assert found["dataset.flip"]["kind"] == "yes"
    assert found["lora.dora"]["choices"] == ["off", "output", "input"]


def test_what_was_typed_becomes_the_configuration() -> None:
    preset = load_train_config(shipped("configs", "pocket-style"))
    typed = {"lora.dora": "output", "dataset.flip": "true", "optimizer.betas": "[0.8, 0.99]"}
    overrides = settings.overrides({**typed, "lora.rank": "3", "x": "1", "loss.huber_c": "  "})
    assert overrides == ["lora.dora=output", "dataset.flip=true", "optimizer.betas=[0.8, 0.99]"]
    config = parse_train_config(to_toml(preset), source="the form", overrides=overrides)
    assert (config.lora.dora, config.dataset.flip, config.optimizer.betas) == ("output", True, (0.8, 0.99))
    assert settings.changes(preset, config) == typed


def test_all_values_as_written_are_read_again() -> None:
    """Wrong: settings taken from a run differ from those it had."""
    preset = load_train_config(shipped("configs", "pocket-style"))
    said = {key: text for key, text in settings.values_of(preset).items() if text}
    again = parse_train_config(to_toml(preset), source="the form", overrides=settings.overrides(said))
    assert again == preset
