"""Rules that rewrite captions, one after the other, and what a caption looks like in the end. No torch.

    replace: gray cat => grey cat     whole words, whatever the case
    remove: simple background         the same, and the comma that it leaves behind
    synonyms: car, automobile, auto   the others become the first
    regex: \\bpicture of a? => a       Python's; what stands after => may use \\1

One rule a line in a file; lines that are empty or begin with # say nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffusion_lora.errors import ConfigError

Form = Literal["as is", "tags", "sentence"]
Counter = Callable[[str], int]

_KINDS = "replace, remove, synonyms or regex"
_ARROW = "=>"


@dataclass(frozen=True)
class Rule:
    """A pattern and what stands in its place; `text` is the rule as it was written."""

    text: str
    pattern: re.Pattern[str]
    put: str

    def __call__(self, caption: str) -> str:
        """The caption after it, tidied if anything was found."""
        changed, count = self.pattern.subn(self.put, caption)
        return tidy(changed) if count else caption


def count_words(text: str) -> int:
    """The words of a caption, for whoever has no tokenizer."""
    return len(text.split())


@dataclass(frozen=True)
class Shape:
    """What becomes of a caption: rules, form, trigger word, length; in this order.

    `prefix` is put in front of a caption that does not begin with it. "tags" are what stands between commas and full
    stops, each once; a "sentence" has no line breaks and no comma at its end. `max_tokens` (0: any) are counted by
    `count`; whole tags go first, then words.
    """

    rules: tuple[Rule, ...] = ()
    prefix: str = ""
    form: Form = "as is"
    max_tokens: int = 0
    count: Counter = count_words

    def __call__(self, caption: str) -> str:
        """The caption as it shall be; the same again for what it made already, unless a rule says otherwise."""
        for rule in self.rules:
            caption = rule(caption)
        if self.form == "tags":
            caption = _as_tags(caption)
        elif self.form == "sentence":
            caption = tidy(caption)
        if self.prefix and not caption.startswith(self.prefix.strip()):
            joint = "" if self.prefix.endswith(" ") else " "
            caption = f"{self.prefix}{joint}{caption}".strip()
        return self._short(caption)

    def _short(self, caption: str) -> str:
        if not self.max_tokens:
            return caption
        while caption and self.count(caption) > self.max_tokens:
            cut = caption.rstrip(" ,.").rpartition(",")[0] or caption.rstrip().rpartition(" ")[0]
            caption = cut.rstrip(" ,")
        return caption


def parse_rule(text: str) -> Rule:
    """A rule as it is written on one line. Raises ConfigError."""
    kind, colon, rest = text.partition(":")
    kind, rest = kind.strip().lower(), rest.strip()
    find, arrow, put = (part.strip() for part in rest.partition(_ARROW))
    if not colon or kind not in _KINDS.replace(" or ", ", ").split(", "):
        raise ConfigError(f"the rule {text!r} begins with none of {_KINDS}, and a colon")
    if not find or (kind in ("replace", "regex") and not arrow):
        raise ConfigError(f"the rule {text!r} is not whole: write `{kind}: this {_ARROW} that`"
                          if kind in ("replace", "regex") else f"the rule {text!r} names nothing to find")
    match kind:
        case "regex":
            try:
                pattern = re.compile(find)
                pattern.sub(put, "")
            except (re.error, IndexError) as error:
                raise ConfigError(f"the rule {text!r} is no regular expression ({error})") from error
            return Rule(text, pattern, put)
        case "synonyms":
            first, *others = (word.strip() for word in rest.split(",") if word.strip())
            if not others:
                raise ConfigError(f"the rule {text!r} names one word: the others become the first")
            return Rule(text, _words(others), _literal(first))
        case "remove":
            return Rule(text, _words([rest]), "")
    return Rule(text, _words([find]), _literal(put))


def read_rules(path: Path) -> tuple[Rule, ...]:
    """The rules in a file. Raises ConfigError, with the line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the rules {path} cannot be read as UTF-8 text ({error})") from error
    rules = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                rules.append(parse_rule(line.strip()))
            except ConfigError as error:
                raise ConfigError(f"{path}, line {number}: {error}") from None
    return tuple(rules)


def tidy(caption: str) -> str:
    """White space squeezed, commas that follow each other made one, none at either end."""
    caption = re.sub(r"\s+([,.;:!?])", r"\1", " ".join(caption.split()))
    return re.sub(r",(?:\s*,)+", ",", caption).strip(" ,")


def _as_tags(caption: str) -> str:
    pieces = (piece.strip() for piece in re.split(r"[,\n]|\.(?:\s|$)", caption))
    return ", ".join(dict.fromkeys(piece for piece in pieces if piece))


def _words(words: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted(words, key=len, reverse=True)
    choice = "|".join(r"\s+".join(re.escape(part) for part in word.split()) for word in longest_first)
    return re.compile(rf"(?<!\w)(?:{choice})(?!\w)", re.IGNORECASE)


def _literal(text: str) -> str:
    return text.replace("\\", r"\\")
