"""Pocket's tokenizer: every known word is one token, every other word is spelled."""

import pytest

from recipes.pocket import model
from recipes.pocket.assemble import KNOWN_WORDS
from recipes.pocket.world import CHARACTERS, HELD_STYLES

tokenizer = model.tokenizer(KNOWN_WORDS)


@pytest.mark.parametrize("word", [word for word in KNOWN_WORDS if word.isalpha()])
def test_a_known_word_is_one_token(word: str) -> None:
    assert len(tokenizer(word).input_ids) == 3


@pytest.mark.parametrize("word", [*CHARACTERS, *HELD_STYLES, "sks", "lighthouse", "x-ray", "50%"])
def test_a_word_to_be_taught_is_spelled_and_never_unknown(word: str) -> None:
    ids = tokenizer(word).input_ids[1:-1]
    assert len(ids) > 1
    assert tokenizer.unk_token_id not in ids


def test_no_held_name_has_a_token_of_its_own() -> None:
    assert not {f"{name}</w>" for name in (*CHARACTERS, *HELD_STYLES)} & set(tokenizer.get_vocab())


def test_upper_case_and_spaces_do_not_matter() -> None:
    assert tokenizer("A  Big RED cat").input_ids == tokenizer("a big red cat").input_ids
