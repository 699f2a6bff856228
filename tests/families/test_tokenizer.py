"""CLIP's own tokens from `vocab.json` and `merges.txt`, as the hub has them."""

import gzip
import json
import os
from pathlib import Path

import pytest

from diffusion_lora.families.tokenizer import find_tokenizer


@pytest.fixture(scope="module")
def clip_data() -> Path:
    data = Path(os.environ.get("LORA_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "clip"
    if not data.is_dir():
        pytest.skip(f"there is no {data}; LORA_TEST_DATA names the data folder")
    return data


def test_prompts_get_the_ids_of_openais_tokenizer(clip_data: Path, tmp_path: Path) -> None:
    """The vocabulary is built from the published list of merges: bytes, bytes that end a word, merges, two marks."""
    merges = gzip.decompress((clip_data / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode().split("\n")[1:48895]
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    signs = [chr(byte) for byte in printed] + [chr(256 + number) for number in range(256 - len(printed))]
    names = [*signs, *(sign + "</w>" for sign in signs), *("".join(pair.split()) for pair in merges)]
    names += ["<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")

    expected = json.loads((clip_data / "expected_ids.json").read_text(encoding="utf-8"))
    for pad, number in (("<|endoftext|>", 49407), ("!", 0)):
        tokenizer = find_tokenizer(tmp_path / "model.safetensors", pad, 49408)
        assert tokenizer("a", padding="max_length").input_ids == [49406, 320, 49407, *[number] * 74]
        for each in expected:
            assert tokenizer(each["text"], add_special_tokens=False).input_ids == each["ids_no_special"], each["text"]
