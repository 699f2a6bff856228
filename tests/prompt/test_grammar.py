"""Every string is a prompt or a sentence that points at a character; nothing else, and soon."""

import random
from contextlib import suppress
from time import perf_counter

import pytest

from diffusion_lora.errors import PromptSyntaxError
from diffusion_lora.prompt.chunks import chunks
from diffusion_lora.prompt.grammar import parse
from diffusion_lora.prompt.lexer import MAX_CHARS
from diffusion_lora.prompt.schedule import wordings
from diffusion_lora.prompt.tags import take_tags
from diffusion_lora.prompt.wildcards import expand

SIGNS = [
    *"()[]{}<>|:\\_,. \n\t.5", "(", ")", "[", "]", ":0.5)", ":3]", ":1.2)", "BREAK", "__a__", "<lora:x:0.5>", "<lora",
    "AND", "red", "cat", "é", "猫", "\x00", "\ud800", "1e9", ":1.2.3)", "\\(", "{a|b}", "--", "<3",
]  # fmt: skip


def random_prompt(chance: random.Random) -> str:
    return "".join(chance.choice(SIGNS) for _ in range(chance.randrange(40)))


def test_ten_thousand_random_strings() -> None:
    """Anything but a prompt or a PromptSyntaxError here would be a picture lost to a traceback."""
    chance = random.Random(7)
    places = list[int]()
    for _ in range(10_000):
        source = random_prompt(chance)
        try:
            stages = wordings(parse(source), 4)
            take_tags(source)
            expand(source, 1)
        except PromptSyntaxError as error:
            places.append(error.at)
            continue
        assert stages[-1].until == 4
        assert [stage.until for stage in stages] == sorted({stage.until for stage in stages})
        for stage in stages:
            read = chunks(stage.wording, lambda text: [len(word) for word in text.split()], 5)
            assert all(len(chunk.ids) == len(chunk.weights) <= 5 for chunk in read)
    assert 1000 < len(places) < 9000, "both kinds of strings are among them"
    assert min(places) >= 0


def test_the_grammar_loses_no_letter_of_plain_words() -> None:
    """What holds no sign is one piece, as it was typed: such prompts draw what they drew before there was a grammar."""
    for source in ("a red cat on a sky background", "  two  spaces ", "äöü, ß. - 1/2 100%!", "or AN D band BREAKING"):
        (stage,) = wordings(parse(source), 20)
        assert stage.wording == ((stage.wording[0][0],),)
        assert (stage.wording[0][0].text, stage.wording[0][0].weight) == (source, 1.0)


@pytest.mark.parametrize(
    ("source", "at", "word"),
    [
        ("a (cat:1.2.3) b", 7, "1.2.3"),
        ("a cat AND a dog", 6, "AND"),
        ("a <lora:style:0.8 cat", 2, "not closed"),
        ("a <hypernet:x:1>", 2, "hypernet"),
        ("a (cat:1000)", 7, "beyond"),
        ("a <lora:style:strong>", 2, "strong"),
        ("(" * 60, 50, "brackets"),
    ],
)
def test_mistakes_point_at_their_character(source: str, at: int, word: str) -> None:
    with pytest.raises(PromptSyntaxError) as caught:
        take_tags(source)
    assert caught.value.at == at
    assert f"character {at + 1} " in str(caught.value)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_long_and_deep_prompts_are_read_or_refused_soon() -> None:
    """Earley parsers and careless expressions take minutes for these."""
    for unit in ("a(", "[a:", " ", "<a:", "__", "[a|", ":1", "(a)", "\\", "{", "[a:b:5]"):
        source = (unit * MAX_CHARS)[:MAX_CHARS]
        began = perf_counter()
        with suppress(PromptSyntaxError):
            wordings(parse(source), 20)
        assert perf_counter() - began < 5, unit
    with pytest.raises(PromptSyntaxError, match="characters"):
        parse("a" * (MAX_CHARS + 1))
