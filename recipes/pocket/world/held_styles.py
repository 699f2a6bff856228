"""Six styles that the model is not trained on."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from recipes.pocket.world.palette import RGB, luma, mix, vivid
from recipes.pocket.world.stage import (
    LINEWORK,
    Array,
    Part,
    Stage,
    blur,
    grow,
    lift,
    over,
    paint,
    plain_rgb,
    relief,
    shift,
    shrink,
    soft,
)

_WHITE: RGB = (255, 255, 255)
_BOARD: RGB = (46, 60, 56)
_DRAFT: RGB = (34, 74, 136)
_PAPER: RGB = (251, 248, 240)
_CREAM: RGB = (244, 232, 206)
_BLACK: RGB = (54, 46, 46)


def _bright(c: RGB, floor: float) -> RGB:
    """The colour, lightened until it is at least `floor` bright."""
    return mix(c, _WHITE, max(0.0, (floor - luma(c)) / (1 - luma(c) + 1e-6)))


def blueprint(stage: Stage) -> Array:
    """Tinted white lines on draughtsman's blue with a faint grid."""
    board = mix(_DRAFT, stage.sky[0], 0.08)
    canvas = stage.canvas(board)
    side, step = stage.size * 2, stage.size // 2
    for at in range(step // 2, side, step):
        canvas.paste(mix(board, _WHITE, 0.09), (at, 0, at + stage.px(2), side))
        canvas.paste(mix(board, _WHITE, 0.09), (0, at, side, at + stage.px(2)))
    paint(canvas, stage.back, lambda p: mix(board, p.rgb, 0.5 if p.layer == "mark" else 0.14),
          lambda p: mix(board, _bright(p.rgb, 0.7), 0.45), stage.px(2.5))
    def line(part: Part) -> RGB:
        return _bright(vivid(part.hue, 1.4), 0.54)
    def inside(part: Part) -> RGB:
        return line(part) if part.layer == "mark" else board
    return shrink(paint(canvas, stage.front, inside, line, stage.px(3.2), LINEWORK))


def chalk(stage: Stage) -> Array:
    """Coarse coloured chalk on a dark board."""
    board = mix(_BOARD, stage.sky[0], 0.06)
    canvas = paint(stage.canvas(board), stage.back, lambda p: mix(board, p.rgb, 0.5 if p.layer == "mark" else 0.16),
                   lambda p: mix(board, _bright(p.rgb, 0.6), 0.55), stage.px(3))
    def line(part: Part) -> RGB:
        return mix(_bright(part.hue, 0.34), _WHITE, 0.14)
    def inside(part: Part) -> RGB:
        return mix(board, line(part), 0.9 if part.layer == "mark" else 0.5)
    back = shrink(canvas)
    colour, mask = lift(paint(stage.sheet(), stage.front, inside, line, stage.px(4.2), LINEWORK))
    dust = 1 + 0.1 * stage.strokes(12, 0.45, -0.9)[..., None] + 0.08 * stage.noise(16)[..., None]
    return over(back, colour * dust, mask) + 10 * blur(mask, 4 * stage.scale)


def pixel(stage: Stage) -> Array:
    """Square blocks of four pixels in few colours, with a dark contour."""
    def few(image: Image.Image, colours: int) -> Array:
        small = image.resize((32, 32), Image.Resampling.BOX)
        return np.asarray(small.quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).convert("RGB"))
    back = few(paint(stage.canvas(*stage.sky), stage.back, plain_rgb), 12)
    front = paint(stage.sheet(), stage.front, plain_rgb)
    solid = front.getchannel("A").resize((32, 32), Image.Resampling.BOX).point(lambda a: 255 * (a > 118))
    inside = np.asarray(solid)[..., None] > 0
    around = np.pad(inside, ((1, 1), (1, 1), (0, 0)))
    contour = (around[:-2, 1:-1] | around[2:, 1:-1] | around[1:-1, :-2] | around[1:-1, 2:]) & ~inside
    dark = mix(stage.front[-1].base, (30, 22, 46), 0.68) if stage.front else _WHITE
    blocks = np.where(inside, few(_opaque(front), 14), np.where(contour, np.array(dark, np.uint8), back))
    picture = Image.fromarray(blocks.astype(np.uint8)).resize((stage.size, stage.size), Image.Resampling.NEAREST)
    return np.asarray(picture, np.float32)


def _opaque(sheet: Image.Image) -> Image.Image:
    """The colours of a clear canvas at a quarter of its size or less, free of what was clear around them."""
    small = np.asarray(sheet.convert("RGBa").resize((32, 32), Image.Resampling.BOX), np.float32)
    flat = small[..., :3] * (255 / np.maximum(small[..., 3:], 1))
    return Image.fromarray(np.clip(flat, 0, 255).astype(np.uint8))


