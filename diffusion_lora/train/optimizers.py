"""The optimizers a run can choose, each from the library that keeps it well. The only module that knows the libraries.

An adapter's parameters are one flat tensor a segment, so an 8-bit optimizer really keeps 8-bit state (it falls back to
fp32 for tensors under 4096 elements) and a step is one call a segment. Every segment has an optimizer of its own: what
one estimates of its parameters as a whole (Prodigy's rate) is then the segment's alone, and a segment can rest. Which
rate a segment has in which step is `rates`' to say.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lora.config import OptimizerTable
from diffusion_lora.errors import ConfigError
from diffusion_lora.train.ema import Ema, given_back
from diffusion_lora.train.rates import rate_factor, rests, segment_rate

Group = dict[str, Any]


class Optimizer:
    """One optimizer for each segment that learns, as one: what the loop, the gradient scaler and a checkpoint see.

    A group's `base_lr` is its segment's peak rate, its `component` the segment's name. With an `ema`, what is to be
    kept is that average.
    """

    def __init__(
        self, table: OptimizerTable, parts: Mapping[str, torch.optim.Optimizer], ema: Ema | None = None
    ) -> None:
        self.table = table
        self.parts = dict(parts)
        self.ema = ema
        self._resting: frozenset[str] = frozenset()

    @property
    def param_groups(self) -> list[Group]:
        return [group for part in self.parts.values() for group in part.param_groups]

    @property
    def name(self) -> str:
        """The class that works underneath, with its module: "bitsandbytes.optim.adamw.AdamW8bit"."""
        kind = type(next(iter(self.parts.values())))
        return f"{kind.__module__}.{kind.__qualname__}"

    def set_rates(self, step: int, steps: int) -> None:
        """The rates of step 0 ... steps-1, and which segments rest in it."""
        factor = rate_factor(self.table, step, steps)
        self._resting = frozenset(segment for segment in self.parts if rests(self.table, segment, step))
        for segment, part in self.parts.items():
            for group in part.param_groups:
                group["lr"] = 0.0 if segment in self._resting else group["base_lr"] * factor

    def rates(self) -> dict[str, float]:
        """The rate in force of "unet", "te" and "word": the highest of its segments', up matrices of their own aside.

        With Prodigy it is what was found times the segment's own.
        """
        rates: dict[str, float] = {}
        for segment, part in self.parts.items():
            if not segment.endswith(".up"):
                name, group = segment.partition("@")[0], part.param_groups[0]
                rates[name] = max(rates.get(name, 0.0), float(group["lr"] * group.get("d", 1.0)))
        return rates

    def step(self) -> None:
        for segment, part in self.parts.items():
            if segment not in self._resting:
                part.step()
        if self.ema is not None:
            self.ema.update()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the parameters are those to show and to keep: an average, where there is one.

        The EMA, or else schedule-free's own. Afterwards they are bit for bit what they were, which that library's way
        back (`train()`) does not give.
        """
        if self.ema is not None:
            with self.ema.in_place():
                yield
            return
        averaging = [part for part in self.parts.values() if hasattr(part, "eval")]
        with given_back(tensor for part in averaging for group in part.param_groups for tensor in group["params"]):
            for part in averaging:
                part.eval()
            try:
                yield
            finally:
                for part in averaging:
                    for group in part.param_groups:
                        group["train_mode"] = True

    def state_dict(self) -> dict[str, Any]:
        return {
            "parts": {segment: part.state_dict() for segment, part in self.parts.items()},
            "ema": None if self.ema is None else self.ema.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for segment, part in self.parts.items():
            part.load_state_dict(state["parts"][segment])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])


def build_optimizer(
    table: OptimizerTable,
    segments: Mapping[str, nn.Parameter],
    matrices: Mapping[str, Sequence[Tensor]] | None = None,
) -> tuple[Optimizer, str | None]:
    """The optimizer, and a sentence for the person if it is not quite the one that was asked for.

    Segments whose rate is 0 are left out. `matrices` are the leaves of each segment, views of it, for an optimizer that
    looks at rows and columns (Adafactor); the others get the flat segments. ConfigError when a library is missing, with
    the command that installs it.
    """
    rates = {segment: rate for segment in segments if (rate := segment_rate(table, segment)) > 0}
    device = next(iter(segments.values())).device
    make, note = _maker(table, device)
    whole = table.name != "adafactor" or matrices is None
    parts = {}
    for segment, rate in rates.items():
        params = [segments[segment]] if whole or matrices is None else list(matrices[segment])
        group: Group = {"params": params, "lr": rate, "base_lr": rate, "component": segment}
        if segment == "word":
            group["weight_decay"] = 0.0  # a vector near 0 would be no word
        parts[segment] = make([group])
        if table.name == "schedule-free":
            parts[segment].train()  # type: ignore[attr-defined]
    ema = Ema({segment: segments[segment] for segment in parts}, table.ema_decay) if table.ema_decay else None
    return Optimizer(table, parts, ema), note


