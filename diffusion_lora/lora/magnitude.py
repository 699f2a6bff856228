"""DoRA's magnitudes: the norms of a weight's rows or columns, and what the weight is multiplied by to have others.

    W' = c (W + V),    c = magnitude / |W + V|

Norms of rows (axis 0: one for each output, as peft has it) or of columns (axis 1: one for each input, with a
convolution's kernel; LyCORIS's first form). DoRA: Liu et al. 2024, https://arxiv.org/abs/2402.09353, equation 5.
Not here: where c acts in a layer (`deltas.Decomposed`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_LEAST = torch.finfo(torch.float32).tiny


def squares(weight: Tensor, axis: int) -> Tensor:
    """Sums of squares of the rows or columns of ``[out, in(, k, k)]``, fp32, ``[out]`` or ``[in]``."""
    return weight.float().square().sum([n for n in range(weight.ndim) if n != axis])


def ratio(magnitude: Tensor, whole: Tensor, axis: int) -> Tensor:
    """c, fp32, ``[out]`` or ``[in]``: what `whole` (W + V) is multiplied by."""
    return magnitude.to(whole.device, torch.float32).flatten() / squares(whole, axis).clamp_min(_LEAST).sqrt()


@dataclass(frozen=True, eq=False, slots=True)
class TrainedMagnitude:
    """The magnitude of a DoRA in training: the norms of the base's weight plus a trained `offset`, which starts at 0.

    So weight decay pulls it to the base's norms and not to zero. `down` and `up` are the trained factors, V being
    scale * up @ down; `base_squares` are the `squares` of the base's weight.
    """

    base: Tensor
    down: Tensor
    up: Tensor
    scale: float
    axis: int
    base_squares: Tensor
    offset: Tensor

    def values(self) -> Tensor:
        """The magnitudes, ``[n]``."""
        return self.base_squares.clamp_min(_LEAST).sqrt() + self.offset

    def ratio(self) -> Tensor:
        """c, ``[n]``; the norm counts as a constant in the backward pass (section 4.3 of the paper), as in peft.

        The norms come from small products, W + V is never formed:
        |W + s B A|^2 = |W|^2 + 2 s (W A^T) . B + s^2 (B A A^T) . B along the rows, and likewise along the columns.
        """
        with torch.no_grad(), torch.autocast(self.base.device.type, enabled=False):
            down, up, weight = self.down.flatten(1), self.up.flatten(1), self.base.float().flatten(1)
            if self.axis == 0:
                crossed = ((weight @ down.T) * up).sum(1)
                added = ((up @ (down @ down.T)) * up).sum(1)
            else:
                kernel = weight.shape[1] // self.base.shape[1]
                crossed = ((up.T @ weight) * down).sum(0).view(-1, kernel).sum(1)
                added = (((up.T @ up) @ down) * down).sum(0).view(-1, kernel).sum(1)
            norm = (self.base_squares + 2 * self.scale * crossed + self.scale**2 * added).clamp_min(_LEAST).sqrt()
        return self.values() / norm
