"""pocket, the embedded base, is an ordinary Stable Diffusion folder and knows its words."""

import json
from pathlib import Path

import pytest

from diffusion_lora.errors import BaseModelError
from diffusion_lora.families.family import load_base, tokens
from diffusion_lora.families.pocket.words import BASE_FOLDER, pocket_words


def test_pocket_has_the_shape_it_promises() -> None:
    model = load_base("pocket", device="cpu")
    assert (model.name, model.layout.name, model.size_px, model.vae_factor) == ("pocket", "pocket", 128, 8)
    assert model.latent_shape(128, 128) == (4, 16, 16)
    assert sum(p.numel() for p in model.unet.parameters()) <= 13e6
    assert sum(file.stat().st_size for file in BASE_FOLDER.rglob("*") if file.is_file()) <= 32 * 2**20


def test_every_word_pocket_knows_is_one_token() -> None:
    model, words = load_base("pocket", device="cpu"), pocket_words()
    assert len(words.objects) >= 24
    assert (len(words.colours), len(words.backgrounds)) == (10, 8)
    for word in (*words.objects, *words.colours, *words.backgrounds, *words.styles):
        assert tokens(model, word) == 1, word
    assert tokens(model, "zqx") == 3, "any other word is spelled"


@pytest.mark.parametrize("content", [None, "no json", "[]", json.dumps({"objects": ["cat"]})])
def test_a_damaged_list_of_words_is_told(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "words.json").write_text(content)
    with pytest.raises(BaseModelError, match=r"words\.json"):
        pocket_words(tmp_path)
