"""Pictures go where they fit, show what was asked for, and the list of problems names what is wrong with them."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_lora.data.buckets import bucket_sizes, crop_report, place, place_unenlarged
from diffusion_lora.data.examine import Seen, duplicates, examine
from diffusion_lora.data.views import Looks, View, mask_pixels, pixels

LOOKS = Looks(random_crop=True, colour_jitter=0.2, count=4)


def photograph(path: Path, seed: int = 0, size: tuple[int, int] = (96, 64)) -> Path:
    """Smooth noise: something that looks like itself when it is resized."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


@pytest.mark.parametrize(("size_px", "step_px"), [(512, 64), (128, 16), (1024, 64), (40, 8)])
def test_buckets_are_whole_steps_of_about_one_area_in_both_directions(size_px: int, step_px: int) -> None:
    sizes = bucket_sizes(size_px, step_px)
    assert (size_px, size_px) in sizes
    assert {(height, width) for width, height in sizes} == set(sizes)
    for width, height in sizes:
        assert width % step_px == height % step_px == 0
        assert 0.7 * size_px**2 < width * height <= size_px**2
        assert max(width, height) <= 2 * min(width, height)


def test_a_picture_goes_to_the_nearest_shape_and_the_rest_is_told_as_cut_off() -> None:
    sizes = bucket_sizes(512, 64)
    assert place((1024, 1024), sizes).bucket == (512, 512)
    tall = place((512, 704), sizes)
    assert tall.bucket == (448, 576)
    assert tall.cropped == pytest.approx(1 - 576 / 616)
    assert place((4000, 500), sizes).bucket == (640, 320)
    assert place((4000, 500), sizes).cropped == 0.75
    assert not place((400, 400), sizes).too_small
    assert place((200, 200), sizes).too_small
    report = crop_report([tall, tall, place((512, 512), sizes)])
    assert [(size, count) for size, count, *_ in report] == [((448, 576), 2), ((512, 512), 1)]
    assert report[1][2:] == (0, 0)


def test_without_enlargement_no_picture_grows() -> None:
    for size in ((300, 200), (2000, 1500), (64, 65), (513, 511)):
        where = place_unenlarged(size, 512, 64)
        assert where is not None
        assert where.scale <= 1
        assert all(side % 64 == 0 for side in where.bucket)
        assert math.prod(where.bucket) <= 512**2
    assert place_unenlarged((300, 200), 512, 64).bucket == (256, 192)  # type: ignore[union-attr]
    assert place_unenlarged((300, 60), 512, 64) is None


def test_a_view_shows_the_part_and_the_side_it_says(tmp_path: Path) -> None:
    wide = Image.new("RGB", (30, 10), "white")
    wide.paste((255, 0, 0), (0, 0, 10, 10))
    wide.paste((0, 0, 255), (20, 0, 30, 10))
    wide.save(tmp_path / "wide.png")
    for view, left, right in (
        (View((10, 10)), (255, 255, 255), (255, 255, 255)),
        (View((10, 10), crop=(0, 0.5)), (255, 0, 0), (255, 0, 0)),
        (View((30, 10)), (255, 0, 0), (0, 0, 255)),
        (View((30, 10), mirrored=True), (0, 0, 255), (255, 0, 0)),
    ):
        shown = pixels(tmp_path / "wide.png", view)
        assert shown.size == view.size
        assert (shown.getpixel((1, 5)), shown.getpixel((view.size[0] - 2, 5))) == (left, right)


def test_colours_change_by_their_factors(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (200, 100, 50)).save(tmp_path / "a.png")

    def colour(*factors: float) -> tuple[int, ...]:
        return pixels(tmp_path / "a.png", View((4, 4), colour=factors)).getpixel((0, 0))  # type: ignore[arg-type,return-value]

    assert colour(1, 1, 1, 0) == (200, 100, 50)
    assert colour(0.5, 1, 1, 0) == (100, 50, 25)
    grey = colour(1, 1, 0.001, 0)
    assert max(grey) - min(grey) <= 1
    turned = colour(1, 1, 1, 1 / 3)
    assert max(range(3), key=turned.__getitem__) == 1


