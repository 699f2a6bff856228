"""Rank advice before a training: what the first gradients of the whole weights look like.

A LoRA of rank r can follow r directions of a layer's gradient (Hu et al. 2021, section 7.2; the same view makes the
projections of GaLore, Zhao et al. 2024, https://arxiv.org/abs/2403.03507). So the gradients of the weights that would
be adapted are taken for a few steps, pictures, timesteps and noise drawn as the training will draw them, and the
smallest subspace is sought that holds most of the energy of all of them, side by side. Not of their sum: the sum of a
few steps keeps what they agree on, two or three directions, and a training turns away from those soon.

Of each gradient only its Gram matrix is added up, on the smaller side of the layer. The gradients of all layers at once
would be as large as the layers: they are taken in groups that fit a memory limit, and each group goes through the same
steps again, which draw the same. What the numbers mean is `lora.advice`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from diffusion_lora.config import TrainConfig
from diffusion_lora.diffusion.objective import picture_losses
from diffusion_lora.errors import RunError
from diffusion_lora.families.family import predict, with_sizes
from diffusion_lora.lora.advice import SHARE, Advice, Need, advice, need_of
from diffusion_lora.lora.inject import Site, find_sites
from diffusion_lora.train.draws import Draw, draw_step
from diffusion_lora.train.prepare import Prepared, prepare

STEPS = 8
GROUP_BYTES = 2 << 30
"""Memory for the gradients that are alive at a time, each with its sum."""

_FP16_FACTOR = 1024.0  # half-precision gradients would vanish; energies are compared with one another only
_NOISE_NOTE = (
    "from the gradients of {} pictures before the first step, the noise of single steps among them; what a training "
    "made of it, `adapter advise FILE` tells of the LoRA"
)


def advise(
    config: TrainConfig,
    *,
    steps: int = STEPS,
    share: float = SHARE,
    group_bytes: int = GROUP_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Advice:
    """The rank that explains this share of the gradients' energy, for the layers that the configuration trains.

    `progress` hears of (steps done, steps in all). Raises UserError as `prepare` does; RunError when a gradient is not
    finite.
    """
    problems: list[str] = []
    ready = prepare(_of_rank_one(config), lambda picture, why: problems.append(f"{picture} is left out: {why}"))
    rates = {"unet": config.optimizer.lr, "te": config.optimizer.text_lr}
    keys = {key for key in ready.adapter.layers if rates["unet" if key.startswith("unet.") else "te"]}
    ready.bank.unload(ready.adapter.name)
    sites = {key: site for key, site in find_sites(ready.model.components).items() if key in keys}
    needs = gradient_needs(config, ready, sites, steps, share, group_bytes, progress)
    shown = steps * config.train.batch_size * config.train.accumulation
    return advice(needs, share, [*problems, *ready.notes, _NOISE_NOTE.format(shown)])


def gradient_needs(
    config: TrainConfig,
    ready: Prepared,
    sites: Mapping[str, Site],
    steps: int,
    share: float = SHARE,
    group_bytes: int = GROUP_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Need]:
    """The singular values of the gradients of these layers' weights, all passes side by side; layers in their order."""
    groups = _groups(sites, group_bytes)
    needs = []
    for number, group in enumerate(groups):
        with _summed(group) as sums:
            for step in range(steps):
                for draw in draw_step(step, ready.dataset, ready.latents, config, ready.schedule.timesteps):
                    _loss(config, ready, draw).backward()
                progress(number * steps + step + 1, len(groups) * steps)
            for key, total in sums.items():
                if not torch.isfinite(total).all():
                    raise RunError(f'the gradient of {key} is not finite: try --set train.precision="fp32"')
                needs.append(need_of(key, total, sum(group[key].weight.flatten(1).shape), share))
    return needs


def _of_rank_one(config: TrainConfig) -> TrainConfig:
    """The same layers, with as little adapter as can be: it is taken out again."""
    plain = {"rank": 1, "conv_rank": 0, "rank_patterns": {}, "alpha_patterns": {}, "dora": "off", "adaptive_rank": 0}
    table = config.lora.model_copy(update={**plain, "initial": "gaussian", "start_from": None})
    return config.model_copy(update={"lora": table, "sweep": {}})


def _loss(config: TrainConfig, ready: Prepared, draw: Draw) -> Tensor:
    """That of a forward pass in the trainer; the base is as it was, no adapter acts."""
    device, schedule = ready.model.device, ready.schedule
    x0_BCHW, noise_BCHW, input_noise_BCHW, timesteps_B = (
        tensor.to(device) for tensor in (draw.x0_BCHW, draw.noise_BCHW, draw.input_noise_BCHW, draw.timesteps_B)
    )
    noisy_BCHW = schedule.add_noise(x0_BCHW, input_noise_BCHW, timesteps_B)
    with ready.arithmetic():
        cond = with_sizes(ready.model, ready.condition(draw.captions), draw.sizes)
        prediction_BCHW = predict(ready.model, noisy_BCHW, timesteps_B, cond)
    losses_B = picture_losses(
        config.loss, schedule, prediction_BCHW, x0_BCHW, noise_BCHW, timesteps_B, draw.mask_B1HW
    )
    loss = (losses_B if draw.weights_B is None else losses_B * draw.weights_B.to(device)).mean()
    return loss * _FP16_FACTOR if config.train.precision == "fp16" else loss


def _groups(sites: Mapping[str, Site], group_bytes: int) -> list[dict[str, Site]]:
    """The layers in their order, in groups whose gradients and Gram matrices fit; a single layer may be larger."""
    groups: list[dict[str, Site]] = []
    used = 0
    for key, site in sites.items():
        size = site.weight.numel() * site.weight.element_size() + 4 * _smaller(site.weight) ** 2
        if not groups or used + size > group_bytes:
            groups.append({})
            used = 0
        groups[-1][key] = site
        used += size
    return groups


@contextmanager
def _summed(sites: Mapping[str, Site]) -> Iterator[dict[str, Tensor]]:
    """While it lasts, every backward pass adds the Gram matrices of these weights' gradients to sums, fp32."""
    sums = {key: torch.zeros(2 * (_smaller(site.weight),), device=site.weight.device) for key, site in sites.items()}
    hooks = []
    try:
        for key, site in sites.items():
            site.weight.requires_grad_(True)
            hooks.append(site.weight.register_post_accumulate_grad_hook(_adder(sums[key])))
        yield sums
    finally:
        for hook in hooks:
            hook.remove()
        for site in sites.values():
            site.weight.requires_grad_(False)
            site.weight.grad = None


def _adder(total: Tensor) -> Callable[[Tensor], None]:
    def add(weight: Tensor) -> None:
        assert weight.grad is not None
        rows = weight.grad.float().flatten(1)
        rows = rows if len(rows) == len(total) else rows.T
        total.addmm_(rows, rows.T)
        weight.grad = None

    return add


def _smaller(weight: Tensor) -> int:
    return min(weight.flatten(1).shape)

