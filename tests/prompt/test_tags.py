"""Tags in A1111's order and with named arguments; choices and wildcards by the seed alone."""

from pathlib import Path

import pytest

from diffusion_lora.errors import PromptError, PromptSyntaxError
from diffusion_lora.prompt.tags import take_tags
from diffusion_lora.prompt.wildcards import expand, files_in


@pytest.mark.parametrize(
    ("tag", "text", "unet"),
    [
        ("<lora:style>", 1.0, 1.0),
        ("<lora:style:0.8>", 0.8, 0.8),
        ("<lora:style:0.5:0.9>", 0.5, 0.9),
        ("<lora:style:0.5:0.9:8>", 0.5, 0.9),
        ("<lora:style:te=0.3:unet=-0.6>", 0.3, -0.6),
        ("<lora:style:0.5:unet=1.2>", 0.5, 1.2),
        ("<lora:style:te=0>", 0.0, 0.0),
        ("<lyco:style:-1>", -1.0, -1.0),
        ("<LORA:style:.5:dyn=4>", 0.5, 0.5),
    ],
)
def test_the_numbers_of_a_tag(tag: str, text: float, unet: float) -> None:
    """The text encoder's comes first: many remember it the other way round."""
    rest, (read,) = take_tags(f"a red {tag} cat")
    assert (read.name, read.text, read.unet) == ("style", text, unet)
    assert rest == "a red cat"


def test_options_are_handed_on_and_tags_found_everywhere() -> None:
    rest, tags = take_tags("(a <lora:one:0.5:steps=0-0.5>:1.2) [b|<lora:two:1:blocks=mid>c]<lora:three>")
    assert [(tag.name, dict(tag.options)) for tag in tags] == [
        ("one", {"steps": "0-0.5"}), ("two", {"blocks": "mid"}), ("three", {}),
    ]  # fmt: skip
    assert rest == "(a :1.2) [b|c]"


def test_a_prompt_without_tags_is_untouched() -> None:
    assert take_tags("  a  (cat:1.2) <3  ") == ("  a  (cat:1.2) <3  ", ())


@pytest.mark.parametrize("tag", ["<lora: :1>", "<lora:x:1,5>", "<lora:x:foo=1>", "<lora:x:nan>", "<lora:x:te=>"])
def test_a_tag_that_is_not_understood_is_refused(tag: str) -> None:
    """A1111 draws without any LoRA then, and says so on a console nobody reads."""
    with pytest.raises(PromptSyntaxError):
        take_tags(f"a cat {tag}")


def test_choices_follow_the_seed_and_all_come_up() -> None:
    source = "a {red|{dark|light} blue|} cat, [day|night] (x:1.2) <lora:y:1>"
    assert expand(source, 5) == expand(source, 5)
    taken = {expand(source, seed) for seed in range(40)}
    tail = " cat, [day|night] (x:1.2) <lora:y:1>"
    assert taken == {f"a {colour}{tail}" for colour in ("red", "dark blue", "light blue", "")}


def test_wildcards_come_from_their_files(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "animal.txt").write_text("# animals\n\ncat\n{big|small} __deep/dog__\n", encoding="utf-8")
    (tmp_path / "deep" / "dog.txt").write_text("dog\n", encoding="utf-8")
    lookup = files_in(tmp_path)
    assert {expand("a __animal__", seed, lookup) for seed in range(40)} == {"a cat", "a big dog", "a small dog"}
    assert expand("a __animal__", 1) == "a __animal__"


def test_wildcards_lead_nowhere_else_and_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret\n", encoding="utf-8")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "me.txt").write_text("__me__ __me__\n", encoding="utf-8")
    for name in ("../secret", "nothing"):
        with pytest.raises(PromptError, match="has no file"):
            expand(f"__{name}__", 1, files_in(inside))
    with pytest.raises(PromptError, match="wildcards lead to"):
        expand("__me__", 1, files_in(inside))
