"""Vector shapes: small closed outlines with a colour role, and the helpers that build them.

Every drawable thing is a list of `Shape`, later ones on top. Coordinates have y pointing down; the unit is
free, because `fitted` scales a finished drawing to a box of size one around the origin.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Point = tuple[float, float]
Points = list[Point]
Layer = Literal["part", "tone", "mark"]
"""part: a body with a contour; tone: shading inside a part; mark: an eye, a mouth, always filled."""
Wobble = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Shape:
    """A filled outline; `hole` is a second outline cut out of it."""

    points: Points
    role: str
    layer: Layer = "part"
    hole: Points | None = None


def wobble(rng: random.Random, amount: float = 0.08) -> Wobble:
    """A function that varies a proportion by at most `amount`, a little differently at each call."""
    return lambda value: value * (1.0 + rng.uniform(-amount, amount))


def ell(cx: float, cy: float, rx: float, ry: float, role: str = "main", layer: Layer = "part",
        turn: float = 0.0) -> Shape:
    """An ellipse, turned by `turn` degrees."""
    count = 28 if max(rx, ry) > 0.12 else 14
    cos_t, sin_t = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    points = []
    for i in range(count):
        x, y = rx * math.cos(math.tau * i / count), ry * math.sin(math.tau * i / count)
        points.append((cx + x * cos_t - y * sin_t, cy + x * sin_t + y * cos_t))
    return Shape(points, role, layer)


def ring(cx: float, cy: float, rx: float, ry: float, thick: float, role: str = "main") -> Shape:
    """An ellipse with a round hole."""
    return replace(ell(cx, cy, rx, ry, role), hole=ell(cx, cy, rx - thick, ry - thick).points)


def poly(points: Sequence[Point], role: str = "main", r: float = 0.04, layer: Layer = "part") -> Shape:
    """A polygon whose corners are rounded with radius about `r`."""
    out: Points = []
    count = len(points)
    for i, (x, y) in enumerate(points):
        ends = []
        for nx, ny in (points[i - 1], points[(i + 1) % count]):
            length = math.hypot(nx - x, ny - y) or 1e-6
            t = min(r / length, 0.48)
            ends.append((x + (nx - x) * t, y + (ny - y) * t))
        (ax, ay), (bx, by) = ends
        for k in range(5):
            t = k / 4
            u, v, w = (1 - t) ** 2, 2 * t * (1 - t), t * t
            out.append((u * ax + v * x + w * bx, u * ay + v * y + w * by))
    return Shape(out, role, layer)


def box(x0: float, y0: float, x1: float, y1: float, role: str = "main", r: float = 0.04,
        layer: Layer = "part") -> Shape:
    """An upright rectangle with rounded corners."""
    return poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], role, r, layer)


def blob(points: Sequence[Point], role: str = "main", layer: Layer = "part", steps: int = 5) -> Shape:
    """A smooth closed curve through the given points."""
    out: Points = []
    count = len(points)
    for i in range(count):
        p0, p1, p2, p3 = (points[(i + k) % count] for k in (-1, 0, 1, 2))
        for k in range(steps):
            t = k / steps
            a, b, c, d = (-t + 2 * t * t - t**3, 2 - 5 * t * t + 3 * t**3, t + 4 * t * t - 3 * t**3, t**3 - t * t)
            out.append(((a * p0[0] + b * p1[0] + c * p2[0] + d * p3[0]) / 2,
                        (a * p0[1] + b * p1[1] + c * p2[1] + d * p3[1]) / 2))
    return Shape(out, role, layer)


def rod(points: Sequence[Point], width: float, role: str = "main", layer: Layer = "part",
        tip: float | None = None) -> Shape:
    """A thick line with round ends through the points, going from `width` to `tip` wide."""
    path = np.asarray(_curve(points), dtype=np.float64)
    slope = np.gradient(path, axis=0)
    slope /= np.linalg.norm(slope, axis=1, keepdims=True) + 1e-9
    half = np.linspace(width, width if tip is None else tip, len(path))[:, None] / 2
    side = np.stack([-slope[:, 1], slope[:, 0]], axis=1) * half
    caps = []
    for end, sign in ((-1, 1.0), (0, -1.0)):
        turn = np.linspace(math.pi / 2, -math.pi / 2, 7)[1:-1, None]
        forward, left = slope[end] * sign * half[end], side[end] * sign
        caps.append(path[end] + np.cos(turn) * forward + np.sin(turn) * left)
    outline = np.concatenate([path + side, caps[0], (path - side)[::-1], caps[1]])
    return Shape([(float(x), float(y)) for x, y in outline], role, layer)


def _curve(points: Sequence[Point]) -> Points:
    """An open smooth curve through the points."""
    if len(points) == 2:
        return list(points)
    first, last = points[0], points[-1]
    padded = [first, *points, last]
    out: Points = []
    for i in range(1, len(padded) - 2):
        p0, p1, p2, p3 = padded[i - 1:i + 3]
        for k in range(5):
            t = k / 5
            a, b, c, d = (-t + 2 * t * t - t**3, 2 - 5 * t * t + 3 * t**3, t + 4 * t * t - 3 * t**3, t**3 - t * t)
            out.append(((a * p0[0] + b * p1[0] + c * p2[0] + d * p3[0]) / 2,
                        (a * p0[1] + b * p1[1] + c * p2[1] + d * p3[1]) / 2))
    return [*out, last]


def lobed(cx: float, cy: float, rx: float, ry: float, lobes: int, depth: float, role: str = "main",
          layer: Layer = "part", turn: float = 0.0) -> Shape:
    """A round shape with soft bumps, such as a tree's crown."""
    points = []
    for i in range(lobes * 8):
        angle = math.tau * i / (lobes * 8)
        reach = 1.0 - depth + depth * abs(math.cos(lobes * (angle - turn) / 2))
        points.append((cx + rx * reach * math.cos(angle), cy + ry * reach * math.sin(angle)))
    return Shape(points, role, layer)


