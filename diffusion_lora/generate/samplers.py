"""The samplers by name: which scheduler of diffusers each is, and what AUTOMATIC1111's web UI calls it.

Names only, and no torch: the engine makes the scheduler. A name is a sampler's, with its schedule behind where that is
not the usual one: `dpm++_2m`, `dpm++_2m_karras`. Schedules: Karras (et al. 2022, https://arxiv.org/abs/2206.00364,
equation 5); exponential; "SGM Uniform", which begins at the noisiest timestep (Lin et al. 2023, section 3.3).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from diffusion_lora.errors import PromptError

Evaluations = Literal["one a step", "two a step", "one more"]


@dataclass(frozen=True)
class Sampler:
    """One row of the table.

    `is_automatic`: the schedule that the web UI takes for this sampler when it says "Automatic". `counts` tells how
    often the model is asked: a second-order step asks twice, but for the last one; PLMS warms up with one more.
    """

    name: str
    scheduler_class: str
    a1111: str
    a1111_schedule: str = "Automatic"
    options: Mapping[str, Any] = field(default_factory=dict)
    counts: Evaluations = "one a step"
    is_automatic: bool = False

    def evaluations(self, steps: int) -> int:
        """How often the model is asked for so many steps."""
        return {"one a step": steps, "two a step": 2 * steps - 1, "one more": steps + 1}[self.counts]

    def step(self, evaluation: int) -> int:
        """The step that an evaluation, 1 being the first, belongs to."""
        match self.counts:
            case "two a step":
                return (evaluation + 1) // 2
            case "one more":
                return max(1, evaluation - 1)
            case _:
                return evaluation


_SCHEDULES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "": ("Uniform", {}),
    "karras": ("Karras", {"use_karras_sigmas": True}),
    "exponential": ("Exponential", {"use_exponential_sigmas": True}),
    "sgm": ("SGM Uniform", {"timestep_spacing": "trailing"}),
}


def _family(
    name: str,
    scheduler_class: str,
    a1111: str,
    schedules: str = "",
    *,
    automatic: str = "",
    counts: Evaluations = "one a step",
    **options: Any,
) -> list[Sampler]:
    """A sampler with its usual schedule and the others named; `automatic` is the one the web UI takes by itself."""
    rows = []
    for schedule in ("", *schedules.split()):
        title, extra = _SCHEDULES[schedule]
        if not schedule and not automatic:
            title = "Automatic"
        whole = f"{name}_{schedule}" if schedule else name
        is_automatic = schedule == automatic
        rows.append(Sampler(whole, scheduler_class, a1111, title, {**options, **extra}, counts, is_automatic))
    return rows


_MULTISTEP = "DPMSolverMultistepScheduler"
_SDE: Mapping[str, Any] = {"algorithm_type": "sde-dpmsolver++"}

SAMPLERS: Mapping[str, Sampler] = {
    sampler.name: sampler
    for rows in (
        _family("ddim", "DDIMScheduler", "DDIM", "sgm"),
        _family("euler", "EulerDiscreteScheduler", "Euler", "karras exponential sgm"),
        _family("euler_a", "EulerAncestralDiscreteScheduler", "Euler a", "sgm"),
        _family("heun", "HeunDiscreteScheduler", "Heun", "karras", counts="two a step"),
        _family("dpm++_2m", _MULTISTEP, "DPM++ 2M", "karras exponential sgm", automatic="karras"),
        _family("dpm++_2m_sde", _MULTISTEP, "DPM++ 2M SDE", "karras exponential", automatic="exponential", **_SDE),
        _family("dpm++_3m_sde", _MULTISTEP, "DPM++ 3M SDE", "karras exponential", automatic="exponential",
                solver_order=3, **_SDE),
        _family("dpm++_sde", "DPMSolverSDEScheduler", "DPM++ SDE", "karras", automatic="karras", counts="two a step"),
        _family("dpm++_2s", "DPMSolverSinglestepScheduler", "DPM++ 2S", "karras"),
        _family("dpm2", "KDPM2DiscreteScheduler", "DPM2", "karras", automatic="karras", counts="two a step"),
        _family("dpm2_a", "KDPM2AncestralDiscreteScheduler", "DPM2 a", "karras", automatic="karras",
                counts="two a step"),
        _family("unipc", "UniPCMultistepScheduler", "UniPC", "karras"),
        _family("deis", "DEISMultistepScheduler", "DEIS"),
        _family("lms", "LMSDiscreteScheduler", "LMS", "karras"),
        _family("plms", "PNDMScheduler", "PLMS", counts="one more", skip_prk_steps=True),
        _family("lcm", "LCMScheduler", "LCM"),
        _family("ddpm", "DDPMScheduler", "DDPM"),
    )
    for sampler in rows
}  # fmt: skip

_TITLES: Mapping[str, str] = {
    title.lower().replace(" ", gap): title
    for title in ("Automatic", "Normal", "Simple", *(title for title, _ in _SCHEDULES.values()))
    for gap in (" ", "_")
}

PLAIN_SAMPLERS: tuple[str, ...] = tuple(
    name for name, sampler in SAMPLERS.items() if sampler.a1111_schedule in ("Automatic", "Uniform")
)
"""Each sampler once, with the schedule it has by itself."""


def sampler_named(name: str) -> Sampler:
    """The sampler of this name. Raises PromptError, with the names there are."""
    try:
        return SAMPLERS[name]
    except KeyError:
        raise PromptError(f"the sampler {name!r} is unknown; say one of {', '.join(SAMPLERS)}") from None


def sampler_of_a1111(title: str, schedule: str = "") -> Sampler:
    """The sampler that an infotext means.

    Without `schedule`, as before version 1.9, the schedule stands in the name ("DPM++ 2M Karras") or is the uniform
    one; "Automatic" is what the web UI takes for that sampler. Its API says "sgm_uniform" for "SGM Uniform". Raises
    PromptError when it is none of ours.
    """
    schedule = _TITLES.get(schedule.lower(), schedule)
    for sampler in SAMPLERS.values():
        if sampler.a1111 == title and (
            schedule in (sampler.a1111_schedule, *({"Automatic"} if sampler.is_automatic else ()))
            or (schedule in ("", "Uniform", "Normal", "Simple") and sampler.name in PLAIN_SAMPLERS)
        ):
            return sampler
        if title == f"{sampler.a1111} {sampler.a1111_schedule}" and schedule in ("", "Automatic"):
            return sampler
    raise PromptError(
        f"the sampler {title!r} (schedule {schedule or 'of its own'}) is not offered; the samplers are "
        f"{', '.join(SAMPLERS)}"
    )
