"""The recipe of the embedded captioner: its batches, and a training that goes on."""

from pathlib import Path

import numpy as np
import pytest
import torch

from recipes.pocket.captioner import material, model, train
from recipes.pocket.captioner.material import Pictures


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Pictures]:
    return material.judged(tmp_path_factory.mktemp("drawings"), 24, 7, None, model.tokenizer(), processes=2)


def test_drawings_are_the_same_by_any_number_of_processes(sources: list[Pictures], tmp_path: Path) -> None:
    alone = material.judged(tmp_path, 24, 7, None, model.tokenizer())
    assert torch.equal(sources[0].pixels, alone[0].pixels)


def test_a_batch_depends_on_seed_and_step_alone(sources: list[Pictures]) -> None:
    one, again, other = (material.batch(sources, 0, step, 8) for step in (3, 3, 4))
    assert torch.equal(one.pixels, again.pixels)
    assert torch.equal(one.tokens, again.tokens)
    assert not torch.equal(one.pixels, other.pixels)


def test_a_mirrored_picture_has_the_mirrored_caption(sources: list[Pictures]) -> None:
    """If it failed, the captioner would learn left for right."""
    source, found = sources[0], material.batch(sources, 0, 0, 24)  # all of them, in their order
    turned = 0
    for row in range(24):
        plain = source.pixels[row].permute(2, 0, 1).float() / 127.5 - 1
        nearer = [(found.pixels[row] - picture).square().mean().item() for picture in (plain, plain.flip(2))]
        mirrored = int(np.argmin(nearer))
        length = found.tokens.shape[1]
        assert found.tokens[row].tolist() == source.tokens[row, mirrored, :length].tolist()
        turned += mirrored
    assert 4 < turned < 20


def test_damage_moves_softens_and_lights_but_keeps_the_picture(sources: list[Pictures]) -> None:
    x_BCHW = sources[0].pixels[:8].permute(0, 3, 1, 2).float() / 127.5 - 1
    damaged = material.damaged(x_BCHW, np.random.default_rng(0))
    assert damaged.shape == x_BCHW.shape
    assert damaged.abs().max() <= 1
    apart = (damaged - x_BCHW).abs().mean((1, 2, 3))
    assert apart.min() > 0.01
    assert apart.max() < 0.4


def test_training_learns_and_goes_on_from_its_state(
    sources: list[Pictures], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = model.tokenizer()
    torch.manual_seed(0)
    captioner = model.build(words)
    hints, look = model.Hints(train.LABELS), material.batch(sources, 1, 0, 16)
    with torch.no_grad():
        before, _ = train.loss_on(captioner, hints, look)
    state, seconds, steps = tmp_path / "state.pt", 0.0, 0
    while steps < 40:  # a busy machine gets there too
        train.train(sources, captioner, state, seconds / 60 + 0.03, 16, 2e-3, 0)
        kept = torch.load(state, weights_only=True)
        assert kept["step"] > steps
        seconds, steps = kept["seconds"], kept["step"]
    captioner.train()  # with the pictures' own means: so few steps teach the batch norm's little
    with torch.no_grad():
        after, _ = train.loss_on(captioner, hints, look)
    assert after < 0.9 * before
    train.train(sources, captioner, state, seconds / 60 + 0.01, 16, 2e-3, 0)
    assert f"goes on from step {steps}" in capsys.readouterr().out
