"""What the captioner learns from: drawings, the same through the autoencoder, and their captions as tokens.

Three sources of pictures [N, 128, 128, 3]: the judge's drawings (any style, character and pair; some empty), the same
as the autoencoder gives them back, and a set drawn by `recipes.pocket.pictures`. A batch depends on (seed, step) alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from recipes.pocket.captioner.model import MAX_TOKENS
from recipes.pocket.captioner.words import caption_of, mirrored
from recipes.pocket.judge.drawings import Answers, answers, decoded, drawings, scenes
from recipes.pocket.judge.drawings import Autoencoder as Autoencoder
from recipes.pocket.judge.model import as_batch
from recipes.pocket.latents import scene_of
from recipes.pocket.pictures import load_set
from recipes.pocket.world import Scene

UNREST = 0.2
"""Noise on the latents of decoded pictures, in units of their spread: what a sampler draws is never quite clean."""
_SHIFT_PX = 6


@dataclass(frozen=True)
class Pictures:
    """N pictures, what the judge would say of them, and their captions as tokens [N, 2, L], plain and mirrored."""

    pixels: np.ndarray
    answers: Answers
    tokens: np.ndarray


@dataclass(frozen=True)
class Batch:
    """Pictures [B, 3, 128, 128] in [-1, 1], tokens [B, L] from [BOS] to [EOS] and padded, the judge's answers."""

    pixels: Tensor
    tokens: Tensor
    answers: Answers


def known(pixels: np.ndarray, shown: Sequence[Scene], words: PreTrainedTokenizerFast) -> Pictures:
    """Pictures with the scenes they show."""
    told = [text for scene in shown for text in (caption_of(scene), caption_of(mirrored(scene)))]
    tokens = words(told, padding="max_length", max_length=MAX_TOKENS, return_tensors="np").input_ids
    return Pictures(pixels, answers(shown, "all"), tokens.reshape(len(shown), 2, MAX_TOKENS).astype(np.int64))


def judged(folder: Path, count: int, seed: int, autoencoder: Autoencoder | None,
           words: PreTrainedTokenizerFast) -> list[Pictures]:
    """The judge's drawings of a seed and, with an autoencoder, their decoded twins; drawn into `folder` once."""
    drawn = drawings(folder, count, seed, print)
    shown = list(scenes(count, seed))
    again = [decoded(folder, drawn, autoencoder, seed, UNREST, print)] if autoencoder else []
    return [known(pixels, shown, words) for pixels in (drawn.pictures, *again)]


def drawn_set(folder: Path, words: PreTrainedTokenizerFast) -> Pictures:
    """A folder made by `recipes.pocket.pictures`."""
    pixels, facts = load_set(folder)
    return known(pixels, [scene_of(fact) for fact in facts], words)


def batch(sources: Sequence[Pictures], seed: int, step: int, size: int) -> Batch:
    """A batch with equal parts of every source, mirrored by chance and a little damaged."""
    rng = np.random.default_rng((seed, step))
    parts = []
    for number, source in enumerate(sources):
        count = size // len(sources) + (number < size % len(sources))
        chosen = np.sort(rng.choice(len(source.pixels), count, replace=False))
        turned = rng.random(count) < 0.5
        pixels = source.pixels[chosen]
        pixels[turned] = pixels[turned, :, ::-1]
        parts.append((pixels, source.tokens[chosen, turned.astype(int)], source.answers[chosen]))
    x_BCHW = damaged(as_batch(np.concatenate([part[0] for part in parts])), rng)
    tokens = torch.from_numpy(np.concatenate([part[1] for part in parts]))
    found = Answers(*(np.concatenate([getattr(part[2], name) for part in parts])
                      for name in Answers.__dataclass_fields__))
    return Batch(x_BCHW, tokens[:, : int((tokens != 0).sum(1).max())], found)


def damaged(x_BCHW: Tensor, rng: np.random.Generator) -> Tensor:
    """The pictures shifted, softened, in other light and with grain: too little to make any caption wrong."""
    count, _, height, width = x_BCHW.shape
    padded = F.pad(x_BCHW, (_SHIFT_PX,) * 4, mode="replicate")
    moves = rng.integers(0, 2 * _SHIFT_PX + 1, (count, 2))
    x_BCHW = torch.stack([padded[row, :, y : y + height, x : x + width] for row, (y, x) in enumerate(moves)])
    soft = torch.from_numpy(np.flatnonzero(rng.random(count) < 0.25))
    x_BCHW[soft] = F.avg_pool2d(x_BCHW[soft], 3, 1, 1, count_include_pad=False)
    contrast = torch.from_numpy(rng.uniform(0.9, 1.1, (count, 1, 1, 1)).astype(np.float32))
    light = torch.from_numpy(rng.uniform(-0.06, 0.06, (count, 1, 1, 1)).astype(np.float32))
    grain = torch.from_numpy(rng.uniform(0, 0.08, (count, 1, 1, 1)).astype(np.float32))
    noise = torch.from_numpy(rng.standard_normal(x_BCHW.shape, np.float32))
    return (x_BCHW * contrast + light + grain * noise).clamp_(-1, 1)