Maker = Callable[[list[Group]], torch.optim.Optimizer]


def _maker(table: OptimizerTable, device: torch.device) -> tuple[Maker, str | None]:
    match table.name:
        case "adamw":
            return _adamw(table, device), None
        case "adafactor":
            return _adafactor(table), None
        case "prodigy":
            return _prodigy(table), None
        case "schedule-free":
            return _schedule_free(table), None
    return _in_8_bits(table, device)


def _adamw(table: OptimizerTable, device: torch.device) -> Maker:
    """Loshchilov & Hutter 2017, https://arxiv.org/abs/1711.05101."""
    fused = device.type in ("cpu", "cuda")
    return lambda groups: torch.optim.AdamW(groups, betas=table.betas, weight_decay=table.weight_decay, fused=fused)


def _in_8_bits(table: OptimizerTable, device: torch.device) -> tuple[Maker, str | None]:
    """AdamW, paged or not (Dettmers et al. 2021, https://arxiv.org/abs/2110.02861), or Lion (Chen et al. 2023,
    https://arxiv.org/abs/2302.06675), with 8-bit state. Where bitsandbytes does not serve, AdamW alone has a twin."""
    note = None
    name = table.name
    if name == "paged-adamw8bit" and device.type != "cuda":
        name, note = "adamw8bit", f"paged memory is CUDA's: on {device.type} paged-adamw8bit is adamw8bit"
    try:
        kind = _bitsandbytes(name, device)
    except (ImportError, OSError, RuntimeError, NotImplementedError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        sentence = f"bitsandbytes does not serve here ({reason})"
        if name == "lion8bit":
            raise ConfigError(
                f'{sentence}, and optimizer.name = "lion8bit" is its own: pip install bitsandbytes, or choose adamw'
            ) from error
        return _adamw(table, device), f"{sentence}: AdamW with 32-bit state takes over from 8-bit AdamW"
    return lambda groups: kind(groups, betas=table.betas, weight_decay=table.weight_decay), note


def _bitsandbytes(name: str, device: torch.device) -> Callable[..., torch.optim.Optimizer]:
    # It complains at import about CPU kernels that nobody here needs.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from bitsandbytes import optim

    kind = {"adamw8bit": optim.AdamW8bit, "paged-adamw8bit": optim.PagedAdamW8bit, "lion8bit": optim.Lion8bit}[name]
    # A build without code for this device imports well and fails in its first step: let that be now.
    probe = nn.Parameter(torch.ones(4096, device=device))
    probe.grad = torch.ones_like(probe)
    kind([probe]).step()
    return kind


def _adafactor(table: OptimizerTable) -> Maker:
    """Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235, at the rate it is told.

    transformers' and not torch's own, whose step waits for the device twice a matrix, and which multiplies the rate by
    the size of the parameters: up matrices, which start at 0, would hardly move.
    """
    from transformers.optimization import Adafactor

    return lambda groups: Adafactor(
        groups, weight_decay=table.weight_decay, scale_parameter=False, relative_step=False, warmup_init=False
    )


def _prodigy(table: OptimizerTable) -> Maker:
    """Mishchenko & Defazio 2023, https://arxiv.org/abs/2306.06101; each segment finds a rate of its own.

    With bias correction and safeguarded warm-up, as its authors advise for diffusion models. It waits for the device
    in each step.
    """
    try:
        from prodigyopt import Prodigy
    except ImportError as error:
        raise _missing(table.name, "prodigyopt") from error

    def make(groups: list[Group]) -> torch.optim.Optimizer:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that weight decay is decoupled
            return Prodigy(
                groups,
                betas=table.betas,
                weight_decay=table.weight_decay,
                use_bias_correction=True,
                safeguard_warmup=True,
            )

    return make


def _schedule_free(table: OptimizerTable) -> Maker:
    """AdamW of Defazio et al. 2024, https://arxiv.org/abs/2405.15682: an average takes the place of falling rates."""
    try:
        from schedulefree import AdamWScheduleFree
    except ImportError as error:
        raise _missing(table.name, "schedulefree") from error
    return lambda groups: AdamWScheduleFree(groups, betas=table.betas, weight_decay=table.weight_decay)


def _missing(name: str, package: str) -> ConfigError:
    return ConfigError(f'optimizer.name = "{name}" needs the package {package}: pip install {package}')
