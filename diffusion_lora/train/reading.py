"""How captions become what the base reads: tokens for those who look, conditioning for those who train.

Plain captions of one chunk go through `encode_text`. Longer and weighted ones become frames, as prompts do in
generation, always as many as `dataset.caption_tokens` has room for: the tensors of every step have one shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from diffusion_lora.config import DatasetTable
from diffusion_lora.data.tokens import CHUNK_TOKENS, CaptionReader
from diffusion_lora.families.family import Conditioning, Model, encode_text
from diffusion_lora.families.wording import TOKEN_AXIS, encode_frames, frames, joined
from diffusion_lora.prompt.schedule import PLAIN


def caption_reader(table: DatasetTable, tokenizer: Any, size: int) -> CaptionReader:
    """The reader of a set's captions; `size` is what the text encoder reads at once."""

    def tokenize(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    return CaptionReader(
        tokenize,
        decode,
        comma_id=tokenizer.convert_tokens_to_ids(",</w>"),
        size=size,
        most=table.caption_tokens // CHUNK_TOKENS,
        weighted=table.weighted,
    )


def model_reader(table: DatasetTable, model: Model) -> CaptionReader:
    """The reader of a set's captions for a base that is loaded; of two text encoders the first one counts."""
    return caption_reader(table, next(iter(model.tokenizers.values())), model.max_tokens)


def encode_captions(model: Model, table: DatasetTable, captions: Sequence[str]) -> Conditioning:
    """Captions as the UNet reads them, one row each, weights and further chunks included. Gradients flow.

    Raises DatasetError for a weight that is not understood.
    """
    reader = model_reader(table, model)
    if reader.is_plain:
        return encode_text(model, captions)
    (empty,) = frames(model, PLAIN)
    rows = [frames(model, reader.wording(caption), longest=reader.most) for caption in captions]
    states = encode_frames(model, [frame for row in rows for frame in (*row, *[empty] * (reader.most - len(row)))])
    encoded = []
    for number, row in enumerate(rows):
        first = number * reader.most
        whole = joined(row, [states[first + place] for place in range(len(row))])
        filling = [states[first + place] for place in range(len(row), reader.most)]
        encoded.append(_followed_by(whole, filling) if filling else whole)
    return Conditioning.cat(encoded)


def _followed_by(whole: Conditioning, filling: Sequence[Conditioning]) -> Conditioning:
    """Empty chunks behind a caption; what belongs to the whole text stays the caption's."""
    return Conditioning(
        {
            name: torch.cat([tensor, *(part.tensors[name] for part in filling)], dim=1)
            if name.endswith(TOKEN_AXIS)
            else tensor
            for name, tensor in whole.tensors.items()
        }
    )
