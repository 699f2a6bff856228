"""One adapter in training with all that makes it learn: its settings, its optimizer, its gradient scaler.

A run has one learner; a run with a [sweep] has several side by side, which share the base's forward pass and nothing
else: each clips its own gradient and steps its own optimizer, as it would alone. What a forward pass is, is not known
here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lora.config import TrainConfig
from diffusion_lora.errors import RunError
from diffusion_lora.lora.trainable import TrainableAdapter
from diffusion_lora.train.optimizers import Optimizer, build_optimizer


@dataclass(eq=False)
class Learner:
    """`name` is that of its place in a sweep ("rank4"), empty for a run of one. `config` is complete and its own."""

    name: str
    config: TrainConfig
    adapter: TrainableAdapter
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    note: str | None = None  # a sentence for the person, if the optimizer is not the one that was asked for
    diverged_at: int | None = None  # the step whose loss was not finite: from there on it learns no more

    @classmethod
    def of(cls, name: str, config: TrainConfig, adapter: TrainableAdapter, device: torch.device) -> Learner:
        """A learner that stands before its first step. Raises UserError for an optimizer that cannot be built."""
        optimizer, note = build_optimizer(config.optimizer, adapter.segments, adapter.leaves)
        scaler = torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16")
        return cls(name, config, adapter, optimizer, scaler, note)

    @property
    def trained(self) -> list[nn.Parameter]:
        """The flat parameters that the optimizer steps; a segment whose rate is 0 is not among them."""
        return [self.adapter.segments[name] for name in self.optimizer.parts]

    def begin(self, step: int) -> None:
        """Begin step 0, 1, ...: its rates, gradients of zero."""
        self.optimizer.set_rates(step, self.config.train.steps)
        self.adapter.zero_grad()

    def begin_again(self) -> None:
        """Begin the present step again, as if nothing of it had been computed."""
        self.adapter.begin_again()

    def clip(self) -> Tensor:
        """Bring the gradient to its true scale and clip it; its norm before clipping, and then that of each trained
        segment, in the order of `optimizer.parts`: a vector on the device."""
        self.scaler.unscale_(self.optimizer)  # type: ignore[arg-type]
        trained = self.trained
        norms = torch.stack([torch.linalg.vector_norm(one.grad) for one in trained if one.grad is not None])
        norm = torch.linalg.vector_norm(norms)
        if self.config.optimizer.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(trained, self.config.optimizer.max_grad_norm, norm)
        return torch.cat([norm[None], norms])

    def update(self, step: int, norm: Tensor) -> dict[str, Any]:
        """Take step 0, 1, ..., unless this learner has diverged; the fields of `ranks` if it cut ranks before."""
        cut: dict[str, Any] | None = None
        if self.diverged_at is None:
            # Only where ranks are adapted does the host wait to know whether an fp16 gradient has overflowed.
            if self.adapter.budget is not None and bool(norm.isfinite()):
                cut = self.adapter.adapt(step, self.config.train.steps)
            self.scaler.step(self.optimizer)  # type: ignore[arg-type]
            self.scaler.update()
        which = {"adapter": self.name} if self.name else {}
        return {**cut, **which} if cut else {}

    def state(self) -> dict[str, Any]:
        """All of it that changes from step to step, tensors on the CPU where they are the adapter's."""
        return {
            "layout": _layout(self.adapter),
            "ranks": self.adapter.state(),
            "segments": {name: parameter.detach().cpu() for name, parameter in self.adapter.segments.items()},
            "optimizer_name": self.optimizer.name,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "diverged_at": self.diverged_at,
        }

    def restore(self, state: dict[str, Any], step: int, path: Path) -> None:
        """Stand where `step` steps are done. Raises RunError, naming `path`, if the state is not this learner's."""
        if state["layout"] != _layout(self.adapter) or state["segments"].keys() != self.adapter.segments.keys():
            raise RunError(
                f"the checkpoint {path} was made with other lora settings than the run's config.toml has now"
            )
        if state["optimizer_name"] != self.optimizer.name:
            theirs, ours = (name.rpartition(".")[2] for name in (state["optimizer_name"], self.optimizer.name))
            raise RunError(
                f"the checkpoint {path} was made with {theirs}, but here {ours} is used: go on where bitsandbytes is "
                "as it was when the run started"
            )
        with torch.no_grad():
            for name, parameter in self.adapter.segments.items():
                parameter.copy_(state["segments"][name])
        self.adapter.load_state(state.get("ranks", {}))
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.diverged_at = state.get("diverged_at")
        self.adapter.go_on_from(step)


def _layout(adapter: TrainableAdapter) -> dict[str, list[list[int]]]:
    """Which matrices the flat segments hold: equal lengths alone do not say that they are the same ones."""
    return {
        key: [list(tensor.shape) for tensor in (*layer.trained, *(layer.start or ()))]
        for key, layer in adapter.layers.items()
    }
