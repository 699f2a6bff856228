"""How captions become what the base reads: by its tokenizer, for training and for those who look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusion_lora.data.tokens import CaptionReader


def caption_reader(tokenizer: Any, size: int) -> CaptionReader:
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
    )
