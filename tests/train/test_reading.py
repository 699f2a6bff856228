"""Long and weighted captions reach the UNet in training as prompts do in drawing."""

from pathlib import Path

import pytest
import torch

from diffusion_lora.config import TrainConfig, parse_train_config, to_toml
from diffusion_lora.errors import DatasetError
from diffusion_lora.events import read_events
from diffusion_lora.families.family import Model, encode_text, load_base
from diffusion_lora.run import Run
from diffusion_lora.train.prepare import prepare
from diffusion_lora.train.reading import encode_captions
from diffusion_lora.train.trainer import train

LONG = " ".join("abcdefghijklmnopqrstuvwxyz" * 4)  # 104 tokens of the tiny base


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Model:
    return load_base(str(tiny_base), device="cpu")


def changed(config: TrainConfig, *settings: str) -> TrainConfig:
    return parse_train_config(to_toml(config), source="test", overrides=settings)


@torch.no_grad()
def states(model: Model, config: TrainConfig, *captions: str) -> torch.Tensor:
    return encode_captions(model, config.dataset, captions).tensors["hidden_BTC"]


@torch.no_grad()
def test_plain_captions_are_the_text_encoders_own(model: Model, config: TrainConfig) -> None:
    plain = encode_text(model, ["a (red:1.5) cat", LONG]).tensors["hidden_BTC"]
    assert torch.equal(states(model, config, "a (red:1.5) cat", LONG), plain)


def test_more_tokens_are_more_chunks_of_one_shape_and_nothing_of_a_caption_is_lost(
    model: Model, config: TrainConfig
) -> None:
    long = changed(config, "dataset.caption_tokens=150")
    both = states(model, long, LONG, "a cat")
    assert both.shape[1] == 154
    first, rest = (encode_text(model, [part]).tensors["hidden_BTC"][0] for part in (LONG[:150].strip(), LONG[150:]))
    assert torch.allclose(both[0], torch.cat([first, rest]), atol=1e-5)
    empty = encode_text(model, [""]).tensors["hidden_BTC"][0]
    assert torch.allclose(both[1, 77:], empty, atol=1e-5)
    assert not torch.equal(both, states(model, long, LONG[:150], "a cat"))
    assert states(model, changed(config, "dataset.caption_tokens=225"), LONG).shape[1] == 231


def test_weights_make_words_louder(model: Model, config: TrainConfig) -> None:
    weighted = changed(config, "dataset.weighted=true")
    plain, loud = (states(model, weighted, text) for text in ("a cat", "a (cat:1.5)"))
    factors = (loud / plain)[0]
    assert torch.allclose(factors[2:5] / factors[0], torch.full_like(factors[2:5], 1.5), atol=1e-4)
    assert torch.allclose(plain, states(model, config, "a cat"), atol=1e-6)
    with pytest.raises(DatasetError, match="is not understood: in the prompt, at character"):
        states(model, weighted, "a (cat:1.1.1)")


@pytest.mark.parametrize("text_lr", [0, 1e-3])
def test_a_run_trains_on_them_with_the_text_encoder_frozen_or_not(
    config: TrainConfig, tmp_path: Path, text_lr: float
) -> None:
    """And its losses are others than without: the settings arrive."""
    for file in Path(config.dataset.path).glob("*.txt"):
        file.write_text(f"({file.stem}:1.6) {LONG}", encoding="utf-8")
    told = []
    for settings in ([], ["dataset.caption_tokens=150"], ["dataset.weighted=true"]):
        run = Run.create(
            tmp_path / "-".join(settings or ["plain"]), changed(config, f"optimizer.text_lr={text_lr}", *settings)
        )
        train(run, run.config)
        events = read_events(run.folder)
        told.append([event["loss"] for event in events if event["kind"] == "step"])
        cut = [event for event in events if event["kind"] == "note" and "are cut there" in event["text"]]
        assert bool(cut) == ("dataset.caption_tokens=150" not in settings)
    assert len({losses[0] for losses in told}) == 3


def test_a_caption_that_is_not_understood_is_named_before_the_first_step(config: TrainConfig) -> None:
    (Path(config.dataset.path) / "red.txt").write_text("a [red:blue:0.5] thing", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"'a \[red:blue:0\.5\] thing' has '\[red:blue:0\.5\]'"):
        prepare(changed(config, "dataset.weighted=true"), lambda *_: None)
