"""The course of the learning rates: which segment of an adapter learns how fast in which step. No optimizer here.

A rate is that of its segment (`segment_rate`) times a factor that is a function of the step (`rate_factor`), and 0
where a segment rests (`rests`): the text encoders' parts after `optimizer.text_stop_step`.
"""

from __future__ import annotations

import math

from diffusion_lora.config import OptimizerTable


def segment_rate(table: OptimizerTable, segment: str) -> float:
    """The peak rate of a segment, by its name: "unet", "te", "word".

    "unet.up" is a part's up matrices alone (LoRA+, Hayou et al. 2024, https://arxiv.org/abs/2402.12354), "unet@mid" the
    layers of some blocks alone; both are multiples of the part's own rate.
    """
    part, _, up = segment.partition(".")
    part, _, block = part.partition("@")
    rate = {"unet": table.lr, "te": table.text_lr, "word": table.word_lr}[part]
    return rate * (table.lora_plus if up else 1.0) * (table.block_lrs[block] if block else 1.0)


def rests(table: OptimizerTable, segment: str, step: int) -> bool:
    """Whether a segment stands still in step 0, 1, ...: text encoders, or a word, that were trained long enough."""
    stop = {"u": 0, "t": table.text_stop_step, "w": table.word_stop_step}[segment[0]]
    return bool(stop) and step >= stop


def rate_factor(table: OptimizerTable, step: int, steps: int) -> float:
    """What every rate is multiplied by in step 0 ... steps-1: a linear warm-up, then the schedule.

        constant            1
        cosine              half a cosine, from 1 to 0 (Loshchilov & Hutter 2016, https://arxiv.org/abs/1608.03983)
        cosine-restarts     `cycles` such halves, one after the other, each from 1 to 0 (the same paper, T_mult = 1)
        linear              a straight line from 1 to 0
        polynomial          that line to the power of `power`
    """
    if step < table.warmup_steps:
        return (step + 1) / (table.warmup_steps + 1)
    done = (step - table.warmup_steps) / max(1, steps - table.warmup_steps)
    match table.schedule:
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        case "cosine-restarts":
            return 0.5 * (1.0 + math.cos(math.pi * (done * table.cycles % 1.0)))
        case "linear":
            return 1.0 - done
        case "polynomial":
            return (1.0 - done) ** table.power
    return 1.0
