"""A wording as chunks of tokens with weights, each as long as a text encoder reads at once. No torch.

The tokenizer is the caller's: a function from text to ids, without start and end marks. Names of textual inversions
stand for as many ids as they have vectors (Gal et al. 2022, https://arxiv.org/abs/2208.01618). As in AUTOMATIC1111's
web UI a chunk that is full ends at its last comma, if that is near.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from diffusion_lora.prompt.schedule import Wording, Words

Tokenize = Callable[[str], Sequence[int]]
"""Text to ids, without start and end marks."""

COMMA_BACKTRACK = 20


@dataclass(frozen=True, slots=True)
class Chunk:
    """What the text encoder reads at once: ids and a weight for each, at most as many as it has room for."""

    ids: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether every weight is 1."""
        return all(weight == 1.0 for weight in self.weights)


@dataclass
class _Open:
    """The chunk that is being filled; `comma` is the place behind its last comma."""

    tokens: list[tuple[int, float]] = field(default_factory=list)
    comma: int = 0


def chunks(
    wording: Wording,
    tokenize: Tokenize,
    size: int = 75,
    *,
    comma_id: int | None = None,
    inversions: Mapping[str, Sequence[int]] | None = None,
) -> tuple[Chunk, ...]:
    """The chunks of a wording, at least one; BREAK begins a new one.

    `size` is what a chunk holds without its marks. `inversions` gives the ids that a textual inversion's name stands
    for, names matched as whole words whatever their case; `comma_id` is the id of a comma that ends a word.
    """
    done: list[Chunk] = []
    for number, part in enumerate(wording):
        filling = _Open()
        for ids, weight, is_whole in _ids(part, tokenize, inversions or {}):
            if is_whole and len(filling.tokens) + len(ids) > size >= len(ids):
                done.append(_closed(filling.tokens))
                filling = _Open()
            for token in ids:
                if len(filling.tokens) == size:
                    filling = _overflow(filling, done)
                filling.tokens.append((token, weight))
                if token == comma_id:
                    filling.comma = len(filling.tokens)
        if filling.tokens or len(done) == 0 or number > 0:
            done.append(_closed(filling.tokens))
    return tuple(done)


def _overflow(full: _Open, done: list[Chunk]) -> _Open:
    """Close a full chunk, at its last comma if that is near; what came after it begins the next."""
    size = len(full.tokens)
    cut = full.comma if 0 < full.comma < size and size - full.comma <= COMMA_BACKTRACK else size
    done.append(_closed(full.tokens[:cut]))
    return _Open(full.tokens[cut:])


def _ids(
    part: Sequence[Words], tokenize: Tokenize, inversions: Mapping[str, Sequence[int]]
) -> Iterator[tuple[Sequence[int], float, bool]]:
    """(ids, weight, whether they stay together), in order."""
    known = {name.lower(): ids for name, ids in inversions.items()}
    names = sorted(map(re.escape, known), key=len, reverse=True)
    name = re.compile(rf"(?<!\w)({'|'.join(names)})(?!\w)", re.IGNORECASE) if names else None
    for words in part:
        pieces = name.split(words.text) if name else [words.text]
        for place, piece in enumerate(pieces):
            if place % 2:
                yield known[piece.lower()], words.weight, True
            elif piece:
                yield tokenize(piece), words.weight, False


def _closed(tokens: Sequence[tuple[int, float]]) -> Chunk:
    return Chunk(tuple(token for token, _ in tokens), tuple(weight for _, weight in tokens))