def test_views_are_a_few_fixed_ones_in_bounds_and_one_where_nothing_is_random() -> None:
    views = [LOOKS.view(0, 5, number, (8, 8), False) for number in range(4)]
    assert len(set(views)) == 4
    assert views == [LOOKS.view(0, 5, number, (8, 8), False) for number in range(4)]
    assert views[0] not in (LOOKS.view(1, 5, 0, (8, 8), False), LOOKS.view(0, 6, 0, (8, 8), False))
    many = [LOOKS.view(0, picture, 0, (8, 8), False) for picture in range(200)]
    assert all(0.8 <= factor <= 1.2 for view in many for factor in view.colour[:3])
    assert max(view.crop[0] for view in many) > 0.9
    assert Looks().view(3, 4, 0, (8, 8), True) == View((8, 8), mirrored=True)
    assert (Looks().different, LOOKS.different, Looks(colour_jitter=0.1, count=2).different) == (1, 4, 2)
    crop_only = Looks(random_crop=True).view(0, 5, 1, (8, 8), False)
    assert crop_only.colour == (1, 1, 1, 0)
    assert crop_only.crop == views[1].crop


def test_a_mask_is_cut_as_its_picture_and_taken_from_the_alpha_channel_where_there_is_no_file(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (30, 10), (255, 0, 0, 255))
    picture.putalpha(Image.linear_gradient("L").resize((30, 10)).point(lambda level: 255 if level > 127 else 0))
    picture.save(tmp_path / "a.png")
    mask = Image.new("L", (60, 20), 0)
    mask.paste(255, (0, 0, 20, 20))
    mask.save(tmp_path / "a.mask.png")
    view = View((10, 10), crop=(0, 0.5))
    from_file = mask_pixels(tmp_path / "a.png", view, tmp_path / "a.mask.png")
    assert from_file is not None
    assert np.asarray(from_file).min() == 255
    from_alpha = mask_pixels(tmp_path / "a.png", View((30, 10)), None)
    assert from_alpha is not None
    assert (from_alpha.getpixel((5, 0)), from_alpha.getpixel((5, 9))) == (0, 255)
    assert mask_pixels(photograph(tmp_path / "b.png"), view, None) is None


def test_pictures_are_decoded_once_until_they_change(tmp_path: Path) -> None:
    paths = [photograph(tmp_path / f"{i}.png", i) for i in range(3)]
    (tmp_path / "broken.png").write_bytes(paths[0].read_bytes()[:300])
    paths.append(tmp_path / "broken.png")
    index = tmp_path / "indices"
    decoded: list[tuple[int, int]] = []

    def look() -> dict[Path, Seen]:
        decoded.clear()
        return examine(paths, index, progress=lambda done, total: decoded.append((done, total)))

    first = look()
    assert decoded == [(4, 4)]
    assert "broken.png cannot be read" in first[paths[3]].problem
    assert look() == first
    assert decoded == []
    photograph(paths[1], 9, (96, 66))
    assert look()[paths[1]].pixels != first[paths[1]].pixels
    assert decoded == [(1, 1)]


def test_a_line_of_the_index_that_a_crash_has_cut_is_made_again(tmp_path: Path) -> None:
    paths = [photograph(tmp_path / f"{i}.png", i) for i in range(3)]
    whole = examine(paths, tmp_path / "indices")
    (index,) = (tmp_path / "indices").iterdir()
    index.write_bytes(index.read_bytes()[:-40])
    decoded: list[int] = []
    assert examine(paths, tmp_path / "indices", progress=lambda done, total: decoded.append(total)) == whole
    assert decoded == [1]
    assert examine(paths, tmp_path / "indices", progress=lambda done, total: decoded.append(total)) == whole
    assert decoded == [1]


def test_copies_are_found_and_what_only_resembles_in_shape_is_not_one(tmp_path: Path) -> None:
    original = photograph(tmp_path / "a.png", 1, (200, 200))
    image = Image.open(original)
    image.save(tmp_path / "b.bmp")  # the same pixels
    image.resize((150, 150)).save(tmp_path / "c.jpg", quality=70)  # the same picture
    photograph(tmp_path / "d.png", 2, (200, 200))
    Image.merge("RGB", image.split()[::-1]).save(tmp_path / "e.png")  # the same shapes in other colours
    names = sorted(path.name for path in tmp_path.iterdir())
    seen = examine([tmp_path / name for name in names], None)
    found = {(names[i], names[j], same) for i, j, same in duplicates([seen[tmp_path / name] for name in names])}
    assert found == {("b.bmp", "a.png", True), ("c.jpg", "a.png", False)}
