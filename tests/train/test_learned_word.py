"""A word learned together with a LoRA by the real trainer goes on exactly, and lies where programs look for it."""

from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from diffusion_lora.config import TrainConfig, parse_train_config, to_toml
from diffusion_lora.errors import ConfigError
from diffusion_lora.events import read_events
from diffusion_lora.families.family import load_base
from diffusion_lora.families.learned_words import first_vectors
from diffusion_lora.generate.engine import Engine
from diffusion_lora.generate.request import LoraUse, Request
from diffusion_lora.lora.adapter import read_adapter, write_adapter
from diffusion_lora.run import Run
from diffusion_lora.train.trainer import train

SETTINGS = ("word.text=thing", "word.initial=cat", "word.vectors=2", "optimizer.word_lr=1e-2", "output.dtype=fp32")


def changed(config: TrainConfig, *settings: str) -> TrainConfig:
    return parse_train_config(to_toml(config), source="test", overrides=settings)


def trained(folder: Path, config: TrainConfig) -> Run:
    run = Run.create(folder, config)
    train(run, config)
    return run


def test_a_word_moves_away_from_where_it_started_and_goes_on_exactly(config: TrainConfig, tmp_path: Path) -> None:
    """Captions say "a red thing"; rates, the average and a resume hold for the word as for the LoRA."""
    config = changed(config, *SETTINGS, "train.steps=4", "optimizer.schedule=constant", "optimizer.ema_decay=0.5")
    whole = trained(tmp_path / "whole", config)
    start = first_vectors(load_base(config.model.base, device="cpu"), 2, "cat", config.train.seed)["te"]
    adapter = read_adapter(whole.adapter_path)
    learned = adapter.words["thing"]["te"]
    assert learned.shape == start.shape
    assert (learned - start).abs().max() > 1e-3
    alone = safetensors.torch.load_file(whole.embedding_path("thing"))
    assert torch.equal(alone["emb_params"], learned)
    assert adapter.metadata["modelspec.trigger_phrase"] == "thing"
    assert [event["word_lr"] for event in read_events(whole.folder) if event["kind"] == "step"][-1] == 1e-2

    short = changed(config, "train.steps=2")
    run = trained(tmp_path / "run", short)
    train(Run.resume(run.folder, config), config, resume=True)
    assert read_adapter(run.adapter_path).allclose(adapter)


def test_a_word_alone_rests_from_its_stop_step_on(config: TrainConfig, tmp_path: Path) -> None:
    config = changed(config, *SETTINGS, "optimizer.text_lr=0", "optimizer.schedule=constant")
    short = read_adapter(trained(tmp_path / "short", changed(config, "train.steps=2")).adapter_path)
    rested = read_adapter(trained(tmp_path / "rested", changed(config, "optimizer.word_stop_step=2")).adapter_path)
    assert torch.equal(short.words["thing"]["te"], rested.words["thing"]["te"])
    assert not rested.allclose(short)  # the UNet's part went on


def test_a_word_changes_what_is_learned_only_where_captions_have_it(config: TrainConfig, tmp_path: Path) -> None:
    plain = read_adapter(trained(tmp_path / "plain", config).adapter_path)
    run = trained(tmp_path / "absent", changed(config, "word.text=nowhere"))
    absent = read_adapter(run.adapter_path)
    assert absent.words
    assert all(torch.equal(plain.layers[key].up, absent.layers[key].up) for key in plain.layers)
    notes = [event["text"] for event in read_events(run.folder) if event["kind"] == "note"]
    assert "the learned word 'nowhere' stands in no caption, so it will call up nothing" in notes


def test_previews_read_the_word_and_a_file_can_go_without_it(config: TrainConfig, tmp_path: Path) -> None:
    """diffusers refuses a LoRA file with a bundled word; the word's own file is always written."""
    preview = ("preview.every=3", 'preview.prompts=["a thing"]', "preview.steps=2")
    with_word = trained(tmp_path / "a", changed(config, *SETTINGS, *preview, "word.bundle=false"))
    assert not read_adapter(with_word.adapter_path).words
    assert with_word.embedding_path("thing").exists()
    without = trained(tmp_path / "b", changed(config, *preview))
    name = "previews/step-000003-0.png"
    assert (with_word.folder / name).read_bytes() != (without.folder / name).read_bytes()


def test_the_word_of_a_file_acts_where_the_lora_does_and_is_its_letters_where_it_does_not(
    config: TrainConfig, tmp_path: Path
) -> None:
    """In one batch: strength 1, strength 0 and the base alone; and a word for another base is left out and told."""
    run = trained(tmp_path / "run", changed(config, *SETTINGS, "lora.text_targets=none"))
    adapter = read_adapter(run.adapter_path)
    files = {"with": adapter, "without": replace(adapter, words={})}
    files["strange"] = replace(adapter, words={"thing": {"te": torch.zeros(1, 7)}})
    for name, one in files.items():
        write_adapter(one, tmp_path / f"{name}.safetensors", "fp32")
    engine = Engine(load_base(config.model.base, device="cpu"))

    def request(name: str, strength: float) -> Request:
        uses = (LoraUse(name, tmp_path / f"{name}.safetensors", strength),) if name else ()
        return Request("a thing", seed=1, steps=2, width=64, height=64, loras=uses)

    wanted = [request("", 0.0), request("with", 0.0), *(request(name, 1.0) for name in files)]
    pictures = engine.draw(wanted)
    base, closed, learned, letters, strange = (picture.image.tobytes() for picture in pictures)
    assert closed == base
    assert learned != letters
    assert letters != base
    assert strange == letters
    assert any("its learned word 'thing' is left out" in note for note in pictures[-1].notes)


def test_a_word_that_cannot_be_learned_is_refused() -> None:
    for settings, sentence in (
        (("word.text=a b",), "word.text ="),
        (("word.text=zib", "optimizer.word_lr=0"), "would leave the word as it starts"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            parse_train_config("[dataset]\npath = 'x'", source="my.toml", overrides=settings)
