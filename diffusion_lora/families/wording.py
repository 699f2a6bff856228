"""Weighted and long prompts for any family: a wording becomes frames, frames become conditioning.

A frame is what a text encoder reads at once: start mark, up to 75 tokens, end mark, padding. The states of a prompt's
frames stand one after the other, as AUTOMATIC1111's web UI has them. A weight multiplies its token's state, and the
mean of the prompt's states is then restored (its "Original" emphasis; of a family with two encoders the mean is that
of both). Words without brackets that fit one frame give the very ids, and so the very bits, of `encode_text`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lora.families.family import encode_ids
from diffusion_lora.families.model import Conditioning, Model
from diffusion_lora.prompt.chunks import Chunk, chunks
from diffusion_lora.prompt.schedule import Wording

TOKEN_AXIS = "_BTC"
"""A conditioning's tensors of this ending have one state a token; the others belong to the whole prompt."""


@dataclass(frozen=True)
class Frame:
    """The ids and weights, marks and padding included, that every tokenizer gives a piece of a prompt.

    `tokens` says how many of them the prompt's own words take.
    """

    ids: Mapping[str, tuple[int, ...]]
    weights: tuple[float, ...]
    tokens: int

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for frames that read alike."""
        return tuple(self.ids.values()), self.weights


def frames(model: Model, wording: Wording, *, longest: int | None = None) -> list[Frame]:
    """The frames of a wording, at least one. `longest` cuts off what comes after so many frames."""
    read = {name: _chunks(model, name, wording) for name in model.tokenizers}
    count = max(map(len, read.values()))
    made = []
    for number in range(count):
        parts = {name: found[number] if number < len(found) else Chunk() for name, found in read.items()}
        first = next(iter(parts.values()))
        made.append(
            Frame(
                {name: _framed(model, name, part) for name, part in parts.items()},
                _with_ones(first, model.max_tokens),
                len(first.ids),
            )
        )
    return made[:longest]


def encode_frames(model: Model, rows: Sequence[Frame], clip_skip: int = 1) -> Conditioning:
    """The states of frames, one row each, unweighted."""
    ids = {name: torch.tensor([row.ids[name] for row in rows]) for name in model.tokenizers}
    return encode_ids(model, ids, clip_skip)


def joined(frames_of_prompt: Sequence[Frame], states: Sequence[Conditioning]) -> Conditioning:
    """One prompt's conditioning, a batch of one, from its frames' own: weighted and one after the other."""
    tensors: dict[str, Tensor] = {}
    for name, first in states[0].tensors.items():
        if not name.endswith(TOKEN_AXIS):
            tensors[name] = first  # of the whole prompt: the first frame's, as the web UI has it
            continue
        whole = first if len(states) == 1 else torch.cat([state.tensors[name] for state in states], dim=1)
        weights = [weight for frame in frames_of_prompt for weight in frame.weights]
        tensors[name] = whole if all(weight == 1.0 for weight in weights) else _weighted(whole, weights)
    return Conditioning(tensors)


def _weighted(states_1TC: Tensor, weights: Sequence[float]) -> Tensor:
    factors_T1 = torch.tensor(weights, device=states_1TC.device)[:, None]
    plain = states_1TC.double()  # means are small numbers, in which the rounding of a batch would be seen
    weighted = plain * factors_T1
    mean = weighted.mean()
    if mean != 0:
        weighted = weighted * (plain.mean() / mean)
    return weighted.to(states_1TC.dtype)


def _chunks(model: Model, name: str, wording: Wording) -> tuple[Chunk, ...]:
    tokenizer = model.tokenizers[name]

    def tokenize(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids

    return chunks(wording, tokenize, model.max_tokens, comma_id=tokenizer.convert_tokens_to_ids(",</w>"))


def _framed(model: Model, name: str, chunk: Chunk) -> tuple[int, ...]:
    tokenizer = model.tokenizers[name]
    padding = (tokenizer.pad_token_id,) * (model.max_tokens - len(chunk.ids))
    return (tokenizer.bos_token_id, *chunk.ids, tokenizer.eos_token_id, *padding)


def _with_ones(chunk: Chunk, size: int) -> tuple[float, ...]:
    return (1.0, *chunk.weights, *(1.0,) * (size + 1 - len(chunk.weights)))
