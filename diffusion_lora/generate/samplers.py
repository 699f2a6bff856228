"""The samplers by name: which scheduler of diffusers each is, and what AUTOMATIC1111's web UI calls it.

Names only, and no torch: the engine makes the scheduler.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusion_lora.errors import PromptError


@dataclass(frozen=True)
class Sampler:
    """One row of the table. `evaluations` is how often the model is asked for n steps."""

    name: str
    scheduler_class: str
    a1111: str
    a1111_schedule: str = "Automatic"
    options: Mapping[str, Any] = field(default_factory=dict)
    second_order: bool = False

    def evaluations(self, steps: int) -> int:
        """How often the model is asked: a second-order step asks twice, but for the last one."""
        return 2 * steps - 1 if self.second_order else steps


_KARRAS = {"use_karras_sigmas": True}

SAMPLERS: Mapping[str, Sampler] = {
    sampler.name: sampler
    for sampler in (
        Sampler("ddim", "DDIMScheduler", "DDIM"),
        Sampler("euler", "EulerDiscreteScheduler", "Euler"),
        Sampler("euler_a", "EulerAncestralDiscreteScheduler", "Euler a"),
        Sampler("heun", "HeunDiscreteScheduler", "Heun", second_order=True),
        Sampler("dpm++_2m", "DPMSolverMultistepScheduler", "DPM++ 2M"),
        Sampler("dpm++_2m_karras", "DPMSolverMultistepScheduler", "DPM++ 2M", "Karras", _KARRAS),
        Sampler("unipc", "UniPCMultistepScheduler", "UniPC"),
    )
}


def sampler_named(name: str) -> Sampler:
    """The sampler of this name. Raises PromptError, with the names there are."""
    try:
        return SAMPLERS[name]
    except KeyError:
        raise PromptError(f"the sampler {name!r} is unknown; say one of {', '.join(SAMPLERS)}") from None


def sampler_of_a1111(title: str, schedule: str = "Automatic") -> Sampler:
    """The sampler that an infotext means; before version 1.9 the schedule stood in the name ("DPM++ 2M Karras").

    Raises PromptError when it is none of ours.
    """
    for sampler in SAMPLERS.values():
        wanted = {sampler.a1111} if sampler.a1111_schedule == schedule else set()
        if sampler.a1111_schedule != "Automatic" and schedule == "Automatic":
            wanted.add(f"{sampler.a1111} {sampler.a1111_schedule}")
        if title in wanted:
            return sampler
    raise PromptError(
        f"the sampler {title!r} (schedule {schedule}) is not offered; the samplers are {', '.join(SAMPLERS)}"
    )
