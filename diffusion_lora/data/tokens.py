"""Captions as the base reads them: chunks of tokens with weights, and what is cut off. No torch.

The tokenizer is passed in. A plain caption of one chunk is cut where the tokenizer cuts it; longer and weighted ones go
through the grammar and the chunks of `prompt`, as prompts do in generation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from diffusion_lora.errors import DatasetError, PromptSyntaxError
from diffusion_lora.prompt.chunks import Chunk, Tokenize, chunks
from diffusion_lora.prompt.grammar import parse
from diffusion_lora.prompt.schedule import Wording, plain_wording, wording_at
from diffusion_lora.prompt.tree import Alternating, Node, Scheduled, Tag, children

CHUNK_TOKENS = 75
"""What a text encoder reads at once in the settings' words; a base of another length has its own."""


@dataclass(frozen=True)
class CaptionTokens:
    """A caption as it is trained with: its chunks, and the text that no chunk holds any more."""

    chunks: tuple[Chunk, ...]
    cut: str

    @property
    def count(self) -> int:
        """How many tokens are read, without marks."""
        return sum(len(chunk.ids) for chunk in self.chunks)


@dataclass(frozen=True)
class CaptionReader:
    """How captions become tokens.

    `size` is what a chunk holds, `most` how many chunks there are at most; `weighted` reads `(word:1.2)` and its kin,
    else brackets are characters like others.
    """

    tokenize: Tokenize
    decode: Callable[[Sequence[int]], str]
    comma_id: int | None = None
    size: int = CHUNK_TOKENS
    most: int = 1
    weighted: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether captions are read the way `encode_text` reads them."""
        return self.most == 1 and not self.weighted

    def read(self, caption: str) -> CaptionTokens:
        """The tokens of a caption. Raises DatasetError for a weight or bracket that is not understood."""
        if self.is_plain:
            ids = tuple(self.tokenize(caption))
            kept, rest = ids[: self.size], ids[self.size :]
            return CaptionTokens((Chunk(kept, (1.0,) * len(kept)),), self.decode(rest) if rest else "")
        found = chunks(self.wording(caption), self.tokenize, self.size, comma_id=self.comma_id)
        rest = tuple(token for chunk in found[self.most :] for token in chunk.ids)
        return CaptionTokens(found[: self.most], self.decode(rest) if rest else "")

    def wording(self, caption: str) -> Wording:
        """What a caption says, with its weights where they are read. Raises DatasetError."""
        return weighted_wording(caption) if self.weighted else plain_wording(caption)


def weighted_wording(caption: str) -> Wording:
    """A caption with weights. Raises DatasetError for one that is not understood, or holds what only a drawing has."""
    try:
        prompt = parse(caption)
    except PromptSyntaxError as error:
        raise DatasetError(f"the caption {caption!r} is not understood: {error}") from error
    foreign = next((node for node in _walk(prompt.items) if isinstance(node, Scheduled | Alternating | Tag)), None)
    if foreign is not None:
        said = caption[foreign.start : foreign.end]
        raise DatasetError(
            f"the caption {caption!r} has {said!r}, which only means something while a picture is drawn: take it out, "
            "or write a backslash in front of its brackets"
        )
    return wording_at(prompt, 1, 1)


def _walk(nodes: Sequence[Node]) -> list[Node]:
    found: list[Node] = []
    for node in nodes:
        found += [node, *_walk(children(node))]
    return found
