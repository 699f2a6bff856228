"""Captions vary as they were told to, the same for the same numbers, and nothing of them is lost that was to stay."""

from collections import Counter
from dataclasses import replace

import pytest

from diffusion_lora.data.captions import CaptionRules
from diffusion_lora.data.tokens import CaptionReader
from diffusion_lora.errors import DatasetError

TAGS = "zib, cat, red, big"
PLAIN = CaptionRules()


def variants(rules: CaptionRules, *captions: str, count: int = 64) -> list[str]:
    return [rules.variant(captions, 0, 3, number) for number in range(count)]


def test_a_caption_that_does_not_vary_is_the_text_as_it_stands() -> None:
    odd = "  a,b ,  c  {x|y} ||| (d:1.2)"
    assert set(variants(PLAIN, odd)) == {odd}
    assert not PLAIN.varies([odd])
    assert PLAIN.every_variant([odd], 0, 3) == [odd]


def test_shuffled_tags_are_the_same_tags_in_every_order_and_the_first_ones_stay() -> None:
    rules = replace(PLAIN, shuffle=True, keep_first=1)
    said = variants(rules, TAGS)
    assert all(caption.startswith("zib, ") for caption in said)
    assert all(sorted(caption.split(", ")) == sorted(TAGS.split(", ")) for caption in said)
    assert len(set(said)) == 6
    assert len({caption.split(", ")[0] for caption in variants(replace(rules, keep_first=0), TAGS)}) == 4
    assert rules.varies([TAGS])
    assert not rules.varies(["no tags here"])


def test_the_same_numbers_give_the_same_caption_and_others_another() -> None:
    rules = replace(PLAIN, shuffle=True)
    assert variants(rules, TAGS) == variants(rules, TAGS)
    long = [f"tag {number}" for number in range(20)]
    one = rules.variant([", ".join(long)], 0, 3, 5)
    assert len({one, *(rules.variant([", ".join(long)], *key) for key in ((1, 3, 5), (0, 4, 5), (0, 3, 6)))}) == 4


def test_a_separator_says_what_stays_in_front_and_behind() -> None:
    rules = replace(PLAIN, shuffle=True, keep_separator="|||")
    said = variants(rules, "zib, cat ||| red, big, old ||| best, last")
    assert all(caption.startswith("zib, cat, ") and caption.endswith(", best, last") for caption in said)
    assert len(set(said)) == 6
    assert variants(replace(PLAIN, keep_separator="|||"), "zib ||| red", count=1) == ["zib, red"]


def test_tags_may_be_parted_by_something_else() -> None:
    said = variants(replace(PLAIN, shuffle=True, separator=";"), "a, b; c")
    assert set(said) == {"a, b; c", "c; a, b"}


def test_dropped_tags_are_as_many_as_told_and_never_the_kept_ones() -> None:
    said = variants(replace(PLAIN, tag_dropout=0.3, keep_first=1), "zib, a, b, c, d, e, f, g, h, i", count=400)
    counts = Counter(tag for caption in said for tag in caption.split(", "))
    assert counts["zib"] == 400
    assert all(abs(counts[tag] / 400 - 0.7) < 0.09 for tag in "abcdefghi")


def test_a_caption_is_one_of_several() -> None:
    assert set(variants(PLAIN, "one", "two", "three")) == {"one", "two", "three"}
    assert sorted(PLAIN.every_variant(("one", "two"), 0, 3)) == ["one", "two"]


def test_wildcards_are_one_of_their_parts_and_letters_where_they_are_off() -> None:
    text = "a {red|blue {cat|dog}} thing"
    assert set(variants(replace(PLAIN, wildcards=True), text)) == {
        "a red thing", "a blue cat thing", "a blue dog thing",
    }  # fmt: skip
    assert set(variants(PLAIN, text)) == {text}


def test_the_trigger_word_is_put_in_front_of_captions_that_lack_it() -> None:
    rules = replace(PLAIN, trigger="zib")
    cases = {
        "a cat": "zib a cat",
        "cat, red": "zib, cat, red",
        "": "zib",
        "a zib here": "a zib here",
        "zibble": "zib zibble",
    }
    assert {caption: variants(rules, caption, count=1)[0] for caption in cases} == cases
    shuffled = variants(replace(rules, shuffle=True, tag_dropout=0.5), "cat, red, big")
    assert all(caption.startswith("zib") for caption in shuffled)
    assert rules.without_trigger().variant(["a cat"], 0, 0, 0) == "a cat"


def test_every_variant_is_told_once() -> None:
    rules = replace(PLAIN, shuffle=True, variants=8)
    listed = rules.every_variant([TAGS], 0, 3)
    assert len(listed) == len(set(listed))
    assert set(listed) == {rules.variant([TAGS], 0, 3, number) for number in range(8)}


# --- tokens -----------------------------------------------------------------------------------------------------------


def reader(**options: object) -> CaptionReader:
    """One token a word, a comma a token of its own."""
    words: list[str] = [","]

    def tokenize(text: str) -> list[int]:
        pieces = text.replace(",", " , ").split()
        words.extend(piece for piece in pieces if piece not in words)
        return [words.index(piece) for piece in pieces]

    settings = {"comma_id": 0, "size": 4, **options}
    return CaptionReader(tokenize, lambda ids: " ".join(words[index] for index in ids), **settings)  # type: ignore[arg-type]


def test_what_does_not_fit_is_told_with_the_very_words() -> None:
    read = reader().read("one two three four five six")
    assert (read.count, read.cut) == (4, "five six")
    assert reader().read("one two").cut == ""


def test_longer_captions_go_on_in_further_chunks_as_prompts_do() -> None:
    read = reader(most=2).read("a b, c d e f g h")
    assert [len(chunk.ids) for chunk in read.chunks] == [3, 4]
    assert read.cut == "g h"
    assert reader(most=3).read("a b, c d e f g h").cut == ""


def test_weights_are_read_where_they_are_wanted_and_characters_elsewhere() -> None:
    read = reader(weighted=True, size=8).read("a (red:1.5) cat")
    assert read.chunks[0].weights == (1.0, 1.5, 1.0)
    assert reader(size=8).read("a (red:1.5) cat").chunks[0].weights == (1.0, 1.0, 1.0)
    for wrong, why in (
        ("a [red:blue:0.5] cat", "only means something while a picture is drawn"),
        ("a (x:1.2.3)", "no number"),
    ):
        with pytest.raises(DatasetError, match=why):
            reader(weighted=True).read(wrong)
