"""The optimizer of a run and the course of its learning rates. The only module that knows bitsandbytes.

An adapter's parameters are one flat tensor a group, so the 8-bit optimizer really keeps 8-bit state (it falls back to
fp32 for tensors under 4096 elements) and a step is one call a group.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from diffusion_lora.config import OptimizerTable


def build_optimizer(
    table: OptimizerTable, segments: Mapping[str, nn.Parameter]
) -> tuple[torch.optim.Optimizer, str | None]:
    """The optimizer, and a sentence for the person if it is not the one that was asked for.

    One group for each segment whose rate is above zero; the group's `base_lr` is that rate. With LoRA+ (Hayou et al.
    2024, https://arxiv.org/abs/2402.12354) the up matrices are segments of their own, with a higher rate.
    """
    groups: list[dict[str, Any]] = [
        {"params": [parameter], "lr": rate, "base_lr": rate, "component": component}
        for component, parameter in segments.items()
        if (rate := component_lr(table, component)) > 0
    ]
    device = groups[0]["params"][0].device
    note = None
    if table.name == "adamw8bit":
        try:
            return _adamw8bit(groups, table, device), None
        except (ImportError, OSError, RuntimeError, NotImplementedError, AttributeError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            note = f"bitsandbytes does not serve here ({reason}): AdamW with 32-bit state takes over from 8-bit AdamW"
    fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, betas=table.betas, weight_decay=table.weight_decay, fused=fused), note


def component_lr(table: OptimizerTable, component: str) -> float:
    """The peak learning rate of a segment: "unet", or a text encoder ("te", "te1", ...); "unet.up" is up matrices."""
    part, _, up = component.partition(".")
    rate = table.lr if part == "unet" else table.text_lr
    return rate * table.lora_plus if up else rate


def rate_factor(table: OptimizerTable, step: int, steps: int) -> float:
    """What the rates are multiplied by in step 0 ... steps-1: a linear warm-up, then constant or half a cosine to 0."""
    if step < table.warmup_steps:
        return (step + 1) / (table.warmup_steps + 1)
    if table.schedule == "constant":
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * (step - table.warmup_steps) / max(1, steps - table.warmup_steps)))


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def _adamw8bit(groups: list[dict[str, Any]], table: OptimizerTable, device: torch.device) -> torch.optim.Optimizer:
    # It complains at import about CPU kernels that nobody here needs.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from bitsandbytes.optim import AdamW8bit

    # A build without code for this device imports well and fails in its first step: let that be now.
    probe = nn.Parameter(torch.ones(4096, device=device))
    probe.grad = torch.ones_like(probe)
    AdamW8bit([probe]).step()
    return AdamW8bit(groups, betas=table.betas, weight_decay=table.weight_decay)
