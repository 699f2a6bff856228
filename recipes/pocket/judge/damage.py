"""What happens to pictures before the judge sees them in training, so that it looks at content and not at pixels.

`damaged` keeps every answer true: softer, smaller, noisier, slightly other light, never another named colour.
`nothing` makes pictures of which the true answer is "none".
"""

from __future__ import annotations

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from recipes.pocket.judge.drawings import IGNORE, LABELS, Answers


def damaged(x_BCHW: Tensor, rng: np.random.Generator) -> Tensor:
    """The pictures, in [-1, 1], each with its own share of damage. May work in place."""
    count = len(x_BCHW)
    x_BCHW = _other_light(_moved(x_BCHW, rng), rng)
    for soften, share in ((_blurred, 0.2), (_blurred, 0.15), (_smaller, 0.15), (_smaller, 0.15)):
        chosen = torch.from_numpy(np.flatnonzero(rng.random(count) < share))
        if len(chosen):
            x_BCHW[chosen] = soften(x_BCHW[chosen], rng)
    for row in np.flatnonzero(rng.random(count) < 0.06):
        x_BCHW[row] = _as_jpeg(x_BCHW[row], int(rng.integers(35, 90)))
    for row in np.flatnonzero(rng.random(count) < 0.3):
        grain = torch.from_numpy(rng.standard_normal(x_BCHW.shape[1:], np.float32))
        x_BCHW[row] += grain * rng.uniform(0, 0.12)
    return x_BCHW.clamp_(-1, 1)


def _moved(x_BCHW: Tensor, rng: np.random.Generator) -> Tensor:
    """Half the pictures mirrored; a third turned by up to 4 degrees, scaled by up to a tenth, shifted by up to 5 %."""
    count = len(x_BCHW)
    mirrored = torch.from_numpy(np.flatnonzero(rng.random(count) < 0.5))
    x_BCHW[mirrored] = x_BCHW[mirrored].flip(-1)
    chosen = torch.from_numpy(np.flatnonzero(rng.random(count) < 0.35))
    moving = len(chosen)
    if not moving:
        return x_BCHW
    turn, scale = rng.uniform(-0.07, 0.07, moving), rng.uniform(0.9, 1.1, moving)
    rows = np.zeros((moving, 2, 3), np.float32)
    rows[:, 0, 0] = rows[:, 1, 1] = np.cos(turn) * scale
    rows[:, 0, 1], rows[:, 1, 0] = -np.sin(turn) * scale, np.sin(turn) * scale
    rows[:, :, 2] = rng.uniform(-0.1, 0.1, (moving, 2))
    shape = [moving, *x_BCHW.shape[1:]]
    places = F.affine_grid(torch.from_numpy(rows), shape, align_corners=False)
    x_BCHW[chosen] = F.grid_sample(x_BCHW[chosen], places, padding_mode="border", align_corners=False)
    return x_BCHW


def _blurred(x_BCHW: Tensor, rng: np.random.Generator) -> Tensor:
    """A box of three pixels; `damaged` may lay it on twice."""
    return F.avg_pool2d(x_BCHW, 3, 1, 1, count_include_pad=False)


def _smaller(x_BCHW: Tensor, rng: np.random.Generator) -> Tensor:
    """Down to as little as half the size, and up again."""
    height, width = x_BCHW.shape[-2:]
    factor = rng.uniform(1.2, 2.0)
    size = (round(height / factor), round(width / factor))
    low = F.interpolate(x_BCHW, size, mode="bilinear", antialias=True)
    return F.interpolate(low, (height, width), mode="bilinear")


def _as_jpeg(x_CHW: Tensor, quality: int) -> Tensor:
    store = io.BytesIO()
    Image.fromarray(((x_CHW + 1) * 127.5).clamp(0, 255).byte().permute(1, 2, 0).numpy()).save(
        store, "JPEG", quality=quality
    )
    return torch.from_numpy(np.array(Image.open(store))).permute(2, 0, 1).float() / 127.5 - 1


