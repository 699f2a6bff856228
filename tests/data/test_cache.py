"""Latents of a set: the right ones for the right picture, and a broken picture costs only itself."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from diffusion_lora.data.cache import LatentCache, cache_latents
from diffusion_lora.data.folder import Item
from diffusion_lora.errors import DatasetError


def encode(x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Stands where a real autoencoder does: a quarter of the resolution, the spread a tenth of the mean's size."""
    mean = torch.nn.functional.avg_pool2d(x_BCHW, 4)
    return mean, mean.abs() / 10


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    for i, colour in enumerate(("black", "white", "red")):
        picture = Image.new("RGB", (16, 16), colour)
        picture.paste((0, 0, 255), (0, 0, 8, 16))  # blue on the left
        picture.save(tmp_path / f"{i}.png")
    return [Item(tmp_path / f"{i}.png", str(i)) for i in range(3)]


def cached(items: list[Item], **options: object) -> tuple[LatentCache, list[tuple[str, str]]]:
    problems: list[tuple[str, str]] = []
    cache = cache_latents(
        items, encode, size_px=16, on_problem=lambda item, why: problems.append((item.name, why)), **options
    )
    return cache, problems


def test_latents_stand_in_the_order_of_the_items_however_they_were_batched(items: list[Item]) -> None:
    for batch_size in (1, 2, 8):
        cache, problems = cached(items, batch_size=batch_size)
        assert cache.mean.shape == (3, 1, 3, 4, 4)
        right = cache.mean[:, 0, :, 0, -1]
        assert torch.allclose(right, torch.tensor([[-1.0, -1, -1], [1, 1, 1], [1, -1, -1]]))
        assert not problems


def test_the_mirrored_view_is_the_mirrored_picture(items: list[Item]) -> None:
    cache, _ = cached(items, flip=True)
    assert torch.equal(cache.mean[:, 1], cache.mean[:, 0].flip(-1))


def test_a_draw_is_the_mean_plus_the_spread_times_noise(items: list[Item]) -> None:
    cache, _ = cached(items, flip=True)
    drawn = cache.sample([2, 0], [True, False], torch.Generator().manual_seed(5))
    noise = torch.randn(drawn.shape, generator=torch.Generator().manual_seed(5))
    expected = torch.stack([cache.mean[2, 1], cache.mean[0, 0]])
    assert torch.allclose(drawn, expected + expected.abs() / 10 * noise)


def test_a_truncated_picture_is_left_out_by_name_and_the_others_keep_their_captions(items: list[Item]) -> None:
    broken = items[1].path
    broken.write_bytes(broken.read_bytes()[:60])
    cache, problems = cached(items)
    assert [item.caption for item in cache.items] == ["0", "2"]
    assert len(cache.mean) == 2
    assert [name for name, _ in problems] == ["1.png"]
    assert "1.png cannot be read as a picture" in problems[0][1]


def test_a_set_with_nothing_readable_is_an_error(items: list[Item]) -> None:
    for item in items:
        item.path.write_bytes(b"")
    with pytest.raises(DatasetError, match="none of the 3 pictures"):
        cached(items)


def test_latents_that_are_not_finite_name_their_picture(items: list[Item]) -> None:
    """A half-precision autoencoder that overflows would otherwise teach NaN."""
    with pytest.raises(DatasetError, match=r"not finite for 1\.png"):
        cache_latents(
            items,
            lambda x_BCHW: (torch.where(x_BCHW.mean(dim=(1, 2, 3), keepdim=True) > 0.1, torch.inf, x_BCHW), x_BCHW),
            size_px=16,
            on_problem=lambda item, why: None,
        )
