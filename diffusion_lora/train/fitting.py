"""Fitting a step into memory: smaller passes, and activations computed again, as soon as memory asks for it.

A step that runs out of memory is taken again from its beginning, with the same pictures and noise: first each of its
passes is halved, and at last, with one picture a pass, gradient checkpointing comes on (Chen et al. 2016,
https://arxiv.org/abs/1604.06174); several adapters side by side on a large base have it from the start. The step is the
same up to rounding, but for dropout inside the adapter, whose masks are a pass's. What was found is kept in the
checkpoint, so that a run that goes on does not have to find it again.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import fields
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffusion_lora.config import TrainTable
from diffusion_lora.errors import DeviceError
from diffusion_lora.train.draws import Draw
from diffusion_lora.train.learner import Learner
from diffusion_lora.train.memory import Cap, give_back, is_out_of_memory
from diffusion_lora.train.prepare import Prepared

OnePass = Callable[[Draw, float], Tensor]

_LARGE = 300_000_000
"""Weights of a UNet from which on a sweep computes its activations again: there several adapters' rows keep more than
all else of a training, and still take less time than one adapter after the other."""


class Fitting:
    """How the passes of a run are computed; one for a run. `tell` takes a sentence for the person.

    Raises DeviceError for a cap that is too low from the start.
    """

    def __init__(self, table: TrainTable, ready: Prepared, tell: Callable[[str], None]) -> None:
        model = ready.model
        self._parts, self._checkpointing = 1, False
        self._may_checkpoint = table.checkpointing == "auto"
        self._unet, self._again, self._tell = model.unet, ready.again, tell
        self._cap = Cap(table.memory_cap_gb, model.device, (*model.components.values(), model.vae))
        if table.checkpointing == "on":
            self._checkpoint()
        elif self._may_checkpoint and len(ready.adapters) > 1 and _size(model.unet) >= _LARGE:
            self._checkpoint()
            tell(
                f"{len(ready.adapters)} adapters side by side on a base of this size: activations are computed again "
                'instead of kept (train.checkpointing = "off" keeps them)'
            )

    def losses(self, draws: Sequence[Draw], one_pass: OnePass, learners: Sequence[Learner]) -> Tensor:
        """The sum of `one_pass(draw, share)` over all passes of a step, `share` being what part of its rows they are.

        Each draw holds the rows of all learners, one after the other. Raises DeviceError when one picture does not fit.
        """
        while True:
            try:
                return self._attempt(draws, one_pass, len(learners))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            # Outside the handler: until here the error holds every tensor of the pass that failed.
            for learner in learners:
                learner.begin_again()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            gc.collect()
            give_back()  # or the memory of the large pass lies about, and there is none for the kernels of small ones
            self._make_smaller(draws, len(learners), said)

    def _attempt(self, draws: Sequence[Draw], one_pass: OnePass, lanes: int) -> Tensor:
        rows = sum(len(draw.names) for draw in draws)
        sums = []
        for whole in draws:
            for part in split(whole, self._parts, lanes):
                with self._cap.one_pass():
                    sums.append(one_pass(part, len(part.names) / rows))
        return torch.stack(sums).sum(0)

    def state(self) -> dict[str, Any]:
        return {"parts": self._parts, "checkpointing": self._checkpointing}

    def restore(self, state: dict[str, Any]) -> None:
        self._parts = int(state["parts"])
        if state["checkpointing"] and not self._checkpointing:
            self._checkpoint()

    def _make_smaller(self, draws: Sequence[Draw], lanes: int, said: str) -> None:
        most = max(len(draw.names) for draw in draws) // lanes
        if self._parts < most:
            self._parts = min(2 * self._parts, most)
            self._tell(
                f"memory did not suffice: a batch of {most} is taken in {self._parts} passes from here on; the steps "
                "are the same"
            )
        elif self._may_checkpoint and not self._checkpointing:
            self._checkpoint()
            self._tell(
                "memory did not suffice for one picture a pass: gradient checkpointing is on from here on; the steps "
                "are the same and take about a third longer"
            )
        else:
            height, width = draws[0].x0_BCHW.shape[2:]
            hint = "" if self._checkpointing else 'set train.checkpointing = "on", '
            raise DeviceError(
                f"memory does not suffice for one picture of {height} x {width} latents ({said}): {hint}lower "
                "dataset.size_px or lora.rank, or end what else uses the device"
            )

    def _checkpoint(self) -> None:
        def again(layer: Callable[..., Any], *args: Any) -> Any:
            return checkpoint(
                layer,
                *args,
                use_reentrant=False,
                preserve_rng_state=False,  # nothing in a pass draws from the global generator
                context_fn=lambda: (nullcontext(), self._again()),
            )

        cast(Any, self._unet).enable_gradient_checkpointing(again)
        self._checkpointing = True


def _size(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def split(draw: Draw, parts: int, lanes: int = 1) -> list[Draw]:
    """A pass as several, of as many rows of every lane as nearly as can be."""
    if parts == 1:
        return [draw]
    lane = len(draw.names) // lanes
    cuts = [round(lane * part / parts) for part in range(parts + 1)]
    found = []
    for first, end in pairwise(cuts):
        rows = [number * lane + row for number in range(lanes) for row in range(first, end)]
        if rows:
            found.append(Draw(**{field.name: _rows(getattr(draw, field.name), rows) for field in fields(draw)}))
    return found


def _rows(values: Any, rows: list[int]) -> Any:
    if isinstance(values, tuple):
        return tuple(values[row] for row in rows)
    return None if values is None else values[rows]
