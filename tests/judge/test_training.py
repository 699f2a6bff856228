"""How the judge is trained: true answers, damage that keeps them true, and a training that goes on where it stopped."""

from pathlib import Path

import numpy as np
import pytest
import torch

from recipes.pocket import world
from recipes.pocket.judge import train
from recipes.pocket.judge.damage import damaged, nothing
from recipes.pocket.judge.drawings import IGNORE, LABELS, Drawings, answers, drawings, scenes
from recipes.pocket.judge.model import Judge, as_batch, save


def _scene(*things: world.Thing, background: str = "sky") -> world.Scene:
    return world.Scene(background, things, "ink", 3)


def test_halves_have_the_answers_of_what_they_show() -> None:
    """Wrong if the judge were taught that an object is in the half it is not in, or cut through the middle."""
    left, right = world.Thing("cup", "red", "small", 0.24, 0.5), world.Thing("zib", None, "small", 0.76, 0.5)
    cup, middle = LABELS.objects.index("cup"), _scene(world.Thing("cup", "red", "big", 0.5, 0.5))
    both = _scene(left, right)
    of_left, of_right = answers([both], "left"), answers([both], "right")
    assert of_left.objects[0, cup] == 1
    assert of_left.colours[0, cup] == LABELS.colours.index("red")
    assert of_left.characters[0] == len(LABELS.characters)
    assert of_right.objects[0, cup] == 0
    assert of_right.characters[0] == LABELS.characters.index("zib")
    assert answers([middle], "left").objects[0, cup] == IGNORE
    assert answers([_scene()], "all").objects.sum() == 0


def test_damage_keeps_named_colours_apart() -> None:
    """Wrong if damage could turn a colour into its neighbour: flat colours stay nearest to their own."""
    names = list(world.COLOURS)
    values = torch.tensor([world.COLOURS[name] for name in names]).float() / 127.5 - 1
    for seed in range(20):
        flat = values[:, :, None, None].expand(-1, 3, 128, 128).contiguous()
        seen = damaged(flat, np.random.default_rng(seed)).mean((2, 3))
        assert torch.cdist(seen, values).argmin(1).tolist() == list(range(len(names)))


@pytest.mark.parametrize("shape", [(128, 128), (128, 64), (64, 128)])
def test_damage_and_nothing_give_pictures(shape: tuple[int, int]) -> None:
    """Wrong if any damage leaves the range of a picture or breaks on halves."""
    x_BCHW = torch.rand(12, 3, *shape) * 2 - 1
    void, found = nothing(x_BCHW, np.random.default_rng(1))
    for pictures in (damaged(x_BCHW.clone(), np.random.default_rng(2)), void):
        assert pictures.shape == x_BCHW.shape
        assert torch.isfinite(pictures).all()
        assert pictures.abs().max() <= 1
    assert (found.characters == len(LABELS.characters)).all()
    assert found.objects.sum() == 0


def test_a_batch_depends_on_seed_and_step_alone(tmp_path: Path) -> None:
    """Wrong if a training that was stopped would go on with other pictures."""
    material = train.Material(drawings(tmp_path, 40, 7, lambda _: None), None, None)
    first, truth = train.batch(material, 1, 3, 16)
    again, same = train.batch(material, 1, 3, 16)
    assert torch.equal(first, again)
    np.testing.assert_array_equal(truth.objects, same.objects)
    assert first.shape[-2:] != (128, 128), "every fourth batch is of halves"
    assert not torch.equal(first, train.batch(material, 1, 7, 16)[0])


def test_drawings_are_made_once(tmp_path: Path) -> None:
    """Wrong if every start drew all pictures again, or a set that was cut off were taken for whole."""
    first = drawings(tmp_path, 20, 7, lambda _: None)
    (file,) = tmp_path.glob("drawn-*.npy")
    written = file.stat().st_mtime_ns
    again = drawings(tmp_path, 20, 7, lambda _: None)
    assert file.stat().st_mtime_ns == written
    np.testing.assert_array_equal(first.pictures, again.pictures)
    np.testing.assert_array_equal(first.pictures[5], np.asarray(world.draw(list(scenes(20, 7))[5])))


def test_training_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong if a second start began anew, or lost the time already spent."""
    material = train.Material(drawings(tmp_path, 40, 7, lambda _: None), None, None)
    state = tmp_path / "state.pt"
    train.train(material, state, minutes=0.02, size=16, peak=1e-3, seed=0)
    before = torch.load(state, weights_only=True)
    longer = before["seconds"] / 60 + 0.02  # a busy machine may have taken more than its time
    net = train.train(material, state, longer, size=16, peak=1e-3, seed=0)
    after = torch.load(state, weights_only=True)
    assert f"goes on from step {before['step']}" in capsys.readouterr().out
    assert after["step"] > before["step"] > 0
    assert after["seconds"] >= 0.04 * 60

    save(net, tmp_path / "judge.safetensors", "a moment")
    seen = Judge.load(tmp_path / "judge.safetensors").look(material.drawn.pictures)
    shares = train.score(seen, material.drawn.answers["all"])
    assert set(shares) == {"object", "colour", "background", "style", "character"}


def test_an_answer_that_is_not_expected_costs_nothing() -> None:
    """Wrong if unknown answers (a thing cut in half) pulled the judge to one side."""
    net = train.JudgeNet(LABELS).eval()
    drawn = list(scenes(4, 1))
    x_BCHW = as_batch([world.draw(scene) for scene in drawn])
    truth = answers(drawn, "all")
    for name in ("objects", "colours", "backgrounds", "styles", "characters"):
        getattr(truth, name)[:] = IGNORE
    with torch.no_grad():
        assert float(train.loss_of(net(x_BCHW), truth)) == 0


def test_drawings_know_every_part() -> None:
    """Wrong if halves had no answers of their own."""
    drawn = list(scenes(3, 1))
    made = Drawings(np.zeros((3, 128, 128, 3), np.uint8), {part: answers(drawn, part) for part in train.PARTS})
    assert set(made.answers) == {"all", "left", "right", "top", "bottom"}
