"""Words with files of their own: found by their names in prompts, wildcards included, and drawn with their vectors."""

from dataclasses import replace
from pathlib import Path

import pytest

from diffusion_lora.errors import AdapterFileError
from diffusion_lora.families.family import Model, tokens
from diffusion_lora.families.learned_words import first_vectors
from diffusion_lora.generate.engine import Engine
from diffusion_lora.generate.infotext import from_json, parse_infotext, to_json, write_infotext
from diffusion_lora.generate.request import LoraUse, Request
from diffusion_lora.generate.tags import read_embeddings, read_typed_prompt
from diffusion_lora.lora.adapter import write_word


def test_an_embedding_acts_where_its_name_stands(model: Model, engine: Engine, style: LoraUse, tmp_path: Path) -> None:
    """A word would stay its letters, in prompts typed or made by wildcards, or the picture would not come back."""
    folder = tmp_path / "embeddings" / "mine"
    write_word(first_vectors(model, tokens(model, "cat"), "cat", 0), folder / "zib.safetensors")
    write_word(first_vectors(model, 1, None, 0), folder / "momo.safetensors")
    (tmp_path / "animal.txt").write_text("embedding:Zib\n")
    prompt, _ = read_typed_prompt("a red __animal__ on a sky background", 1, wildcards=tmp_path)
    (prompt, negative), embeddings = read_embeddings((prompt, "blurry"), [tmp_path / "embeddings"])
    assert (prompt, negative) == ("a red zib on a sky background", "blurry")
    assert [embedding.name for embedding in embeddings] == ["zib"]

    asked = Request(prompt, seed=1, steps=2, width=64, height=64, embeddings=embeddings)
    mine, cat, letters = engine.draw([
        asked, replace(asked, prompt="a red cat on a sky background", embeddings=()), replace(asked, embeddings=()),
    ])  # fmt: skip
    assert mine.image.tobytes() == cat.image.tobytes() != letters.image.tobytes()
    assert from_json(to_json(mine.request)) == mine.request
    sha = mine.request.embeddings[0].sha
    assert sha
    assert parse_infotext(write_infotext(mine.request)).parameters["TI hashes"] == f"zib: {sha[:12]}"
    with pytest.raises(AdapterFileError, match="another embedding"):
        engine.resolved(replace(asked, embeddings=(replace(embeddings[0], sha="0" * 12),)))
    with pytest.raises(AdapterFileError, match="holds no embedding"):
        engine.resolved(replace(asked, embeddings=(replace(embeddings[0], path=style.path),)))
