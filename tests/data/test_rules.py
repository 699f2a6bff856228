"""Caption rules: whole words, tidy commas, one sentence for a rule that is none, and no change the second time."""

from pathlib import Path

import pytest

from diffusion_lora.data.rules import Shape, parse_rule, read_rules
from diffusion_lora.errors import ConfigError


@pytest.mark.parametrize(
    ("rule", "before", "after"),
    [
        ("replace: cat => dog", "a Cat, a category, cat", "a dog, a category, dog"),
        ("replace: gray  cat => grey cat", "one gray\tcat here", "one grey cat here"),
        ("remove: simple background", "a cat, simple background, red", "a cat, red"),
        ("remove: red", "red, a cat, red", "a cat"),
        ("synonyms: car, automobile, auto", "an automobile and an Auto in autumn", "an car and an car in autumn"),
        (r"regex: (\d+)girls? => \1 persons", "2girls, 1girl", "2 persons, 1 persons"),
        ("regex: ^picture of =>", "picture of a cat", "a cat"),
        (r"replace: a\1 => b\2", r"say a\1", r"say b\2"),
        ("replace: c++ => rust", "c++, c", "rust, c"),
        ("remove: dog", "a  cat ,,and", "a  cat ,,and"),
    ],
)
def test_a_rule_does_what_it_says(rule: str, before: str, after: str) -> None:
    assert parse_rule(rule)(before) == after


@pytest.mark.parametrize(
    "text",
    ["cat => dog", "replace: cat", "regex: ( => x", r"regex: a => \3", "swap: a => b", "synonyms: car", "remove:"],
)
def test_a_rule_that_is_none_is_told_with_its_words(text: str) -> None:
    with pytest.raises(ConfigError) as told:
        parse_rule(text)
    assert repr(text) in str(told.value)
    assert "\n" not in str(told.value)


def test_a_file_of_rules_names_the_line(tmp_path: Path) -> None:
    file = tmp_path / "rules.txt"
    file.write_text("# colours\nreplace: gray => grey\n\nreplace: tan\n")
    with pytest.raises(ConfigError, match=r"rules\.txt, line 4"):
        read_rules(file)
    file.write_text("# colours\nreplace: gray => grey\n\nremove: x\n")
    assert [rule.text for rule in read_rules(file)] == ["replace: gray => grey", "remove: x"]


@pytest.mark.parametrize(
    ("shape", "before", "after"),
    [
        (Shape(prefix="zib, "), "a cat", "zib, a cat"),
        (Shape(prefix="zib"), "a cat", "zib a cat"),
        (Shape(form="tags"), "a cat, red. A cat, red,, big.", "a cat, red, A cat, big"),
        (Shape(form="sentence"), " a cat ,\n red, ", "a cat, red"),
        (Shape(max_tokens=3), "one two, three, four five", "one two, three"),
        (Shape(max_tokens=2), "one two three four", "one two"),
        (Shape(max_tokens=9), "one two", "one two"),
    ],
)
def test_the_shape_of_captions(shape: Shape, before: str, after: str) -> None:
    assert shape(before) == after
    assert shape(after) == after, "applied twice is applied once"
