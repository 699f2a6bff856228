"""The committed prompts and sample sets are what their generators say, and do what they are for."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.pocket import world
from recipes.pocket.judge.frechet import frechet_distance
from recipes.pocket.judge.prompts import base_prompts, lora_prompts, read_base, read_lora
from recipes.pocket.make_sets import STYLE, main, style_scenes


def test_the_committed_prompts_are_the_generated_ones() -> None:
    """Wrong if someone edited the list by hand, or the drawn world changed without a new list."""
    assert read_base() == base_prompts()
    assert read_lora() == lora_prompts()


def test_the_prompts_are_balanced_and_say_what_they_mean() -> None:
    """Wrong if figures of the acceptance leaned on some kinds or colours, or a held pair hid in `single`."""
    prompts = read_base()
    assert Counter(prompt.kind for prompt in prompts) == {"single": 320, "held": 96, "two": 96}
    assert len({prompt.seed for prompt in prompts}) == 512
    for values in (
        Counter(prompt.objects[0] for prompt in prompts if prompt.kind == "single"),
        Counter(prompt.colours[0] for prompt in prompts if prompt.kind == "single"),
        Counter(prompt.scene.background for prompt in prompts),
    ):
        assert max(values.values()) - min(values.values()) <= 2
    for prompt in prompts:
        held = any(pair in world.HELD_PAIRS for pair in zip(prompt.objects, prompt.colours, strict=True))
        assert held == (prompt.kind == "held")
        assert all(word in prompt.prompt for word in (*prompt.objects, *prompt.colours, prompt.scene.background))


def test_the_adapters_are_judged_outside_their_sets() -> None:
    """Wrong if an adapter could pass by heart."""
    shown = {(thing.kind, thing.colour) for scene in style_scenes(STYLE) for thing in scene.things}
    kinds = {kind for kind, _ in shown}
    prompts = read_lora()
    assert len(prompts) == 32
    assert not shown & {(prompt.object, prompt.colour) for prompt in prompts}
    assert sum(prompt.object not in kinds for prompt in prompts) >= 10
    for prompt in prompts:
        assert "neon style" in prompt.said("style", style="neon")
        assert "zib" in prompt.said("both", style="neon", character="zib")
        assert "@" not in prompt.said("both", style="neon", character="zib") + prompt.ordinary


@pytest.mark.parametrize(
    ("name", "pictures"),
    [("pocket-style", 24), ("pocket-subject", 12), ("pocket-character", 20), ("pocket-concept", 32)],
)
def test_the_shipped_sets_are_the_drawn_ones(name: str, pictures: int, checkout: Path, tmp_path: Path) -> None:
    """Wrong if the shipped pictures no longer come from the recipe."""
    main([str(tmp_path)])
    drawn = sorted(path.name for path in (tmp_path / name).iterdir())
    assert [path.name for path in sorted((checkout / "datasets" / name).glob("[0-9]*"))] == drawn
    assert sum(file.endswith(".png") for file in drawn) == pictures
    for file in drawn:
        ours, theirs = tmp_path / name / file, checkout / "datasets" / name / file
        if file.endswith(".png"):
            np.testing.assert_array_equal(np.asarray(Image.open(ours)), np.asarray(Image.open(theirs)))
        else:
            assert ours.read_text() == theirs.read_text()


def test_frechet_distance_of_known_gaussians() -> None:
    """Wrong if the formula were: for diagonal Gaussians it is |shift|^2 + sum (s_a - s_b)^2."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((200_000, 3)), rng.standard_normal((200_000, 3)) * [1, 2, 3] + [0, 0, 2]
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, b) == pytest.approx(4 + 0 + 1 + 4, rel=0.02)
