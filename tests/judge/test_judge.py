"""The frozen judge: right on fresh drawings, silent on nothing, the same on halves."""

from pathlib import Path

import numpy as np
import pytest

from recipes.pocket import world
from recipes.pocket.judge.damage import nothing
from recipes.pocket.judge.drawings import LABELS, PARTS, answers, scenes
from recipes.pocket.judge.model import Judge, JudgeNet, Part, as_batch, save
from recipes.pocket.judge.studio import WEIGHTS
from recipes.pocket.judge.train import none_score, score


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load(WEIGHTS)


@pytest.fixture(scope="module")
def fresh() -> list[world.Scene]:
    """Scenes that training never saw."""
    return list(scenes(400, seed=31_337))


@pytest.fixture(scope="module")
def pictures(fresh: list[world.Scene]) -> np.ndarray:
    return np.stack([np.asarray(world.draw(scene)) for scene in fresh])


def test_it_is_small_and_knows_the_drawn_world(judge: Judge) -> None:
    """Wrong if the world has grown and the judge was not trained anew, or the file is too big to ship with tests."""
    assert judge.labels == LABELS
    assert WEIGHTS.stat().st_size <= 2_000_000
    assert sum(parameter.numel() for parameter in judge.net.parameters()) <= 600_000


def test_it_is_right_on_fresh_drawings(judge: Judge, fresh: list[world.Scene], pictures: np.ndarray) -> None:
    """Wrong if a figure of the judged acceptance would be the judge's own error: 98 % each, less two pictures' luck."""
    shares = score(judge.look(pictures), answers(fresh, "all"))
    assert min(shares.values()) >= 97.5, shares


@pytest.mark.parametrize("part", PARTS[1:])
def test_it_reads_halves(judge: Judge, fresh: list[world.Scene], pictures: np.ndarray, part: Part) -> None:
    """Wrong if half crops, where they show enough to be judged at all, are judged worse than nine in ten."""
    shares = score(judge.look(pictures, part), answers(fresh, part))
    assert min(shares[name] for name in ("style", "character")) >= 90, shares


def test_it_sees_nothing_in_nothing(judge: Judge, pictures: np.ndarray) -> None:
    """Wrong if noise or mush would count as a learned style or character: at most 5 % for the worst of them."""
    void, _ = nothing(as_batch(pictures), np.random.default_rng(5))
    shares = none_score(judge.look(((void + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()))
    assert max(shares.values()) <= 5, shares


def test_it_tells_two_objects_and_their_colours_apart(judge: Judge) -> None:
    """Wrong if colours leak between the objects of one picture."""
    pairs = [("cup", "red", "car", "blue"), ("cat", "yellow", "tree", "purple"), ("key", "green", "hat", "pink")]
    drawn = [
        world.Scene("sky", (world.Thing(a, ca, "small", 0.24, 0.5), world.Thing(b, cb, "small", 0.76, 0.5)), jitter=i)
        for i, (a, ca, b, cb) in enumerate(pairs)
    ]
    seen = judge.look([world.draw(scene) for scene in drawn])
    for kind, colour in ((0, 1), (2, 3)):
        kinds, colours = [pair[kind] for pair in pairs], [pair[colour] for pair in pairs]
        assert seen.object_seen(kinds).all()
        assert seen.colour_is(kinds, colours).all()
        assert not seen.colour_is(kinds, [pair[4 - colour] for pair in pairs]).any()


def test_a_saved_judge_says_the_same(judge: Judge, pictures: np.ndarray, tmp_path: Path) -> None:
    """Wrong if a file does not hold all that the judge knows."""
    save(judge.net, tmp_path / "again.safetensors", "for a test")
    again = Judge.load(tmp_path / "again.safetensors")
    assert again.trained == "for a test"
    np.testing.assert_array_equal(again.look(pictures[:8]).styles, judge.look(pictures[:8]).styles)


def test_another_file_is_refused(tmp_path: Path) -> None:
    """Wrong if an adapter file could be taken for the judge."""
    from safetensors.torch import save_file

    save_file(JudgeNet(LABELS).state_dict(), tmp_path / "other.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="not a judge"):
        Judge.load(tmp_path / "other.safetensors")
