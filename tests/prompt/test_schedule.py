"""Weights and schedules: every example of AUTOMATIC1111's documentation, code and wiki, means the same here."""

import pytest

from diffusion_lora.prompt.grammar import parse
from diffusion_lora.prompt.schedule import wording_at, wordings


def weights(source: str) -> list[tuple[str, float]]:
    """All words with their weights at the first step, parts joined."""
    (*parts,) = wording_at(parse(source), 1, 10)
    return [(words.text, round(words.weight, 9)) for part in parts for words in part]


def texts(source: str, steps: int = 10, first_pass_steps: int | None = None) -> list[tuple[int, str]]:
    """The stages as words alone."""
    stages = wordings(parse(source), steps, first_pass_steps=first_pass_steps)
    return [(stage.until, "".join(words.text for part in stage.wording for words in part)) for stage in stages]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0), ("house", 1.573), (" ", 1.1), ("on", 1.0), (" a ", 1.1), ("hill", 0.55),
                (", sun, ", 1.1), ("sky", 1.4641), (".", 1.1),
            ],
        ),
        ("a (word)", [("a ", 1.0), ("word", 1.1)]),
        ("a ((word))", [("a ", 1.0), ("word", 1.21)]),
        ("a [word]", [("a ", 1.0), ("word", round(1 / 1.1, 9))]),
        ("a (word:1.5)", [("a ", 1.0), ("word", 1.5)]),
        ("a (word:0.25)", [("a ", 1.0), ("word", 0.25)]),
        (r"a \(word\)", [("a (word)", 1.0)]),
        ("(n)", [("n", 1.1)]),
        ("(((n)))", [("n", 1.331)]),
        ("((((n))))", [("n", 1.4641)]),
        ("(((((n)))))", [("n", 1.61051)]),
        ("((((((n))))))", [("n", 1.771561)]),
        ("", []),
    ],
)  # fmt: skip
def test_weights_of_the_documentation(source: str, expected: list[tuple[str, float]]) -> None:
    assert weights(source) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("test", [(10, "test")]),
        ("a [b:3]", [(3, "a "), (10, "a b")]),
        ("a [b: 3]", [(3, "a "), (10, "a b")]),
        ("a [[[b]]:2]", [(2, "a "), (10, "a b")]),
        ("[(a:2):3]", [(3, ""), (10, "a")]),
        ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
        ("a [unbalanced", [(10, "a unbalanced")]),
        ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
        ("a [{b|d{:.5] c", [(5, "a  c"), (10, "a {b|d{ c")]),
        ("((a][:b:c [d:3]", [(3, "a]:b:c "), (10, "a]:b:c d")]),
        ("[a|(b:1.1)]", [(step, "ab"[(step + 1) % 2]) for step in range(1, 11)]),
        ("[fe|]male", [(step, ("female", "male")[(step + 1) % 2]) for step in range(1, 11)]),
        (
            "[fe|||]male",
            [(1, "female"), (4, "male"), (5, "female"), (8, "male"), (9, "female"), (10, "male")],
        ),
    ],
)
def test_schedules_of_the_documentation(source: str, expected: list[tuple[int, str]]) -> None:
    """Stages that say the same are one stage here: that is the one difference to the lists in the documentation."""
    assert texts(source) == expected


def test_brackets_inside_a_schedule_weigh() -> None:
    (_, stage) = wordings(parse("a [[[b]]:2]"), 10)
    assert [(words.text, round(words.weight, 6)) for words in stage.wording[0]] == [("a ", 1.0), ("b", 0.826446)]
    (_, stage) = wordings(parse("[(a:2):3]"), 10)
    assert [(words.text, words.weight) for words in stage.wording[0]] == [("a", 2.0)]


def test_the_wikis_landscape() -> None:
    source = (
        "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75][ in foreground::0.6]"
        "[ in background:0.25] [shoddy:masterful:0.5]"
    )
    assert texts(source, 100) == [
        (25, "fantasy landscape with a mountain and an oak in foreground shoddy"),
        (50, "fantasy landscape with a lake and an oak in foreground in background shoddy"),
        (60, "fantasy landscape with a lake and an oak in foreground in background masterful"),
        (75, "fantasy landscape with a lake and an oak in background masterful"),
        (100, "fantasy landscape with a lake and a christmas tree in background masterful"),
    ]


def test_the_second_pass_counts_on() -> None:
    """In a hires pass a share of 0.5 lies in the past and 1.5 in its middle; steps count on from the first pass."""
    assert texts("a [b:.5] c", 10, first_pass_steps=10) == [(10, "a b c")]
    assert texts("a [b:1.5] c", 10, first_pass_steps=10) == [(5, "a  c"), (10, "a b c")]
    assert texts("a [b:15] c", 10, first_pass_steps=10) == [(5, "a  c"), (10, "a b c")]


def test_break_parts_the_prompt_and_takes_the_space_around_it() -> None:
    parts = wording_at(parse("hero BREAK (villain) BREAKS"), 1, 10)
    assert [[(words.text, words.weight) for words in part] for part in parts] == [
        [("hero", 1.0)],
        [("villain", 1.1), (" BREAKS", 1.0)],
    ]


def test_what_nobody_chose_and_signs_without_a_meaning_are_words() -> None:
    assert weights("a {red|blue} __animal__ cat: {x") == [("a {red|blue} __animal__ cat: {x", 1.0)]
    assert weights("(a:b) [c:d]") == [("a:b", 1.1), (" ", 1.0), ("c:d", round(1 / 1.1, 9))]


def test_a_bracket_left_open_is_told() -> None:
    assert parse("a (b) c").notes == ()
    (note,) = parse("a ((b) c").notes
    assert "character 3" in note
