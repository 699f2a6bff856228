"""The grammar of prompts: text in, `tree.Prompt` out. No torch.

    parse("a (red:1.2) cat [by day:by night:0.5]")

It reads what AUTOMATIC1111's web UI reads, and gives it the same meaning. LALR over paired brackets (`lexer`): time and
memory grow with the length of the prompt, whatever stands in it. A number that is no weight, a tag that is not closed
and the like raise PromptSyntaxError, which knows the place.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from lark import Lark, Token, Transformer

from diffusion_lora.prompt.lexer import PromptLexer
from diffusion_lora.prompt.tree import (
    Alternating,
    Break,
    Choice,
    Node,
    Prompt,
    Scheduled,
    Tag,
    Text,
    Unclosed,
    Weighted,
    Wildcard,
    children,
)

EMPHASIS = 1.1
"""What a pair of round brackets multiplies by, and a pair of square ones divides by."""

_GRAMMAR = """
start: part*
?part: TEXT | ESCAPED | BREAK | TAG | WILDCARD | UNCLOSED | COLON | BAR | round | square | choice
round: ROUND part* [WEIGHT] END_ROUND
square: SQUARE part* [WHEN] END_SQUARE
choice: BRACE part* END_BRACE

%declare TEXT ESCAPED BREAK TAG WILDCARD UNCLOSED COLON BAR WEIGHT WHEN
%declare ROUND END_ROUND SQUARE END_SQUARE BRACE END_BRACE
"""


def parse(source: str) -> Prompt:
    """Take a prompt apart. Raises PromptSyntaxError, which points at the character."""
    items: tuple[Node, ...] = _parser().parse(source)  # type: ignore[assignment]
    return Prompt(source, items, tuple(_notes(items)))


@cache
def _parser() -> Lark:
    return Lark(_GRAMMAR, parser="lalr", lexer=PromptLexer, transformer=_Builder(), maybe_placeholders=False)


class _Builder(Transformer[Token, Any]):
    """Nodes from the rules; signs are decided where their bracket is known."""

    def start(self, parts: list[Any]) -> tuple[Node, ...]:
        return _nodes(parts)

    def round(self, parts: list[Any]) -> Weighted:
        first, last = parts[0], parts[-1]
        inside = parts[1:-1]
        factor = EMPHASIS
        if inside and _is(inside[-1], "WEIGHT"):
            factor = float(inside.pop()[1:])
        return Weighted(_nodes(inside), factor, first.start_pos, last.end_pos)

    def square(self, parts: list[Any]) -> Node:
        start, end = parts[0].start_pos, parts[-1].end_pos
        inside = parts[1:-1]
        if inside and _is(inside[-1], "WHEN"):
            sections = _split(inside[:-1], "COLON")
            if len(sections) <= 2:
                before, after = ([], *sections) if len(sections) == 1 else sections
                when = str(inside[-1])[1:].strip()
                return Scheduled(_nodes(before), _nodes(after), float(when), "." in when, start, end)
        elif any(_is(part, "BAR") for part in inside):
            return Alternating(tuple(_nodes(option) for option in _split(inside, "BAR")), start, end)
        return Weighted(_nodes(inside), 1 / EMPHASIS, start, end)

    def choice(self, parts: list[Any]) -> Choice:
        options = _split(parts[1:-1], "BAR")
        return Choice(tuple(_nodes(option) for option in options), parts[0].start_pos, parts[-1].end_pos)


def _is(part: Any, kind: str) -> bool:
    return isinstance(part, Token) and part.type == kind


def _split(parts: list[Any], sign: str) -> list[list[Any]]:
    sections: list[list[Any]] = [[]]
    for part in parts:
        if _is(part, sign):
            sections.append([])
        else:
            sections[-1].append(part)
    return sections


def _nodes(parts: list[Any]) -> tuple[Node, ...]:
    return tuple(_node(part) if isinstance(part, Token) else part for part in parts)


def _node(token: Token) -> Node:
    text, start, end = str(token), token.start_pos or 0, token.end_pos or 0
    match token.type:
        case "BREAK":
            return Break(start, end)
        case "TAG":
            kind, _, content = text[1:-1].partition(":")
            return Tag(kind.lower(), content, start, end)
        case "WILDCARD":
            return Wildcard(text[2:-2], start, end)
        case "UNCLOSED":
            return Unclosed(EMPHASIS if text == "(" else 1 / EMPHASIS, start, end)
        case "ESCAPED":
            return Text(text[1:], start, end)
        case _:  # a sign that has no meaning where it stands is text
            return Text(text, start, end)


def _notes(items: tuple[Node, ...]) -> Iterator[str]:
    for item in items:
        if isinstance(item, Unclosed):
            sign, effect = ("(", "stronger") if item.factor > 1 else ("[", "weaker")
            yield f"the {sign} at character {item.start + 1} is never closed: all that follows it is {effect}"
        yield from _notes(children(item))
