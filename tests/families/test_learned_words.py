"""New words reach every text encoder, and leave every other word what it was to the bit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from diffusion_lora.config import parse_train_config
from diffusion_lora.families.family import Model, encode_text, load_base, tokens
from diffusion_lora.families.learned_words import add_word, first_vectors, spelled
from diffusion_lora.lora.adapter import read_adapter
from diffusion_lora.run import Run
from diffusion_lora.train.trainer import train


@pytest.fixture(params=["sd15", "sdxl"])
def model(request: pytest.FixtureRequest, miniature: Callable[[str], Path]) -> Model:
    return load_base(str(miniature(request.param)), device="cpu", dtype="fp32")


def vectors(model: Model, count: int, value: float | None = None) -> dict[str, Tensor]:
    """One value, or random ones, as wide as each text encoder."""
    widths = {part: model.text_encoders[part].config.hidden_size for part in model.text_encoders}
    return {
        part: torch.randn(count, width) if value is None else torch.full((count, width), value)
        for part, width in widths.items()
    }


def hidden(model: Model, prompt: str) -> Tensor:
    with torch.no_grad():
        return torch.cat([tensor.flatten(1) for tensor in encode_text(model, [prompt]).tensors.values()], dim=1)


def test_a_word_is_its_vectors_where_it_is_meant_and_its_letters_where_it_is_not(model: Model) -> None:
    prompt = "a Zib, zibs and (zib)"
    before = hidden(model, prompt)
    add_word(model, "mine", vectors(model, 3, 0.0))
    assert torch.equal(hidden(model, prompt), before)
    meant = spelled(model, prompt, {"zib": "mine"})
    assert meant.count(model.words["mine"]) == 2  # not the one in "zibs"
    assert tokens(model, spelled(model, "zib", {"zib": "mine"})) == 3
    first = hidden(model, meant)
    add_word(model, "mine", vectors(model, 3, 1.0))
    assert not torch.equal(hidden(model, meant), first)
    assert torch.equal(hidden(model, prompt), before)


def test_gradients_reach_the_vectors_and_nothing_else(model: Model) -> None:
    learned = {part: tensor.requires_grad_() for part, tensor in vectors(model, 2).items()}
    add_word(model, "mine", learned)
    cond = encode_text(model, [spelled(model, "a zib", {"zib": "mine"}), "a cat"])
    torch.stack([tensor[0].square().sum() for tensor in cond.tensors.values()]).sum().backward()
    for tensor in learned.values():
        assert tensor.grad is not None
        assert (tensor.grad.abs().sum(1) > 0).all()
    for encoder in model.text_encoders.values():
        assert all(parameter.grad is None for parameter in encoder.parameters())


def test_a_word_that_starts_as_another_one_is_that_word(model: Model) -> None:
    start = first_vectors(model, 3, "cat", seed=0)
    add_word(model, "mine", start)
    torch.testing.assert_close(hidden(model, spelled(model, "a zib", {"zib": "mine"})), hidden(model, "a cat"))


def test_without_an_example_it_starts_at_random_by_its_seed_as_long_as_others(model: Model) -> None:
    one, same, other = (first_vectors(model, 4, None, seed) for seed in (1, 1, 2))
    for part, encoder in model.text_encoders.items():
        assert torch.equal(one[part], same[part])
        assert not torch.equal(one[part], other[part])
        table = encoder.get_input_embeddings().weight  # type: ignore[operator]
        assert 0.5 < one[part].norm(dim=1).mean() / table.norm(dim=1).mean() < 2


def test_vectors_for_another_model_are_refused(model: Model) -> None:
    fitting = vectors(model, 1)
    for wrong, why in (
        ({part: torch.zeros(1, 33) for part in fitting}, "33 wide, and the base's are 32"),
        ({"other": torch.zeros(1, 32)}, "for the text encoders other, and the base has te"),
    ):
        with pytest.raises(ValueError, match=why):
            add_word(model, "mine", wrong)


def test_a_word_of_xl_is_trained_in_both_text_encoders(miniature: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("one", "two"):
        pixels = np.random.default_rng(len(name)).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    text = f"""
        [model]
        base = '{miniature("sdxl")}'
        [dataset]
        path = '{folder}'
        caption = "a zib"
        [word]
        text = "zib"
        [lora]
        rank = 2
        [train]
        steps = 2
        batch_size = 1
        precision = "fp32"
        device = "cpu"
        [optimizer]
        name = "adamw"
        text_lr = 0
        word_lr = 1e-2
        [output]
        dtype = "fp32"
    """
    config = parse_train_config(text, source="test")
    start = first_vectors(load_base(config.model.base, device="cpu"), 2, None, 0)
    run = Run.create(tmp_path / "run", config)
    learned = read_adapter(train(run, config)).words["zib"]
    assert learned.keys() == {"te1", "te2"}
    for part, tensor in learned.items():
        assert ((tensor - start[part]).abs() > 1e-3).any(dim=1).all(), part
    alone = safetensors.torch.load_file(run.embedding_path("zib"))
    assert torch.equal(alone["clip_l"], learned["te1"])
    assert torch.equal(alone["clip_g"], learned["te2"])
