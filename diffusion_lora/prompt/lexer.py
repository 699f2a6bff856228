r"""The words and signs of a prompt, brackets paired: what the grammar is spoken over. No torch.

The rules are those of AUTOMATIC1111's web UI (`prompt_parser.py`): a number before `)` is a weight, one before `]` a
time, a backslash takes the meaning away from the sign that follows. Brackets are paired here, before the grammar sees
them, because a prompt may leave some open: `(a [b)` is no mistake there. Three signs are ours, with a `{`, `}` or `__`
that nothing belongs to being plain text: `{a|b}` and `__name__`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from lark.lexer import Lexer, Token

from diffusion_lora.errors import PromptSyntaxError

MAX_CHARS = 50_000
MAX_DEPTH = 50
MAX_WEIGHT = 100.0

_NUMBER = r"[+-]?(?:\d{1,9}\.?\d{0,20}|\.\d{1,20})(?:[eE][+-]?\d{1,3})?"
_SIGN = re.compile(
    rf"""(?P<ESCAPED>\\.?)
    | (?P<BREAK>\bBREAK\b)
    | (?P<AND>\bAND\b)
    | (?P<TAG><(?P<kind>\w{{1,20}}):(?P<content>[^<>]{{1,500}})>)
    | (?P<OPEN_TAG><(?:lora|lyco|hypernet)\b)
    | (?P<WILDCARD>__(?P<name>[\w\-./*]{{1,100}}?)__)
    | (?P<WEIGHT>:\s{{0,9}}[+-]?[.\d]{{1,30}}\s{{0,9}}(?=\)))
    | (?P<WHEN>:\s{{0,9}}{_NUMBER}\s{{0,9}}(?=\]))
    | (?P<BRACKET>[][(){{}}])
    | (?P<COLON>:)
    | (?P<BAR>\|)""",
    re.VERBOSE | re.DOTALL,
)
_PAIRS = {")": "(", "]": "[", "}": "{"}
_NAMES = {"(": "ROUND", ")": "END_ROUND", "[": "SQUARE", "]": "END_SQUARE", "{": "BRACE", "}": "END_BRACE"}
_TAG_KINDS = ("lora", "lyco")


class PromptLexer(Lexer):
    """Lark's lexer of prompts; every string has tokens, or a PromptSyntaxError."""

    def __init__(self, lexer_conf: Any) -> None:
        pass

    def lex(self, lexer_state: Any) -> Iterator[Token]:  # type: ignore[override]  # this form gets the bare string
        return iter(tokens_of(str(lexer_state)))


def tokens_of(source: str) -> list[Token]:
    """The tokens of a prompt, `start_pos` and `end_pos` being places in it. Raises PromptSyntaxError."""
    if len(source) > MAX_CHARS:
        raise PromptSyntaxError(f"the prompt has {len(source)} characters; {MAX_CHARS} are read", source, MAX_CHARS)
    return _paired(source, list(_signs(source)))


def _signs(source: str) -> Iterator[Token]:
    place = 0
    for match in _SIGN.finditer(source):
        if match.start() > place:
            yield _token("TEXT", source[place : match.start()], place)
        _refuse(source, match)
        yield _token(str(match.lastgroup), match[0], match.start())
        place = match.end()
    if place < len(source):
        yield _token("TEXT", source[place:], place)


def _refuse(source: str, match: re.Match[str]) -> None:
    """What has a meaning in other programs and none here is not drawn as if it were words."""
    text, at = match[0], match.start()
    match match.lastgroup:
        case "AND":
            raise PromptSyntaxError(
                "AND, which adds up several prompts, is not offered; write `and` or `\\AND` for the word", source, at
            )
        case "OPEN_TAG":
            raise PromptSyntaxError(f"the tag {text}… is not closed; write {text}:NAME:0.8>", source, at)
        case "TAG" if text[1 : text.index(":")].lower() not in _TAG_KINDS:
            raise PromptSyntaxError(
                f"the tag {_short(text)} is unknown; {' and '.join(f'<{kind}:…>' for kind in _TAG_KINDS)} are read",
                source,
                at,
            )
        case "WEIGHT":
            number = text[1:].strip()
            try:
                weight = float(number)
            except ValueError:
                raise PromptSyntaxError(f"the weight {number} is no number", source, at + 1) from None
            if not math.isfinite(weight) or abs(weight) > MAX_WEIGHT:
                raise PromptSyntaxError(f"the weight {number} is beyond {MAX_WEIGHT:g}", source, at + 1)


def _paired(source: str, tokens: list[Token]) -> list[Token]:
    """The tokens with every bracket named: one of a pair, left open (UNCLOSED), or plain text."""
    open_ones: list[int] = []
    for index, token in enumerate(tokens):
        if token.type != "BRACKET":
            continue
        bracket = str(token)
        if bracket in _PAIRS.values():
            open_ones.append(index)
            if len(open_ones) > MAX_DEPTH:
                raise PromptSyntaxError(f"more than {MAX_DEPTH} brackets are open here", source, token.start_pos or 0)
            continue
        partner = next((i for i in reversed(open_ones) if str(tokens[i]) == _PAIRS[bracket]), None)
        if partner is None:
            tokens[index] = _renamed(token, "TEXT")
            _as_text(tokens, index - 1)
            continue
        while open_ones[-1] != partner:  # brackets of another kind that this one runs across
            _leave_open(tokens, open_ones.pop())
        open_ones.pop()
        tokens[partner] = _renamed(tokens[partner], _NAMES[str(tokens[partner])])
        tokens[index] = _renamed(token, _NAMES[bracket])
    for index in open_ones:
        _leave_open(tokens, index)
    return tokens


def _leave_open(tokens: list[Token], index: int) -> None:
    tokens[index] = _renamed(tokens[index], "TEXT" if str(tokens[index]) == "{" else "UNCLOSED")


def _as_text(tokens: list[Token], index: int) -> None:
    """A weight or a time before a bracket that closes nothing is text as well."""
    if index >= 0 and tokens[index].type in ("WEIGHT", "WHEN"):
        tokens[index] = _renamed(tokens[index], "TEXT")


def _token(kind: str, text: str, start: int) -> Token:
    return Token(kind, text, start_pos=start, end_pos=start + len(text))


def _renamed(token: Token, kind: str) -> Token:
    return _token(kind, str(token), token.start_pos or 0)


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"
