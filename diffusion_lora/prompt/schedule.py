"""Which words a prompt says at which step, and how strongly. No torch.

    wordings(parse("a [red:blue:0.5] cat"), steps=20)      # "a red cat" until step 10, "a blue cat" until step 20

Steps count from 1. The rules are those of AUTOMATIC1111's web UI: `[a:b:n]` says a up to and with step n; a number with
a point is a share of the steps; in a second pass (hires fix) shares are counted from 1 and steps from the first pass's
end, so that `[a:b:1.5]` changes in its middle. A bracket multiplies the weight of what is in it; nested ones multiply.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Words:
    """Words of one weight; 1 is plain."""

    text: str
    weight: float = 1.0


Wording = tuple[tuple[Words, ...], ...]
"""What a prompt says at one step: the parts between BREAKs."""

PLAIN: Wording = ((),)
"""The empty prompt."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A wording and the last step it holds for."""

    until: int
    wording: Wording


def wordings(prompt: Prompt, steps: int, *, first_pass_steps: int | None = None) -> tuple[Stage, ...]:
    """The wordings of a prompt over `steps` steps, at least one; neighbours differ.

    `first_pass_steps` is given for a second pass (hires fix): how many steps the first one had.
    """
    ends = {steps}
    for node in _walk(prompt.items):
        if isinstance(node, Scheduled):
            ends.add(_last_step(node, steps, first_pass_steps))
        elif isinstance(node, Alternating):
            ends.update(range(1, steps + 1))
    stages: list[Stage] = []
    for end in sorted(end for end in ends if end >= 1):
        wording = wording_at(prompt, end, steps, first_pass_steps=first_pass_steps)
        if stages and stages[-1].wording == wording:
            stages.pop()
        stages.append(Stage(end, wording))
    return tuple(stages)


def wording_at(prompt: Prompt, step: int, steps: int, *, first_pass_steps: int | None = None) -> Wording:
    """What the prompt says at a step, 1 being the first."""
    writer = _Writer(prompt.source, step, steps, first_pass_steps)
    writer.write(prompt.items, 1.0)
    return writer.wording()


def plain_wording(text: str) -> Wording:
    """The text as it stands, without any grammar."""
    return ((Words(text),),) if text else PLAIN


def _last_step(node: Scheduled, steps: int, first_pass_steps: int | None) -> int:
    """The last step at which `before` holds."""
    if node.is_share:
        when = (node.when - (0.0 if first_pass_steps is None else 1.0)) * steps
    else:
        when = node.when - (first_pass_steps or 0)
    return int(min(steps, when))


def _walk(nodes: Sequence[Node]) -> Iterator[Node]:
    for node in nodes:
        yield node
        yield from _walk(children(node))


class _Writer:
    """Says the nodes of a prompt at one step, in order."""

    def __init__(self, source: str, step: int, steps: int, first_pass_steps: int | None) -> None:
        self._source = source
        self._step, self._steps, self._first_pass_steps = step, steps, first_pass_steps
        self._from_here_on = 1.0  # brackets left open
        self._parts: list[list[Words]] = [[]]

    def write(self, nodes: Sequence[Node], weight: float) -> None:
        for node in nodes:
            match node:
                case Text(text=text):
                    self._say(text, weight)
                case Weighted(items=items, factor=factor):
                    self.write(items, weight * factor)
                case Unclosed(factor=factor):
                    self._from_here_on *= factor
                case Scheduled(before=before, after=after):
                    last = _last_step(node, self._steps, self._first_pass_steps)
                    self.write(before if self._step <= last else after, weight)
                case Alternating(options=options):
                    self.write(options[(self._step - 1) % len(options)], weight)
                case Break():
                    self._parts.append([])
                case Choice() | Wildcard():  # nobody chose: then they are words
                    self._say(self._source[node.start : node.end], weight)
                case Tag():
                    pass

    def wording(self) -> Wording:
        """The parts, without the white space around BREAK."""
        parts = self._parts
        for number, part in enumerate(parts):
            if number > 0 and part:
                part[0] = Words(part[0].text.lstrip(), part[0].weight)
            if number < len(parts) - 1 and part:
                part[-1] = Words(part[-1].text.rstrip(), part[-1].weight)
        return tuple(tuple(words for words in part if words.text) for part in parts)

    def _say(self, text: str, weight: float) -> None:
        weight *= self._from_here_on
        part = self._parts[-1]
        if part and part[-1].weight == weight:
            text = part.pop().text + text
        part.append(Words(text, weight))
