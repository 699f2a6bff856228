"""What the page says of a training's loss is what its numbers say: no word of a course that noise explains."""

import random
from pathlib import Path

from diffusion_lora.config import TrainConfig
from webui.runs import Story
from webui.runview import health


def said(losses: list[float], validation: tuple[tuple[int, float], ...] = ()) -> str:
    config = TrainConfig.model_validate({"dataset": {"path": "pictures"}})
    steps = tuple(enumerate(losses, 1))
    return health(Story("run", Path("run"), config, "done", losses=steps, steps=len(losses), validation=validation))


def noisy(first: float, last: float, steps: int = 300) -> list[float]:
    """A straight course with the spread that a step's timesteps give it."""
    rng = random.Random(1)
    return [(first + (last - first) * step / steps) * rng.lognormvariate(0, 0.5) for step in range(steps)]


def test_a_loss_that_stands_still_in_its_noise_is_no_warning() -> None:
    for seed_course in (noisy(0.2, 0.2), noisy(0.2, 0.195), noisy(0.2, 0.205)):
        page = said(seed_course)
        assert "The training loss does not tell yet" in page
        assert 'class="dot careful"' not in page
    assert "The training loss fell" in said(noisy(0.2, 0.12))
    assert "The training loss rose" in said(noisy(0.2, 0.32))
    assert "training loss" not in said(noisy(0.2, 0.32, steps=40)), "a few steps have no course"


def test_where_pictures_are_held_out_they_have_the_say() -> None:
    page = said(noisy(0.2, 0.2), ((10, 0.3), (20, 0.25)))
    assert "training loss" not in page
    assert "On held-out pictures the loss is at its lowest: 0.2500, step 20." in page
