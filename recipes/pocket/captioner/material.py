"""What the captioner learns from: drawings, the same through the autoencoder, and their captions as tokens.

Three sources of pictures [N, 128, 128, 3]: the judge's drawings (any style, character and pair; some empty), the same
as the autoencoder gives them back, and a set drawn by `recipes.pocket.pictures`. A batch depends on (seed, step) alone.
"""

from __future__ import annotations

import warnings
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
from recipes.pocket.latents import scene_of
from recipes.pocket.pictures import load_set
from recipes.pocket.world import Scene

UNREST = 0.2
"""Noise on the latents of decoded pictures, in units of their spread: what a sampler draws is never quite clean."""
_SHIFT_PX = 6


@dataclass(frozen=True)
class Pictures:
    """N pictures uint8 [N, 128, 128, 3] where training is done, what the judge would say of them, and their captions as
    tokens [N, 2, L], plain and mirrored."""

    pixels: Tensor
    answers: Answers
    tokens: np.ndarray


@dataclass(frozen=True)
class Batch:
    """Pictures [B, 3, 128, 128] in [-1, 1], tokens [B, L] from [BOS] to [EOS] and padded, the judge's answers."""

    pixels: Tensor
    tokens: Tensor
    answers: Answers


def known(pixels: np.ndarray, shown: Sequence[Scene], words: PreTrainedTokenizerFast, device: str) -> Pictures:
    """Pictures with the scenes they show; on the CPU they stay in their file until a batch wants them."""
    told = [text for scene in shown for text in (caption_of(scene), caption_of(mirrored(scene)))]
    tokens = words(told, padding="max_length", max_length=MAX_TOKENS, return_tensors="np").input_ids
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nobody writes
        there = torch.from_numpy(pixels).to(device)
    return Pictures(there, answers(shown, "all"), tokens.reshape(len(shown), 2, MAX_TOKENS).astype(np.int64))


def judged(folder: Path, count: int, seed: int, autoencoder: Autoencoder | None, words: PreTrainedTokenizerFast,
           device: str = "cpu", processes: int = 1) -> list[Pictures]:
    """The judge's drawings of a seed and, with an autoencoder, their decoded twins; drawn into `folder` once."""
    drawn = drawings(folder, count, seed, print, processes)
    shown = list(scenes(count, seed))
    again = [decoded(folder, drawn, autoencoder, seed, UNREST, print)] if autoencoder else []
    return [known(pixels, shown, words, device) for pixels in (drawn.pictures, *again)]


def drawn_set(folder: Path, words: PreTrainedTokenizerFast, device: str = "cpu") -> Pictures:
    """A folder made by `recipes.pocket.pictures`."""
    pixels, facts = load_set(folder)
    return known(pixels, [scene_of(fact) for fact in facts], words, device)


def batch(sources: Sequence[Pictures], seed: int, step: int, size: int) -> Batch:
    """A batch with equal parts of every source, mirrored by chance and a little damaged."""
    rng = np.random.default_rng((seed, step))
    parts = []
    for number, source in enumerate(sources):
        count = size // len(sources) + (number < size % len(sources))
        chosen = np.sort(rng.choice(len(source.pixels), count, replace=False))
        turned = rng.random(count) < 0.5
        device = source.pixels.device
        pixels = source.pixels[torch.from_numpy(chosen).to(device)]
        pixels = torch.where(torch.from_numpy(turned).to(device)[:, None, None, None], pixels.flip(2), pixels)
        parts.append((pixels, source.tokens[chosen, turned.astype(int)], source.answers[chosen]))
    x_BCHW = torch.cat([part[0] for part in parts]).permute(0, 3, 1, 2).float() / 127.5 - 1
    tokens = torch.from_numpy(np.concatenate([part[1] for part in parts]))
    found = Answers(*(np.concatenate([getattr(part[2], name) for part in parts])
                      for name in Answers.__dataclass_fields__))
    tokens = tokens[:, : int((tokens != 0).sum(1).max())].to(x_BCHW.device)
    return Batch(damaged(x_BCHW, rng), tokens, found)


def damaged(x_BCHW: Tensor, rng: np.random.Generator) -> Tensor:
    """The pictures shifted, softened, in other light and with grain: too little to make any caption wrong."""
    (count, _, height, width), device = x_BCHW.shape, x_BCHW.device

    def drawn(low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, 1, 1, 1)).astype(np.float32)).to(device)

    padded = F.pad(x_BCHW, (_SHIFT_PX,) * 4, mode="replicate")
    moves = torch.from_numpy(rng.integers(0, 2 * _SHIFT_PX + 1, (2, count, 1))).to(device)
    rows, columns = moves[0] + torch.arange(height, device=device), moves[1] + torch.arange(width, device=device)
    which = torch.arange(count, device=device)[:, None, None]
    x_BCHW = padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    softened = F.avg_pool2d(x_BCHW, 3, 1, 1, count_include_pad=False)
    x_BCHW = torch.where(drawn(0, 1) < 0.25, softened, x_BCHW)
    contrast, light, grain = drawn(0.9, 1.1), drawn(-0.06, 0.06), drawn(0, 0.08)
    generator = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
    noise = torch.randn(x_BCHW.shape, generator=generator, device=device)
    return (x_BCHW * contrast + light + grain * noise).clamp_(-1, 1)
