"""Captions as the UNet reads them while a text encoder, or a word in it, is learning: encoded anew in every step.

As soon as all of it rests (`rates.rests`) gradients stop and each caption is encoded once more, alone, so that its bits
do not depend on which others stood beside it. Captions of a text encoder that never learns are `prepare`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from diffusion_lora.config import TrainConfig
from diffusion_lora.families.family import Conditioning, Model
from diffusion_lora.families.learned_words import add_word, first_vectors, spelled
from diffusion_lora.lora.trainable import TrainableAdapter
from diffusion_lora.train.rates import rests, segment_rate
from diffusion_lora.train.reading import encode_captions

_KEPT = 512  # captions; more of them are encoded again


def text_learns(config: TrainConfig, adapter: TrainableAdapter, step: int = 0) -> bool:
    """Whether anything but the UNet's part learns in this step."""
    texts = [segment for segment in adapter.segments if not segment.startswith("unet")]
    return any(segment_rate(config.optimizer, name) > 0 and not rests(config.optimizer, name, step) for name in texts)


def words_to_learn(config: TrainConfig, model: Model) -> dict[str, dict[str, torch.Tensor]]:
    """The new word of a run with the vectors it starts from; empty where none is learned."""
    word = config.word
    return {word.text: first_vectors(model, word.vectors, word.initial, config.train.seed)} if word.text else {}


def teach(model: Model, adapter: TrainableAdapter, *, side_by_side: bool) -> None:
    """Let the text encoders know the words whose vectors the adapter is learning."""
    for word, key in taught(adapter, side_by_side=side_by_side).items():
        add_word(model, key, adapter.words[word])


def taught(adapter: TrainableAdapter, *, side_by_side: bool) -> dict[str, str]:
    """The keys under which the model knows an adapter's words: side by side each has its own for the same word."""
    return {word: f"{adapter.name} {word}" if side_by_side else word for word in adapter.words}


def learning(
    configs: Sequence[TrainConfig], model: Model, adapters: Sequence[TrainableAdapter]
) -> Callable[[Sequence[str]], Conditioning]:
    """captions -> conditioning, one row each, in the step that the adapters' clocks are in.

    Of several adapters the rows are those of each, one after the other, as in `AdapterBank.side_by_side`. There, and
    where every picture has dropout masks of its own, every row is encoded by itself; else each distinct caption once.
    """
    if len(adapters) > 1:
        return _learning_side_by_side(configs, model, adapters)
    config, adapter = configs[0], adapters[0]
    table = config.dataset
    words = taught(adapter, side_by_side=False)
    each = any((config.lora.dropout, config.lora.rank_dropout, config.lora.module_dropout))
    kept: dict[str, Conditioning] = {}

    def condition(captions: Sequence[str]) -> Conditioning:
        texts = [spelled(model, caption, words) for caption in captions]
        if not text_learns(config, adapter, adapter.clock.step):
            return Conditioning.cat([encoded_alone(text) for text in texts])
        if each:
            return encode_captions(model, table, texts)
        rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        return encode_captions(model, table, list(rows))[[rows[text] for text in texts]]

    @torch.no_grad()
    def encoded_alone(text: str) -> Conditioning:
        if text in kept:
            return kept[text]
        encoded = encode_captions(model, table, [text])
        if len(kept) < _KEPT:
            kept[text] = encoded
        return encoded

    return condition


def _learning_side_by_side(
    configs: Sequence[TrainConfig], model: Model, adapters: Sequence[TrainableAdapter]
) -> Callable[[Sequence[str]], Conditioning]:
    words = [taught(adapter, side_by_side=True) for adapter in adapters]
    table = configs[0].dataset

    def condition(captions: Sequence[str]) -> Conditioning:
        rows = len(captions) // len(adapters)
        texts = [spelled(model, caption, words[row // rows]) for row, caption in enumerate(captions)]
        learn = (
            text_learns(config, adapter, adapter.clock.step)
            for config, adapter in zip(configs, adapters, strict=True)
        )
        with torch.set_grad_enabled(any(learn) and torch.is_grad_enabled()):
            return encode_captions(model, table, texts)

    return condition
