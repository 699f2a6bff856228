"""Muon (Jordan 2024) beside AdamW in one optimizer, for short trainings of convolutional networks.

Every weight with two or more axes is a matrix [out, rest]; its momentum is orthogonalised by five Newton-Schulz
steps and scaled by 0.2 sqrt(max(out, rest)), so that AdamW's learning rates apply (Moonlight, arXiv 2502.16982).
Vectors, and what the caller names, are stepped by AdamW.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def orthogonalise(matrix: Tensor) -> Tensor:
    """[m, n] -> the nearest semi-orthogonal matrix, roughly: singular values land in 0.7 ... 1.2."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """`matrices` by Muon, `others` by AdamW (betas 0.9, 0.99); state is saved and loaded as for any optimizer."""

    def __init__(self, matrices: Iterable[nn.Parameter], others: Iterable[nn.Parameter], lr: float) -> None:
        groups = [{"params": list(matrices), "muon": True}, {"params": list(others), "muon": False}]
        super().__init__(groups, {"lr": lr, "weight_decay": 0.01})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = self._muon(parameter) if group["muon"] else self._adam(parameter)
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])

    def _muon(self, parameter: nn.Parameter) -> Tensor:
        assert parameter.grad is not None
        state = self.state[parameter]
        momentum = state.setdefault("momentum", torch.zeros_like(parameter))
        momentum.mul_(0.95).add_(parameter.grad)
        nesterov = parameter.grad.add(momentum, alpha=0.95).flatten(1)
        return (orthogonalise(nesterov) * (0.2 * max(nesterov.shape) ** 0.5)).view(parameter.shape)

    def _adam(self, parameter: nn.Parameter) -> Tensor:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state.update(step=torch.zeros(()), mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
        state["step"] += 1
        mean = state["mean"].lerp_(parameter.grad, 0.1)
        square = state["square"].lerp_(parameter.grad.square(), 0.01)
        count = float(state["step"])
        return (mean / (1 - 0.9**count)) / ((square / (1 - 0.99**count)).sqrt() + 1e-8)