def eyes(cx: float, cy: float, apart: float, r: float = 0.04) -> list[Shape]:
    """Two dark round eyes."""
    return [ell(cx + side * apart / 2, cy, r, r * 1.15, "ink", "mark") for side in (-1, 1)]


def smile(cx: float, cy: float, width: float, thick: float = 0.032) -> Shape:
    """A small smiling mouth."""
    return rod([(cx - width / 2, cy), (cx, cy + width * 0.3), (cx + width / 2, cy)], thick, "ink", "mark")


def fitted(shapes: Sequence[Shape]) -> list[Shape]:
    """The drawing centred on the origin, its longer side one unit long."""
    xs = [x for shape in shapes for x, _ in shape.points]
    ys = [y for shape in shapes for _, y in shape.points]
    cx, cy = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
    scale = 1.0 / max(max(xs) - min(xs), max(ys) - min(ys))
    return [moved(shape, scale, scale, -cx * scale, -cy * scale) for shape in shapes]


def moved(shape: Shape, sx: float, sy: float, dx: float, dy: float) -> Shape:
    """The shape scaled, then shifted."""
    def go(points: Points) -> Points:
        return [(x * sx + dx, y * sy + dy) for x, y in points]
    return Shape(go(shape.points), shape.role, shape.layer, go(shape.hole) if shape.hole else None)


def turned(shapes: Sequence[Shape], degrees: float) -> list[Shape]:
    """The whole drawing turned around the origin."""
    cos_t, sin_t = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    def go(points: Points) -> Points:
        return [(x * cos_t - y * sin_t, x * sin_t + y * cos_t) for x, y in points]
    return [Shape(go(s.points), s.role, s.layer, go(s.hole) if s.hole else None) for s in shapes]
