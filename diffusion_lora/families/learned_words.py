"""New words for a base's text encoders: tokens that nobody can type, and a vector for each of them.

    add_word(model, "mine", {"te": vectors})                 # [n, width] for every text encoder
    encode_text(model, [spelled(model, "a zib on a beach", {"zib": "mine"})])

The tokenizers and the embedding tables grow at their ends; what they did for every other word stays as it was, bit for
bit. Which words of a prompt mean which vectors is the caller's to say, prompt by prompt (`spelled`): an adapter at
strength 0 leaves a word the letters that it is to the base. Vectors may be leaves that are being trained.

Textual inversion: Gal et al. 2022, https://arxiv.org/abs/2208.01618.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lora.families.model import Model

_FIRST_MARK = 0xE000  # Unicode's private use area: no tokenizer and no keyboard has these characters
_MARKS = 6400


class WordEmbedding(nn.Module):
    """A token embedding with further vectors, of the ids from `first` on. They are not parameters of the module."""

    def __init__(self, base: nn.Embedding, first: int) -> None:
        super().__init__()
        self.base = base
        self.first = first
        self.vectors: dict[str, Tensor] = {}

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, ids: Tensor) -> Tensor:
        known = self.base(ids.clamp(max=self.first - 1))
        if not self.vectors:
            return known
        learned = F.embedding((ids - self.first).clamp(min=0), torch.cat(list(self.vectors.values())))
        return torch.where((ids >= self.first)[..., None], learned.to(known.dtype), known)


def add_word(model: Model, key: str, vectors: Mapping[str, Tensor]) -> None:
    """Teach vectors to every text encoder: by component, [n, width] each, n alike, on the model's device.

    A key that is there already gets these vectors instead. ValueError when components, widths or n do not fit.
    """
    check_vectors(model, vectors)
    count = len(next(iter(vectors.values())))
    if key not in model.words:
        used = sum(len(marks) for marks in model.words.values())
        if used + count > _MARKS:
            raise ValueError(f"no more than {_MARKS} vectors of learned words fit a model")
        model.words[key] = "".join(chr(_FIRST_MARK + used + index) for index in range(count))
    elif len(model.words[key]) != count:
        raise ValueError(f"{key!r} has {len(model.words[key])} vectors, not {count}")
    for component, encoder in model.text_encoders.items():
        table = _table(encoder, model.tokenizers[component])
        if key not in table.vectors:
            _grow(model.tokenizers[component], model.words[key], table)
        table.vectors[key] = vectors[component]


def check_vectors(model: Model, vectors: Mapping[str, Tensor]) -> None:
    """ValueError, a clause, when these are not vectors of a word for this model."""
    if vectors.keys() != model.text_encoders.keys():
        mine, theirs = (", ".join(sorted(names)) for names in (model.text_encoders, vectors))
        raise ValueError(f"it has vectors for the text encoders {theirs}, and the base has {mine}")
    for component, encoder in model.text_encoders.items():
        width = _width(encoder)
        if vectors[component].ndim != 2 or vectors[component].shape[1] != width:
            raise ValueError(f"its vectors are {vectors[component].shape[-1]} wide, and the base's are {width}")
    if len({len(tensor) for tensor in vectors.values()}) != 1:
        raise ValueError("it has different numbers of vectors for the text encoders")


def spelled(model: Model, prompt: str, words: Mapping[str, str]) -> str:
    """The prompt with these words, each with the key of its vectors, written as their tokens.

    Capitals do not matter, as they do not to CLIP; a word inside another does not count.
    """
    for word, key in words.items():
        prompt = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", model.words[key], prompt, flags=re.IGNORECASE)
    return prompt


def first_vectors(model: Model, count: int, initial: str | None, seed: int) -> dict[str, Tensor]:
    """What a new word starts from, by text encoder, [count, width] in fp32 on the CPU.

    The vectors of the tokens of `initial`, over and over; without it random ones as long as the base's on average.
    """
    return {
        component: _first(encoder, model.tokenizers[component], count, initial, seed)
        for component, encoder in model.text_encoders.items()
    }


def _first(encoder: Any, tokenizer: Any, count: int, initial: str | None, seed: int) -> Tensor:
    table = encoder.get_input_embeddings().weight.detach().float().cpu()
    ids = tokenizer(initial, add_special_tokens=False).input_ids if initial else []
    if ids:
        return table[[ids[index % len(ids)] for index in range(count)]].clone()
    generator = torch.Generator().manual_seed(seed)
    return table.mean(0) + table.std(0) * torch.randn(count, table.shape[1], generator=generator)


def _table(encoder: Any, tokenizer: Any) -> WordEmbedding:
    """The encoder's token embedding, made one that can grow."""
    table = encoder.get_input_embeddings()
    if not isinstance(table, WordEmbedding):
        table = WordEmbedding(table, len(tokenizer))
        encoder.set_input_embeddings(table)
        # The old rule for the pooled state, "the highest id ends the text", would take a new token for the end.
        for module in encoder.modules():
            if getattr(module, "eos_token_id", None) == 2:
                module.eos_token_id = tokenizer.eos_token_id
    return table


def _grow(tokenizer: Any, marks: str, table: WordEmbedding) -> None:
    from transformers import AddedToken

    before = table.first + sum(map(len, table.vectors.values()))
    tokenizer.add_tokens([AddedToken(mark, normalized=False, lstrip=True, rstrip=True) for mark in marks])
    ids = tokenizer.convert_tokens_to_ids(list(marks))
    if ids != list(range(before, before + len(marks))):
        raise ValueError(f"the tokenizer gave the new tokens the ids {ids}, and the encoder expects {before} on")


def _width(encoder: Any) -> int:
    return int(encoder.get_input_embeddings().weight.shape[1])