def _other_light(x_BCHW: Tensor, rng: np.random.Generator) -> Tensor:
    """Brightness, contrast, saturation and tint, all too little to turn orange into yellow."""
    count = len(x_BCHW)
    saturation, contrast = rng.uniform(0.88, 1.12, (count, 1, 1)), rng.uniform(0.92, 1.08, (count, 1, 1))
    # colour' = contrast * (gray + saturation * (colour - gray)) + offset, as one 3 x 3 matrix a picture
    matrix = contrast * (saturation * np.eye(3) + (1 - saturation) / 3)
    offset = rng.uniform(-0.05, 0.05, (count, 1, 1)) + rng.uniform(-0.02, 0.02, (count, 3, 1))
    moved = torch.baddbmm(torch.from_numpy(offset).float(), torch.from_numpy(matrix).float(), x_BCHW.flatten(2))
    return moved.view_as(x_BCHW)


def nothing(x_BCHW: Tensor, rng: np.random.Generator) -> tuple[Tensor, Answers]:
    """Pictures of nothing, made from noise or by destroying the given ones, and what is true of them."""
    out = x_BCHW.clone()
    count, channels, height, width = out.shape
    found = none_answers(count)
    for row in range(count):
        match int(rng.integers(6)):
            case 0:  # white noise, of any strength around any colour
                spread = rng.uniform(0.2, 1.2)
                grain = rng.standard_normal((channels, height, width), np.float32) * spread
                out[row] = torch.from_numpy(grain + rng.uniform(-0.6, 0.6, (3, 1, 1)).astype(np.float32))
            case 1:  # coloured blotches of any size
                cells = int(2 ** rng.uniform(1, 5.5))
                coarse = torch.from_numpy(rng.standard_normal((1, 3, cells, cells), np.float32) * 0.7)
                out[row] = F.interpolate(coarse, (height, width), mode="bicubic")[0]
            case 2:  # one colour, with hardly any grain: also the bare ground of many a scene
                flat = torch.from_numpy(rng.uniform(-1, 1, (3, 1, 1)).astype(np.float32))
                out[row] = flat + 0.02 * torch.from_numpy(rng.standard_normal((3, height, width), np.float32))
                found.backgrounds[row] = found.styles[row] = IGNORE
            case 3:  # a drawing so blurred that only its tones are left
                few = F.adaptive_avg_pool2d(x_BCHW[row : row + 1], int(rng.integers(2, 6)))
                out[row] = F.interpolate(few, (height, width), mode="bicubic")[0]
                found.backgrounds[row] = IGNORE
            case 4:  # a drawing's patches in disorder: its texture without its content
                out[row] = _disordered(x_BCHW[row], 16, rng)
                found.backgrounds[row] = found.styles[row] = IGNORE
            case _:  # five drawings on top of each other
                pile = rng.integers(0, count, 5)
                shifts = rng.integers(0, min(height, width), (5, 2))
                rolled = [x_BCHW[p].roll(tuple(s), (-2, -1)) for p, s in zip(pile, shifts.tolist(), strict=True)]
                out[row] = torch.stack(rolled).mean(0)
                found.backgrounds[row] = IGNORE
    return out.clamp(-1, 1), found


def _disordered(x_CHW: Tensor, side: int, rng: np.random.Generator) -> Tensor:
    height, width = x_CHW.shape[-2:]
    patches = F.unfold(x_CHW[None], side, stride=side)[0]
    order = torch.from_numpy(rng.permutation(patches.shape[1]))
    return F.fold(patches[:, order][None], (height, width), side, stride=side)[0]


def none_answers(count: int) -> Answers:
    """What is true of pictures of nothing: no object, no character, no style, no background, no colour anywhere."""
    return Answers(
        objects=np.zeros((count, len(LABELS.objects)), np.int8),
        colours=np.full((count, len(LABELS.objects)), len(LABELS.colours), np.int8),
        backgrounds=np.full(count, len(LABELS.backgrounds), np.int8),
        styles=np.full(count, len(LABELS.styles), np.int8),
        characters=np.full(count, len(LABELS.characters), np.int8),
    )
