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
    """Pictures in [-1, 1] with every damage drawn for each picture (softness for groups of pictures)."""
    count = len(x_BCHW)
    x_BCHW = _moved(x_BCHW, rng)
    for _ in range(3):
        chosen = torch.from_numpy(rng.random(count) < 0.2)
        if chosen.any():
            soft = _blurred if rng.random() < 0.5 else _smaller
            x_BCHW[chosen] = soft(x_BCHW[chosen], rng)
    for row in np.flatnonzero(rng.random(count) < 0.08):
        x_BCHW[row] = _as_jpeg(x_BCHW[row], int(rng.integers(35, 90)))
    x_BCHW = _other_light(x_BCHW, rng)
    amount = torch.from_numpy(np.where(rng.random(count) < 0.35, rng.uniform(0, 0.12, count), 0)).float()
    noise = torch.from_numpy(rng.standard_normal(x_BCHW.shape, np.float32))
    x_BCHW = x_BCHW + amount.view(-1, 1, 1, 1) * noise
    return x_BCHW.clamp(-1, 1)


def _moved(x_BCHW: Tensor, rng: np.random.Generator) -> Tensor:
    """Half the pictures mirrored; half turned by up to 4 degrees, scaled by up to a tenth, shifted by up to 5 %."""
    count = len(x_BCHW)
    x_BCHW = torch.where(torch.from_numpy(rng.random(count) < 0.5).view(-1, 1, 1, 1), x_BCHW.flip(-1), x_BCHW)
    chosen = torch.from_numpy(rng.random(count) < 0.5)
    if not chosen.any():
        return x_BCHW
    moving = int(chosen.sum())
    turn, scale = rng.uniform(-0.07, 0.07, moving), rng.uniform(0.9, 1.1, moving)
    rows = np.zeros((moving, 2, 3), np.float32)
    rows[:, 0, 0] = rows[:, 1, 1] = np.cos(turn) * scale
    rows[:, 0, 1], rows[:, 1, 0] = -np.sin(turn) * scale, np.sin(turn) * scale
    rows[:, :, 2] = rng.uniform(-0.1, 0.1, (moving, 2))
    shape = [moving, *x_BCHW.shape[1:]]
    places = F.affine_grid(torch.from_numpy(rows), shape, align_corners=False)
    x_BCHW[chosen] = F.grid_sample(x_BCHW[chosen], places, padding_mode="border", align_corners=False)
    return x_BCHW


def _blurred(x_BCHW: Tensor, rng: np.random.Generator, sigma_px: float | None = None) -> Tensor:
    """A Gaussian blur, rows then columns."""
    sigma_px = rng.uniform(0.4, 1.5) if sigma_px is None else sigma_px
    reach = max(1, round(2.5 * sigma_px))
    taps = torch.exp(-(torch.arange(-reach, reach + 1).float() ** 2) / (2 * sigma_px**2))
    taps = (taps / taps.sum()).expand(3, 1, -1)
    padded = F.pad(x_BCHW, (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(padded, taps[:, :, None, :], groups=3), taps[:, :, :, None], groups=3)


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
    shape = (len(x_BCHW), 1, 1, 1)

    def around(middle: float, reach: float, channels: int = 1) -> Tensor:
        drawn = rng.uniform(middle - reach, middle + reach, (shape[0], channels, 1, 1))
        return torch.from_numpy(drawn).float()

    gray = x_BCHW.mean(1, keepdim=True)
    x_BCHW = gray + (x_BCHW - gray) * around(1, 0.12)
    return x_BCHW * around(1, 0.08) + around(0, 0.05) + around(0, 0.02, 3)


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
                out[row] = _blurred(x_BCHW[row : row + 1], rng, rng.uniform(10, 20))[0]
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
