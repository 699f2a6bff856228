"""Pictures of unknown origin come back upright, in RGB and whole, or not at all."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_lora.errors import DatasetError
from diffusion_lora.images import MAX_PIXELS, open_image, square


def test_orientation_alpha_palette_grey_and_frames_become_upright_rgb(tmp_path: Path) -> None:
    lying = Image.new("RGB", (4, 2), "blue")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    lying.save(tmp_path / "lying.jpg", exif=exif)
    assert open_image(tmp_path / "lying.jpg").size == (2, 4)

    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert open_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)

    Image.fromarray(np.full((2, 2), 40000, np.uint16)).save(tmp_path / "deep.png")
    assert open_image(tmp_path / "deep.png").getpixel((0, 0)) == (156, 156, 156)

    frames = [Image.new("P", (2, 2), colour) for colour in (1, 2)]
    frames[0].putpalette([0, 0, 0, 10, 20, 30, 90, 90, 90])
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert open_image(tmp_path / "moving.gif").getpixel((0, 0)) == (10, 20, 30)

    Image.new("CMYK", (2, 2)).save(tmp_path / "print.jpg")
    assert open_image(tmp_path / "print.jpg").mode == "RGB"


def test_a_truncated_picture_is_refused_not_half_used(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(DatasetError, match=r"cut\.jpg cannot be read as a picture \(image file is truncated"):
        open_image(path)


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("empty.png", b"", "empty file"),
        ("text.png", b"no picture", "not one of JPEG"),
        ("doc.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not one of JPEG"),
    ],
)
def test_what_is_no_picture_is_told(tmp_path: Path, name: str, data: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DatasetError, match=why):
        open_image(tmp_path / name)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="No such file"):
        open_image(tmp_path / "gone.png")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    side = int(MAX_PIXELS**0.5) + 50
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    with pytest.raises(DatasetError, match="are more than 80,000,000"):
        open_image(tmp_path / "bomb.png")


def test_square_keeps_the_middle() -> None:
    wide = Image.new("RGB", (30, 10), "white")
    wide.paste((255, 0, 0), (10, 0, 20, 10))
    assert square(wide, 8).getpixel((4, 4)) == (255, 0, 0)
    assert max(green for _, green, _ in square(wide, 8).get_flattened_data()) < 16
