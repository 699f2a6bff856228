"""Glimpses of pictures that are still being drawn, and how many of them a drawing can afford.

What a sampler works on is noise for most of the way; what the model believes will come of it is a picture from the
first step on: the estimate of x_0 that every prediction implies (Ho et al. 2020, eq. 15; Salimans & Ho 2022 for v).

Looking changes nothing: no random number is drawn and no state of the sampler is touched. How a glimpse travels to
somebody's eyes is the caller's.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from time import perf_counter
from typing import Any

import torch
from PIL import Image
from torch import Tensor

SHARE = 0.15
"""Of the time of drawing, what glimpses may add to it."""

# Where nothing but noise is left (a schedule of zero terminal SNR), eps says nothing of x_0: no division by zero there.
_LEAST_SIGNAL = 1e-4


@dataclass(frozen=True)
class Glimpse:
    """The batch between two steps. `places` are its pictures' places in the list of requests, `pixels` each one's."""

    places: Sequence[int]
    pixels: int
    _images: Callable[[int], Image.Image]

    def image(self, row: int) -> Image.Image:
        """How the picture of `places[row]` would look. Costs a pass of the decoder."""
        return self._images(row)

    def of(self, rows: Sequence[int]) -> "Glimpse":
        """Of these rows alone."""
        return Glimpse([self.places[row] for row in rows], self.pixels, lambda row: self._images(rows[row]))


Watch = Callable[[Glimpse], None]
"""Called after each step but the last; what it raises ends the drawing, as from `Progress`."""


def clean_estimate(scheduler: Any, x_BCHW: Tensor, predicted_BCHW: Tensor, timestep: Tensor) -> Tensor:
    """x_0 as the model's prediction at x_t implies it.

    `x_BCHW` is what the model was given, which every sampler scales to unit variance, so that one formula serves those
    that count in sigmas as well; some of these have timesteps between two whole ones.
    """
    kind = scheduler.config.get("prediction_type", "epsilon")
    if kind == "sample":
        return predicted_BCHW
    cumprod = scheduler.alphas_cumprod
    t = timestep.to(cumprod.device, torch.float32).clamp(0, len(cumprod) - 1)
    low, high = cumprod[t.floor().long()], cumprod[t.ceil().long()]
    alpha_bar = torch.lerp(low.float(), high.float(), t - t.floor()).clamp(min=_LEAST_SIGNAL).to(x_BCHW.device)
    signal, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    if kind == "v_prediction":
        return signal * x_BCHW - sigma * predicted_BCHW
    return (x_BCHW - sigma * predicted_BCHW) / signal


class Glances:
    """When to look at a picture in the making, so that looking costs about `share` of the drawing's time.

    The pictures of a batch take turns. What a look costs a pixel is the least that one ever did: the first pass of a
    decoder and a machine that was busy with something else cost more and say nothing of the next look.
    """

    def __init__(self, share: float = SHARE, clock: Callable[[], float] = perf_counter) -> None:
        self._share = share
        self._clock = clock
        self._pixel_s = inf
        self.restart()

    def restart(self) -> None:
        """A new drawing begins now."""
        self._began = self._clock()
        self._spent = 0.0
        self._turn = 0

    def look(self, glimpse: Glimpse, *, always: bool = False) -> Iterator[tuple[int, Image.Image]]:
        """The pictures to show now, with their places; what the caller does with one counts as the look's cost.

        The budget is rounded, not cut: where half a look fits, one is taken. `always` looks at all, to learn the cost.
        """
        for _ in glimpse.places:
            now = self._clock()
            cost = self._pixel_s * glimpse.pixels
            if not always and self._spent + cost / 2 > self._share * (now - self._began - self._spent):
                return
            row = self._turn % len(glimpse.places)
            self._turn += 1
            yield glimpse.places[row], glimpse.image(row)
            seconds = self._clock() - now
            self._spent += seconds
            self._pixel_s = min(self._pixel_s, seconds / glimpse.pixels)
