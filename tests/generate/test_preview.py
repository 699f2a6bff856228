"""Glimpses: they show what is coming, change nothing, and keep to their share of the time."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lora.generate.engine import Engine
from diffusion_lora.generate.preview import Glances, Glimpse
from diffusion_lora.generate.request import LoraUse, Request
from diffusion_lora.generate.samplers import sampler_named


@pytest.mark.parametrize("sampler", ["ddim", "euler", "euler_a", "heun", "dpm++_2m", "dpm++_2m_karras", "unipc"])
def test_glimpses_of_every_sampler_become_the_picture_and_change_no_pixel(engine: Engine, sampler: str) -> None:
    """A sampler that counts in sigmas would show noise or a washed picture; a look would spoil what is looked at."""
    steps = 10
    request = Request("a big red cat on a sky background", seed=4, steps=steps, sampler=sampler)
    evaluations = sampler_named(sampler).evaluations(steps)
    seen: list[np.ndarray] = []
    count = 0

    def watch(glimpse: Glimpse) -> None:
        nonlocal count
        count += 1
        if count in (1, evaluations // 2, evaluations - 1):
            seen.append(np.asarray(glimpse.image(0), float))

    (unwatched,) = engine.draw([request])
    ((_, watched),) = engine.stream([request], watch=watch)
    assert watched.image.tobytes() == unwatched.image.tobytes()
    assert count == evaluations - 1, "after every step but the last"
    first, middle, last = (np.abs(picture - np.asarray(watched.image, float)).mean() for picture in seen)
    assert last < first / 2
    assert last < 20, "UniPC corrects most at its end"
    assert middle < 50, "noise is about 75 away"


def test_a_glimpse_names_the_places_of_its_batch(engine: Engine) -> None:
    """In a sweep of several sizes the previews would land on other pictures."""
    requests = [
        Request("a cup", seed=1, steps=2, width=64, height=64),
        Request("a fish", seed=2, steps=2, width=64, height=128),
        Request("a car", seed=3, steps=2, width=64, height=64),
    ]
    seen: list[tuple[list[int], int, tuple[int, int]]] = []

    def watch(glimpse: Glimpse) -> None:
        seen.append((list(glimpse.places), glimpse.pixels, glimpse.image(0).size))

    list(engine.stream(requests, watch=watch))
    assert seen == [([0, 2], 64 * 64, (64, 64)), ([1], 64 * 128, (64, 128))]


def test_what_a_watcher_raises_ends_the_drawing_and_leaves_the_engine_able(engine: Engine, style: LoraUse) -> None:
    """A cancelled drawing would leave gates open, or the engine unusable."""
    base = Request("a cup", seed=1, steps=3)
    (before,) = engine.draw([base])

    def stop(glimpse: Glimpse) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(engine.stream([Request("a cup", seed=1, steps=3, loras=(style,))], watch=stop))
    (after,) = engine.draw([base])
    assert after.image.tobytes() == before.image.tobytes()


def test_changed_strengths_put_nothing_and_touch_no_weight(engine: Engine, style: LoraUse, hero: LoraUse) -> None:
    """Moving a fader would cost what loading an adapter costs."""
    engine.draw([Request("a cup", steps=1, loras=(style, hero))])
    loads = engine.loads
    tensors = {
        name: tensor
        for component, root in engine.model.components.items()
        for name, tensor in (
            *((f"{component} {name}", weight) for name, weight in root.named_parameters()),
            *(
                (f"{component} {name} {number}", matrix)
                for name, module in root.named_modules()
                for number, stack in enumerate(getattr(module, "stacks", ()))
                for matrix in (stack.down, stack.up)
            ),
        )
    }
    stamps = {name: (id(tensor), tensor.data_ptr()) for name, tensor in tensors.items()}
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    engine.draw([Request("a cup", steps=1, loras=(style.at(strength), hero.at(-1.0))) for strength in (0.3, 2.0)])
    assert engine.loads == loads
    assert {name: (id(tensor), tensor.data_ptr()) for name, tensor in tensors.items()} == stamps
    assert all(torch.equal(tensor, copies[name]) for name, tensor in tensors.items())


class _Time:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("look_s", "rows", "expected"), [(1.0, 1, 3), (0.1, 1, 19), (4.0, 1, 1), (50.0, 1, 0), (1.0, 5, 3)]
)
def test_looking_costs_its_share_of_the_time(look_s: float, rows: int, expected: int) -> None:
    """Previews would make drawing slow, or be so rare that nothing is seen."""
    time = _Time()
    glances = Glances(share=0.15, clock=time)

    def image(row: int) -> Image.Image:
        time.now += look_s
        return Image.new("RGB", (8, 8))

    glimpse = Glimpse(places=list(range(rows)), pixels=64, _images=image)
    list(glances.look(glimpse, always=True))
    seen: list[int] = []
    glances.restart()
    for _ in range(19):
        time.now += 1.0
        seen += [place for place, _ in glances.look(glimpse)]
    assert len(seen) == expected
    assert len(seen) * look_s <= 0.15 * 19 + look_s / 2
    assert seen == [number % rows for number in range(len(seen))], "the pictures take turns"
