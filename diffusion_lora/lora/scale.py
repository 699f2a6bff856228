"""Alpha, rank and learning rate as one number, and what an equal setting is in other trainers. No torch.

Every trainer multiplies the delta by alpha / rank (rsLoRA: alpha / sqrt(rank)), but their defaults for alpha differ 8-
to 32-fold, so "the same learning rate" means little without the other two. With Adam, whose steps do not depend on the
size of the gradient, `up` grows by about the learning rate a step, so early in training

    growth of a delta's entry per step  ~  learning rate x (alpha / rank) x size of the entries of `down` at the start

The first two factors are the setting, `effective_rate`; the third is each trainer's initialisation, told beside.
Formula: Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1; rsLoRA: Kalajdzievski 2023,
https://arxiv.org/abs/2312.03732. Not here: how strong a trained file is, which is the norm of its deltas (`spectrum`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

REFERENCE_WIDTH = 768
"""Inputs of the layer for which the start of `down` is compared: SD 1's text, in the middle of the rest."""


@dataclass(frozen=True)
class Setting:
    """What a training is set to; `rs` is rsLoRA's scale, alpha / sqrt(rank)."""

    rank: int
    alpha: float
    learning_rate: float
    rs: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0 or not self.learning_rate > 0:
            raise ValueError(f"rank, alpha and learning rate must be above zero: {self}")

    @property
    def scale(self) -> float:
        """What strength 1 multiplies `up @ down` by."""
        return self.alpha / (math.sqrt(self.rank) if self.rs else self.rank)

    @property
    def effective_rate(self) -> float:
        """Learning rate x scale."""
        return self.learning_rate * self.scale


@dataclass(frozen=True)
class Trainer:
    """How a trainer names the settings, and what it does by itself.

    `default_alpha` is what it takes at a rank when nobody says otherwise; `fixed_alpha` that it takes nothing else.
    `down_size` is the root mean square of `down` at the start, of (rank, inputs of the layer); `initial` says it.
    """

    name: str
    rank_name: str
    alpha_name: str
    rate_name: str
    default_alpha: Callable[[int], float]
    initial: str
    down_size: Callable[[int, int], float]
    fixed_alpha: bool = False


def _uniform(rank: int, inputs: int) -> float:
    return 1 / math.sqrt(3 * inputs)  # kaiming_uniform_ with a = sqrt(5): U(-1/sqrt(in), 1/sqrt(in))


OURS = Trainer(
    "diffusion-lora", "lora.rank", "lora.alpha", "optimizer.lr", float, "N(0, 1/in)", lambda _, inputs: inputs**-0.5
)
OTHERS = (
    Trainer("kohya", "network_dim", "network_alpha", "unet_lr", lambda _: 1.0, "U(±1/√in)", _uniform),
    Trainer("OneTrainer", "LoRA rank", "LoRA alpha", "learning rate", lambda _: 1.0, "U(±1/√in)", _uniform),
    Trainer("ai-toolkit", "linear", "linear_alpha", "lr", float, "U(±1/√in)", _uniform),
    Trainer(
        "diffusers", "--rank", "(always the rank)", "--learning_rate", float, "N(0, 1/rank²)", lambda rank, _: 1 / rank,
        fixed_alpha=True,
    ),
)  # fmt: skip
"""Read in their sources: sd-scripts and OneTrainer default to alpha 1, ai-toolkit's page to alpha = rank, the LoRA
scripts of diffusers pass the rank as alpha and start `down` by peft's "gaussian"."""


@dataclass(frozen=True)
class EqualSetting:
    """A trainer's setting whose learning rate x scale is that of the one asked for.

    `first_steps` is how fast its deltas grow at first beside this program's at the same setting: only the different
    start of `down` is left in it. `default_rate` is the learning rate that is equal when alpha stays at its default.
    """

    trainer: str
    rank_name: str
    alpha_name: str
    rate_name: str
    rank: int
    alpha: float
    learning_rate: float
    scale: float
    default_alpha: float
    default_rate: float
    initial: str
    first_steps: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def equal_settings(setting: Setting, inputs: int = REFERENCE_WIDTH) -> tuple[EqualSetting, ...]:
    """The equal setting in this program and in each of `OTHERS`, first ours.

    Rank is kept, and alpha where the trainer takes one (an rsLoRA's alpha becomes alpha x sqrt(rank): they divide by
    the rank); where it does not, the learning rate changes. `inputs` is the width of the layer for `first_steps`.
    """
    plain_alpha = setting.scale * setting.rank
    equals = []
    for trainer in (OURS, *OTHERS):
        default_alpha = trainer.default_alpha(setting.rank)
        default_rate = setting.effective_rate * setting.rank / default_alpha
        alpha = default_alpha if trainer.fixed_alpha else plain_alpha
        equals.append(
            EqualSetting(
                trainer=trainer.name,
                rank_name=trainer.rank_name,
                alpha_name=trainer.alpha_name,
                rate_name=trainer.rate_name,
                rank=setting.rank,
                alpha=alpha,
                learning_rate=default_rate if trainer.fixed_alpha else setting.learning_rate,
                scale=alpha / setting.rank,
                default_alpha=default_alpha,
                default_rate=default_rate,
                initial=trainer.initial,
                first_steps=trainer.down_size(setting.rank, inputs) / OURS.down_size(setting.rank, inputs),
            )
        )
    return tuple(equals)
