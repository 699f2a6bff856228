"""Captions as the UNet reads them while a text encoder, or a word in it, is learning: encoded anew in every step.

As soon as all of it rests (`rates.rests`) gradients stop and each caption is encoded once more, alone, so that its bits
do not depend on which others stood beside it. Captions of a text encoder that never learns are `prepare`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from diffusion_lora.config import TrainConfig
from diffusion_lora.families.family import Conditioning, Model, encode_text
from diffusion_lora.families.learned_words import add_word, first_vectors, spelled
from diffusion_lora.lora.trainable import TrainableAdapter
from diffusion_lora.train.rates import rests, segment_rate

_KEPT = 512  # captions; more of them are encoded again


def text_learns(config: TrainConfig, adapter: TrainableAdapter, step: int = 0) -> bool:
    """Whether anything but the UNet's part learns in this step."""
    texts = [segment for segment in adapter.segments if not segment.startswith("unet")]
    return any(segment_rate(config.optimizer, name) > 0 and not rests(config.optimizer, name, step) for name in texts)


def words_to_learn(config: TrainConfig, model: Model) -> dict[str, dict[str, torch.Tensor]]:
    """The new word of a run with the vectors it starts from; empty where none is learned."""
    word = config.word
    return {word.text: first_vectors(model, word.vectors, word.initial, config.train.seed)} if word.text else {}


def teach(model: Model, words: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Let the text encoders know words whose vectors are being learned."""
    for word, vectors in words.items():
        add_word(model, word, vectors)


def learning(config: TrainConfig, model: Model, adapter: TrainableAdapter) -> Callable[[Sequence[str]], Conditioning]:
    """captions -> conditioning, one row each, in the step that the adapter's clock is in."""
    words = {word: word for word in adapter.words}
    kept: dict[str, Conditioning] = {}

    def condition(captions: Sequence[str]) -> Conditioning:
        texts = [spelled(model, caption, words) for caption in captions]
        if text_learns(config, adapter, adapter.clock.step):
            rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
            return encode_text(model, list(rows))[[rows[text] for text in texts]]
        return Conditioning.cat([encoded_alone(text) for text in texts])

    @torch.no_grad()
    def encoded_alone(text: str) -> Conditioning:
        if text in kept:
            return kept[text]
        encoded = encode_text(model, [text])
        if len(kept) < _KEPT:
            kept[text] = encoded
        return encoded

    return condition
