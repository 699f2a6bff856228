"""One forward and backward pass: the base computes the rows of all learners at once, each learner's loss is its own.

Rows lie learner after learner, as `AdapterBank.side_by_side` wants them. Adapters that learn side by side see what they
would see alone: the same pictures, noise and timesteps, drawn from their own settings.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion_lora.config import TrainConfig
from diffusion_lora.diffusion.objective import picture_losses
from diffusion_lora.families.family import predict, with_sizes
from diffusion_lora.train.draws import Draw, draw_step
from diffusion_lora.train.learner import Learner
from diffusion_lora.train.prepare import Prepared


def draw_passes(step: int, ready: Prepared, learners: Sequence[Learner], share: tuple[int, int]) -> list[Draw]:
    """The forward passes of a step, the rows of all learners in each; `share` as in `draw_step`."""
    first = learners[0].config
    drawn: list[list[Draw]] = []
    for learner in learners:
        alike = drawn and _draws_alike(learner.config, first)
        drawn.append(
            drawn[0]
            if alike
            else draw_step(step, ready.dataset, ready.latents, learner.config, ready.schedule.timesteps, share)
        )
    pin = ready.model.device.type == "cuda"
    return [Draw.joined(parts, pin=pin) for parts in zip(*drawn, strict=True)]


def forward_backward(ready: Prepared, learners: Sequence[Learner], draw: Draw, share: float) -> Tensor:
    """Add the gradients of a pass with this share of the step's rows; the losses [learners], times that share."""
    device, schedule = ready.model.device, ready.schedule
    x0_BCHW, noise_BCHW, input_noise_BCHW, timesteps_B = (
        tensor.to(device, non_blocking=True)
        for tensor in (draw.x0_BCHW, draw.noise_BCHW, draw.input_noise_BCHW, draw.timesteps_B)
    )
    noisy_BCHW = schedule.add_noise(x0_BCHW, input_noise_BCHW, timesteps_B)
    with ready.arithmetic():
        cond = with_sizes(ready.model, ready.condition(draw.captions), draw.sizes)
        prediction_BCHW = predict(ready.model, noisy_BCHW, timesteps_B, cond)
    count = len(learners)
    tensors = (prediction_BCHW, x0_BCHW, noise_BCHW, timesteps_B, draw.mask_B1HW, draw.weights_B)
    parts = [[None] * count if tensor is None else tensor.chunk(count) for tensor in tensors]
    losses, scaled = [], []
    for learner, prediction, x0, noise, timesteps, mask, weights_B in zip(learners, *parts, strict=True):
        losses_B = picture_losses(learner.config.loss, schedule, prediction, x0, noise, timesteps, mask)
        if weights_B is not None:
            losses_B = losses_B * weights_B.to(device, non_blocking=True)
        loss = losses_B.mean() * share
        losses.append(loss.detach())
        scaled.append(learner.scaler.scale(loss))
    # A learner's loss depends on its own rows alone, so the sum's gradient is to each what its own would be.
    total = scaled[0] if count == 1 else torch.stack(scaled).sum()
    total.backward()
    return torch.stack(losses)


def _draws_alike(one: TrainConfig, other: TrainConfig) -> bool:
    return (one.train, one.dataset, one.loss) == (other.train, other.dataset, other.loss)
