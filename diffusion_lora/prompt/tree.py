"""What a prompt consists of, as values; `start` and `end` are places in its text. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Text:
    """Words as they are meant: escapes are resolved."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Weighted:
    """`(items)`, `(items:1.2)` or `[items]`: everything inside counts `factor` times as much."""

    items: tuple[Node, ...]
    factor: float
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Unclosed:
    """A bracket that is never closed: from here to the end of the prompt all counts `factor` times as much."""

    factor: float
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Scheduled:
    """`[before:after:when]`. `when` counts steps, or where it is written with a point, is a share of all steps."""

    before: tuple[Node, ...]
    after: tuple[Node, ...]
    when: float
    is_share: bool
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Alternating:
    """`[a|b|c]`: step n takes option n, then they begin anew."""

    options: tuple[tuple[Node, ...], ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Break:
    """`BREAK`: what follows begins a new chunk of the text encoder."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Choice:
    """`{a|b}`: one of these, taken once a picture (`wildcards`)."""

    options: tuple[tuple[Node, ...], ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Wildcard:
    """`__name__`: a line of the file `name.txt`, taken once a picture (`wildcards`)."""

    name: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Tag:
    """`<lora:name:…>` or `<lyco:name:…>`: an adapter, taken out of the text (`tags`)."""

    kind: str
    content: str
    start: int
    end: int


Node = Text | Weighted | Unclosed | Scheduled | Alternating | Break | Choice | Wildcard | Tag


@dataclass(frozen=True)
class Prompt:
    """A prompt taken apart. `notes` are sentences about what may not be meant as it stands: brackets left open."""

    source: str
    items: tuple[Node, ...]
    notes: tuple[str, ...] = field(default=())


def children(node: Node) -> tuple[Node, ...]:
    """The nodes right inside this one, in the order of the text."""
    match node:
        case Weighted(items=items):
            return items
        case Scheduled(before=before, after=after):
            return before + after
        case Alternating(options=options) | Choice(options=options):
            return tuple(item for option in options for item in option)
        case _:
            return ()
