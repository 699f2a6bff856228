"""A captioner that looks at every picture from several places and says what all views together make most likely.

A small model takes a thing for its neighbour in the drawing more often than nine slightly moved views do together. Its
own configuration says how far the views are moved (`views_px`); models without that look once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LogitsProcessor

COUNT = 9


def moved(pixels: Tensor, px: int) -> Tensor:
    """Pictures ``[B, C, H, W]`` as they are and moved by `px` to eight sides, ``[9 B, C, H, W]``, view after view; the
    edge is continued."""
    height, width = pixels.shape[2:]
    wide = F.pad(pixels, (px, px, px, px), mode="replicate")
    places = [(down, right) for down in (px, 0, 2 * px) for right in (px, 0, 2 * px)]  # as it is comes first
    return torch.cat([wide[:, :, down : down + height, right : right + width] for down, right in places])


class Agreement(LogitsProcessor):
    """The next token of all views of a picture: their log probabilities' mean, the same for each, so that greedy
    decoding says one and the same text of all."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        mean: Tensor = scores.view(COUNT, -1, scores.shape[-1]).log_softmax(-1).mean(0)
        return mean.repeat(COUNT, 1)
