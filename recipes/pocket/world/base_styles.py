"""The eight styles that the model is trained on."""

from __future__ import annotations

import numpy as np

from recipes.pocket.world.palette import RGB, luma, mix, vivid
from recipes.pocket.world.stage import (
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

_INK: RGB = (58, 50, 66)
_LEAD: RGB = (58, 54, 70)
_CREAM: RGB = (252, 246, 232)


def plain(stage: Stage) -> Array:
    """The house style: soft cushions of colour with a gentle shadow."""
    back = shrink(paint(stage.canvas(*stage.sky), stage.back, plain_rgb))
    colour, mask = lift(paint(stage.sheet(), stage.front, plain_rgb))
    shadow = shift(soft(mask, 3 * stage.scale), stage.near(2), stage.near(4))
    back *= 1 - 0.3 * shadow
    rim = np.clip(1.6 * mask * (1 - blur(mask, 1.5 * stage.scale)), 0, 1)
    light = 1 + 0.15 * relief(mask, stage.near(5)) - 0.36 * rim
    return over(back, colour * light, mask)


def ink(stage: Stage) -> Array:
    """Dark contours over flat colour."""
    top, bottom = (mix(c, _CREAM, 0.3) if luma(c) > 0.4 else c for c in stage.sky)
    line = mix(bottom, _INK, 0.42) if luma(bottom) > 0.4 else mix(bottom, _CREAM, 0.3)
    canvas = paint(stage.canvas(top, bottom), stage.back, lambda p: mix(p.rgb, _CREAM, 0.2) if luma(p.rgb) > 0.4
                   else p.rgb, lambda p: line, stage.px(2.5))
    back = shrink(canvas)
    colour, mask = lift(paint(stage.sheet(), stage.front, plain_rgb, lambda p: _INK, stage.px(3.4)))
    if luma(bottom) < 0.4:
        halo = grow(mask, 2.2 * stage.scale)
        back = over(back, np.array(_CREAM, np.float32) * halo, halo)
    return over(back, colour, mask)


def pastel(stage: Stage) -> Array:
    """Pale colours with soft edges."""
    def pale(part: Part) -> RGB:
        return mix(part.rgb, _CREAM, 0.3)
    fade = 0.42 if luma(stage.sky[1]) > 0.4 else 0.26
    top, bottom = (mix(c, _CREAM, fade) for c in stage.sky)
    back = shrink(paint(stage.canvas(top, bottom), stage.back, lambda p: mix(p.rgb, _CREAM, fade)))
    colour, mask = lift(paint(stage.sheet(), stage.front, pale))
    halo = soft(mask, 4 * stage.scale)
    back += (255 - back) * 0.5 * halo
    melt = blur(mask, 1.2 * stage.scale) * (mask > 0.02)
    fill = colour / np.maximum(mask, 1e-3)
    return over(back, fill * (0.78 + 0.24 * soft(mask, 5 * stage.scale)) * melt, melt)


def poster(stage: Stage) -> Array:
    """Flat strong colour with a hard dropped shadow."""
    def strong(part: Part) -> RGB:
        return vivid(part.rgb, 1.3)
    top, bottom = stage.sky
    flat = vivid(mix(top, bottom, 0.3), 2.2)
    canvas = paint(stage.canvas(flat), stage.back, lambda p: vivid(p.rgb, 2.0))
    shade = mix(vivid(bottom, 1.6), (20, 16, 50), 0.62 if luma(bottom) > 0.4 else 0.85)
    step = stage.px(6)
    for part in stage.front:
        if part.layer == "part":
            moved = Part([(x + step, y + step) for x, y in part.xy],
                         [(x + step, y + step) for x, y in part.hole] if part.hole else None, part.role, part.layer,
                         shade, shade)
            paint(canvas, (moved,), plain_rgb)
    return shrink(paint(canvas, stage.front, strong))


def glass(stage: Stage) -> Array:
    """Stained glass: luminous panes between thick leads."""
    top, bottom = stage.sky
    side = stage.size * 2
    canvas = stage.canvas(mix(vivid(top, 1.8), (255, 255, 255), 0.1), vivid(bottom, 1.8))
    centre = (side * 0.5, side * 0.56)
    rays = np.random.default_rng(stage.seed).uniform(-0.16, 0.16, 7) + np.arange(7) * (2 * np.pi / 7)
    ends = [(centre[0] + side * np.cos(a), centre[1] + side * np.sin(a)) for a in rays]
    for i, end in enumerate(ends):
        tint = vivid(mix(top, bottom, (i % 3) / 2), 1.9)
        tint = mix(tint, (255, 255, 255), 0.22) if i % 2 else mix(tint, (40, 40, 90), 0.1)
        pane = Part([centre, end, ends[(i + 1) % 7]], None, "pane", "part", tint, tint)
        paint(canvas, (pane,), plain_rgb, lambda p: mix(p.rgb, _LEAD, 0.5), stage.px(2.5))
    paint(canvas, stage.back, lambda p: vivid(p.rgb, 1.7), lambda p: mix(p.rgb, _LEAD, 0.72), stage.px(3))
    paint(canvas, stage.front, lambda p: vivid(mix(p.rgb, (255, 255, 255), 0.06), 1.25), lambda p: _LEAD,
          stage.px(4))
    picture = shrink(canvas)
    open_ = np.clip((picture.max(axis=2, keepdims=True) - 60) / 60, 0, 1)
    glow = soft(open_, 3 * stage.scale) * open_
    return picture * (0.82 + 0.16 * glow) + 34 * np.clip(glow - 0.45, 0, 1)


def cutout(stage: Stage) -> Array:
    """Layers of cut paper, each with a pale edge, over a soft shadow."""
    def sheet_tone(part: Part) -> RGB:
        return vivid(mix(part.rgb, _CREAM, 0.06), 0.94)
    def edge(part: Part) -> RGB:
        return mix(part.rgb, (255, 255, 255), 0.62)
    top, bottom = stage.sky
    back = np.broadcast_to(np.array(mix(top, bottom, 0.5), np.float32), (stage.size, stage.size, 3)).copy()
    if stage.back:
        colour, mask = lift(paint(stage.sheet(), stage.back, sheet_tone, lambda p: mix(p.rgb, (255, 255, 255), 0.35),
                                  stage.px(2.5)))
        back *= 1 - 0.3 * shift(soft(mask, 2 * stage.scale), stage.near(2), stage.near(3))
        back = over(back, colour, mask)
    colour, mask = lift(paint(stage.sheet(), stage.front, sheet_tone, edge, stage.px(3)))
    back *= 1 - 0.55 * shift(soft(mask, 2 * stage.scale), stage.near(4), stage.near(5))
    return over(back, colour, mask)


def crayon(stage: Stage) -> Array:
    """Waxy wide contours in the thing's own darker colour, pale fill in broad strokes."""
    def pale(part: Part) -> RGB:
        return mix(part.rgb, _CREAM, 0.36)
    def wax(part: Part) -> RGB:
        return mix(part.hue, (30, 16, 30), 0.34)
    fade = 0.45 if luma(stage.sky[1]) > 0.4 else 0.24
    top, bottom = (mix(c, _CREAM, fade) for c in stage.sky)
    canvas = paint(stage.canvas(top, bottom), stage.back, lambda p: mix(p.rgb, _CREAM, fade),
                   lambda p: mix(p.rgb, (90, 80, 90), 0.28), stage.px(3))
    back = shrink(canvas)
    colour, mask = lift(paint(stage.sheet(), stage.front, pale, wax, stage.px(4.5)))
    wave = stage.strokes(12, 0.7, 0.7)[..., None]
    back += wave * 5
    grain = 1 + 0.1 * wave * blur(mask, 2 * stage.scale)
    return over(back, colour * grain, mask)


def shadow(stage: Stage) -> Array:
    """Shadow theatre: dark figures with a coloured rim before a lit screen."""
    def dusk(part: Part) -> RGB:
        return mix(part.rgb, (18, 12, 30), 0.66 if part.layer != "mark" else 0.3)
    def rim(part: Part) -> RGB:
        return mix(vivid(part.hue, 1.15), (255, 255, 255), 0.08)
    warm = (255, 220, 150)
    top, bottom = (mix(vivid(c, 1.5), warm, 0.3) for c in stage.sky)
    back = shrink(paint(stage.canvas(top, bottom), stage.back, lambda p: mix(p.rgb, (70, 46, 60), 0.42)))
    y, x = np.mgrid[0:stage.size, 0:stage.size].astype(np.float32) / stage.size - 0.5
    back *= (1.05 - 1.25 * (x * x + y * y))[..., None]
    colour, mask = lift(paint(stage.sheet(), stage.front, dusk, rim, stage.px(3.2)))
    halo = soft(mask, 4 * stage.scale)
    back = back + (np.array(warm, np.float32) - back) * 0.35 * halo
    return over(back, colour, mask)


