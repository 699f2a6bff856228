"""A scene turned into placed outlines, and the painting tools that the styles share.

Outlines are painted with PIL at twice the picture's size and averaged down; after that a picture is a float
array of height, width and three colours from 0 to 255, and a mask an array from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from recipes.pocket.world.palette import RGB, SKIES

Array = np.ndarray
Ink = Callable[["Part"], tuple[int, ...] | None]
ALL = ("part", "tone", "mark")
LINEWORK = ("part", "mark")


@dataclass(frozen=True, slots=True)
class Part:
    """One placed outline: points at painting size, the plain colour, and the colour of the thing it is of."""

    xy: list[tuple[float, float]]
    hole: list[tuple[float, float]] | None
    role: str
    layer: str
    rgb: RGB
    base: RGB

    @property
    def own(self) -> bool:
        """Whether the part is in a shade of the thing's own colour."""
        return self.role in ("main", "dark", "light")

    @property
    def hue(self) -> RGB:
        """The colour to use for a line around the part."""
        return self.base if self.own else self.rgb


@dataclass(slots=True)
class Stage:
    """A scene ready to be rendered in any style."""

    size: int
    background: str
    back: list[Part]
    things: list[list[Part]]
    seed: int
    scale: float = field(init=False)

    def __post_init__(self) -> None:
        self.scale = self.size / 128

    @property
    def sky(self) -> tuple[RGB, RGB]:
        """The two tones of the background."""
        return SKIES[self.background]

    @property
    def front(self) -> list[Part]:
        """All parts of all things."""
        return [part for thing in self.things for part in thing]

    def px(self, length: float) -> int:
        """A length in pixels of a 128 picture, at painting size."""
        return max(1, round(length * 2 * self.scale))

    def near(self, length: float) -> int:
        """A length in pixels of a 128 picture, at this picture's size."""
        return max(1, round(length * self.scale))

    def canvas(self, top: RGB, bottom: RGB | None = None) -> Image.Image:
        """An opaque canvas at painting size, in a soft gradient."""
        side = self.size * 2
        if bottom is None or bottom == top:
            return Image.new("RGB", (side, side), top)
        ramp = np.linspace(0.0, 1.0, side, dtype=np.float32)[:, None]
        rows = np.array(top, np.float32) * (1 - ramp) + np.array(bottom, np.float32) * ramp
        return Image.fromarray(np.repeat(rows.round().astype(np.uint8)[:, None], side, axis=1))

    def sheet(self) -> Image.Image:
        """A clear canvas at painting size."""
        return Image.new("RGBA", (self.size * 2, self.size * 2), (0, 0, 0, 0))

    def noise(self, cells: int, salt: int = 0) -> Array:
        """Smooth random blotches from -1 to 1, `cells` across."""
        rng = np.random.default_rng(self.seed + salt)
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
        fine = coarse.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return np.asarray(fine, np.float32) / 127.5 - 1.0

    def strokes(self, period: float, dx: float, dy: float, bend: float = 2.0) -> Array:
        """Slightly bent parallel waves from -1 to 1."""
        y, x = np.mgrid[0:self.size, 0:self.size].astype(np.float32) / self.scale
        return np.sin((x * dx + y * dy) * (2 * np.pi / period) + self.noise(5, 7) * bend)


def paint(image: Image.Image, parts: Iterable[Part], fill: Ink | None, line: Ink | None = None, width: int = 0,
          layers: Sequence[str] = ALL) -> Image.Image:
    """Paint parts in order: each one's inside, then its contour when it has one."""
    draw = ImageDraw.Draw(image)
    for part in parts:
        if part.layer not in layers:
            continue
        tone = fill(part) if fill else None
        if tone is not None:
            xy = part.xy
            if part.hole:
                xy = [*xy, xy[0], part.hole[0], *part.hole[::-1]]
            draw.polygon(xy, fill=tone)
        edge = line(part) if line and part.layer == "part" else None
        if edge is not None:
            for loop in (part.xy, part.hole):
                if loop:
                    draw.line([*loop, loop[0], loop[1]], fill=edge, width=width)
    return image


def shrink(image: Image.Image) -> Array:
    """A painted opaque canvas at picture size."""
    return np.asarray(image.reduce(2), np.float32)


def lift(sheet: Image.Image) -> tuple[Array, Array]:
    """A clear canvas at picture size: colours already multiplied by the mask, and the mask."""
    both = np.asarray(sheet.convert("RGBa").reduce(2), np.float32)
    return both[..., :3], both[..., 3:] / 255


def blur(mask: Array, radius: float) -> Array:
    """A mask of shape (n, n, 1), softened."""
    image = Image.fromarray((mask[..., 0] * 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(radius))
    return np.asarray(image, np.float32)[..., None] / 255


def soft(mask: Array, radius: float) -> Array:
    """A smoother blur."""
    image = Image.fromarray((mask[..., 0] * 255).astype(np.uint8))
    image = image.filter(ImageFilter.BoxBlur(radius)).filter(ImageFilter.BoxBlur(radius))
    return np.asarray(image, np.float32)[..., None] / 255


def grow(mask: Array, reach: float) -> Array:
    """The mask made larger all around by about `reach` pixels."""
    return np.clip(soft(mask, reach) * 4.5 - 0.25, 0, 1)


def shift(mask: Array, dx: int, dy: int) -> Array:
    """The array moved right and down, with nothing coming in from the far side."""
    out = np.zeros_like(mask)
    h, w = mask.shape[:2]
    out[max(dy, 0):h + min(dy, 0), max(dx, 0):w + min(dx, 0)] = \
        mask[max(-dy, 0):h + min(-dy, 0), max(-dx, 0):w + min(-dx, 0)]
    return out


def relief(mask: Array, reach: int) -> Array:
    """Light from the upper left on a cushion of the mask's shape, about -1 to 1."""
    cushion = soft(mask, reach)
    return shift(cushion, -reach, -reach) - shift(cushion, reach, reach)


def over(back: Array, colour: Array, mask: Array) -> Array:
    """Premultiplied colour laid over a picture."""
    return back * (1 - mask) + colour


def plain_rgb(part: Part) -> RGB:
    """A part's plain colour."""
    return part.rgb