def neon(stage: Stage) -> Array:
    """Glowing coloured tubes in the dark."""
    night = (16, 14, 30)
    canvas = paint(stage.canvas(night, mix(night, stage.sky[1], 0.1)), stage.back,
                   lambda p: mix(night, p.rgb, 0.5 if p.layer == "mark" else 0.1),
                   lambda p: mix(night, _bright(vivid(p.rgb, 2.2), 0.4), 0.5), stage.px(2.5))
    def tube(part: Part) -> RGB:
        return _bright(vivid(part.hue, 1.25), 0.4)
    def inside(part: Part) -> RGB:
        return tube(part) if part.layer == "mark" else mix(night, part.hue, 0.16)
    back = shrink(canvas)
    colour, mask = lift(paint(stage.sheet(), stage.front, inside, tube, stage.px(3.6), LINEWORK))
    picture = over(back, colour, mask)
    strong = Image.fromarray(np.clip(colour - 40, 0, 255).astype(np.uint8)).reduce(2)
    return picture + 0.75 * _haze(strong, stage)


def _haze(light: Image.Image, stage: Stage) -> Array:
    wide = light.filter(ImageFilter.BoxBlur(2.5 * stage.scale)).filter(ImageFilter.BoxBlur(2 * stage.scale))
    return np.asarray(wide.resize((stage.size, stage.size), Image.Resampling.BILINEAR), np.float32)


def watercolour(stage: Stage) -> Array:
    """Wet washes with a darker rim on white paper, a little off their pencil line."""
    paper = np.array(_PAPER, np.float32)
    wash = shrink(paint(stage.canvas(*stage.sky), stage.back, lambda p: vivid(p.rgb, 1.2)))
    bloom = stage.noise(5)[..., None]
    fade = np.clip(0.8 + 0.14 * bloom, 0, 1)
    border = np.ones((stage.size, stage.size, 1), np.float32)
    edge = stage.near(3)
    border[:edge] = border[-edge:] = 0
    border[:, :edge] = border[:, -edge:] = 0
    fade = fade * soft(border, 1.5 * stage.scale)
    back = paper + (wash - paper) * fade
    colour, mask = lift(paint(stage.sheet(), stage.front, lambda p: mix(vivid(p.rgb, 1.1), _PAPER, 0.16)))
    colour, mask = shift(colour, -stage.near(2), stage.near(1)), shift(mask, -stage.near(2), stage.near(1))
    rim = mask * np.clip(1.7 * (1 - blur(mask, 2.5 * stage.scale)), 0, 1)
    body = colour * (1 - 0.42 * rim) + (paper * mask - colour) * np.clip(0.16 + 0.24 * bloom, 0, 0.5) * (1 - rim)
    picture = over(back, body, mask)
    _, pencil = lift(paint(stage.sheet(), stage.front, lambda p: (0, 0, 0, 0), lambda p: (90, 80, 84), stage.px(2.5),
                            LINEWORK))
    return picture * (1 - 0.4 * pencil)


def woodcut(stage: Stage) -> Array:
    """Bold black contours on cream, one ink, and carved strokes that thin out in the shade."""
    def tone(c: RGB) -> RGB:
        grey = luma(c)
        return mix(_BLACK, _CREAM, 0.22 + 0.78 * min(1.0, grey * 1.12)) if grey > 0.3 else mix(_BLACK, _CREAM, 0.14)
    def print_ink(part: Part) -> RGB:
        if part.own:
            return mix(part.base, _BLACK, 0.04)
        return _BLACK if luma(part.rgb) < 0.4 else mix(part.rgb, _CREAM, 0.7)
    top, bottom = stage.sky
    edge = _CREAM if luma(top) < 0.3 else mix(_BLACK, _CREAM, 0.5)
    canvas = paint(stage.canvas(tone(top), tone(bottom)), stage.back, lambda p: tone(p.rgb), lambda p: edge,
                   stage.px(2.8))
    back = shrink(canvas)
    colour, mask = lift(paint(stage.sheet(), stage.front, print_ink, lambda p: _BLACK, stage.px(4), LINEWORK))
    _, lines = lift(paint(stage.sheet(), stage.front, lambda p: (0, 0, 0, 0), lambda p: _BLACK, stage.px(5),
                          LINEWORK))
    light = relief(mask, stage.near(6))[..., 0]
    carve = np.clip((stage.strokes(11, 0.5, 0.87, 1.2) - 0.55 + 0.9 * light) * 1.6, 0, 1)[..., None]
    carve = carve * 0.48 * mask * (1 - lines)
    cream = np.array(_CREAM, np.float32)
    halo = grow(mask, 2.2 * stage.scale)
    return over(over(back, cream * halo, halo), colour + (cream * mask - colour) * carve, mask)
