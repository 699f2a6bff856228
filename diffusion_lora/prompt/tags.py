"""Adapter tags: `<lora:name:te:unet>` taken out of a prompt. No torch; where the name lies is the caller's to find.

The order is AUTOMATIC1111's: the first number is the text encoder's, the second the UNet's, one number is both's, none
is 1. Named arguments may stand anywhere behind the name, and hold over numbers: `<lora:name:te=0.5:unet=0.8>`. `lyco`
means the same. Ours besides, handed on as text: `steps=`,
`blocks=`, `region=` and `negative=`, in which `=` stands for the colon that a tag cannot hold: `blocks=mid=0.5`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from diffusion_lora.errors import PromptSyntaxError
from diffusion_lora.prompt.grammar import parse
from diffusion_lora.prompt.tree import Node, Prompt, Tag, children

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_STRENGTHS = ("te", "unet")
_HANDED_ON = ("blocks", "steps", "region", "negative")
_LEFT_OUT = ("dyn",)


@dataclass(frozen=True, slots=True)
class AdapterTag:
    """What a tag says. `text` and `unet` are strengths; `options` are the named arguments that are not."""

    name: str
    text: float
    unet: float
    options: tuple[tuple[str, str], ...]
    start: int


def take_tags(source: str, *, foreign: bool = False) -> tuple[str, tuple[AdapterTag, ...]]:
    """The prompt without its tags, and the tags in order. Raises PromptSyntaxError for a tag that is not understood.

    In `foreign` prompts, those of other programs, arguments with unknown names are left out: extensions have many.
    The white space around a tag becomes one space, or nothing at the ends; a prompt without tags is untouched.
    """
    prompt = parse(source)
    found = list(_tags(prompt.items))
    tags = tuple(_read(prompt, tag, foreign=foreign) for tag in found)
    rest, place = "", 0
    for tag in found:
        rest = _joined(rest, source[place : tag.start])
        place = tag.end
    return (_joined(rest, source[place:]).strip(" ") if found else source), tags


def _joined(before: str, after: str) -> str:
    return before.rstrip(" ") + " " + after.lstrip(" ") if before[-1:] == " " and after[:1] == " " else before + after


def _tags(nodes: Sequence[Node]) -> Iterator[Tag]:
    for node in nodes:
        if isinstance(node, Tag):
            yield node
        yield from _tags(children(node))


def _read(prompt: Prompt, tag: Tag, *, foreign: bool) -> AdapterTag:
    name, *arguments = tag.content.split(":")
    if not name.strip():
        raise PromptSyntaxError("the tag does not name a LoRA", prompt.source, tag.start)
    numbers: list[float] = []
    named: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = (part.strip() for part in argument.partition("="))
        if not equals:
            numbers.append(_number(prompt, tag, key))
        elif key.lower() in (*_STRENGTHS, *_HANDED_ON):
            named[key.lower()] = value if key.lower() in _STRENGTHS else value.replace("=", ":")
        elif key.lower() not in _LEFT_OUT and not foreign:
            known = ", ".join(f"{name}=" for name in (*_STRENGTHS, *_HANDED_ON))
            raise PromptSyntaxError(f"{key}= is unknown in a tag; {known} are read", prompt.source, tag.start)
    if len(numbers) > 2:  # the third is A1111's dynamic rank, which nothing here has
        numbers = numbers[:2]
    text = _number(prompt, tag, named["te"]) if "te" in named else (numbers[0] if numbers else 1.0)
    unet = _number(prompt, tag, named["unet"]) if "unet" in named else (numbers[1] if len(numbers) > 1 else text)
    options = tuple((key, named[key]) for key in _HANDED_ON if key in named)
    return AdapterTag(name.strip(), text, unet, options, tag.start)


def _number(prompt: Prompt, tag: Tag, text: str) -> float:
    number = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(number):
        raise PromptSyntaxError(f"{text or 'nothing'!r} is no strength, as 0.8 is", prompt.source, tag.start)
    return number
