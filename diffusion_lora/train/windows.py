"""A convolution as a product of matrices: what its kernel sees of a picture, a row a place, and the way back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def size_of(shape: Sequence[int], weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> list[int]:
    """[height, width] of what an undilated convolution makes of pictures [B, C, height, width]."""
    return [
        (side + 2 * pad - kernel) // step + 1
        for side, kernel, step, pad in zip(shape[2:], weight.shape[2:], stride, padding, strict=True)
    ]


def as_matrix(weight: Tensor) -> Tensor:
    """[out, height x width x in]: a view where channels lie last."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def gathered(x_BCHW: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """The windows [places, height x width x in] that fit the columns of `as_matrix`."""
    above, left = padding
    padded_BHWC = F.pad(x_BCHW.permute(0, 2, 3, 1), (0, 0, left, left, above, above))
    windows = _windows(padded_BHWC, weight, stride, size_of(x_BCHW.shape, weight, stride, padding))
    return windows.reshape(-1, weight[0].numel())


def as_picture(y: Tensor, rows: int, size: Sequence[int]) -> Tensor:
    """[places, channels] as [rows, channels, height, width], channels last in memory."""
    return y.view(rows, *size, -1).permute(0, 3, 1, 2)


def as_places(y_BCHW: Tensor) -> Tensor:
    """[places, channels]: `as_picture` the other way."""
    return y_BCHW.permute(0, 2, 3, 1).reshape(-1, y_BCHW.shape[1])


def scattered(
    parts: Tensor, shape: Sequence[int], weight: Tensor, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Windows [places, height x width x in] added up in fp32 to the picture of this shape that they are of."""
    rows, channels, height, width = shape
    above, left = padding
    sums_BHWC = parts.new_zeros((rows, height + 2 * above, width + 2 * left, channels), dtype=torch.float32)
    size = size_of(shape, weight, stride, padding)
    into = _windows(sums_BHWC, weight, stride, size)
    given = parts.view(rows, *size, *weight.shape[2:], channels)
    for y in range(weight.shape[2]):
        for x in range(weight.shape[3]):
            into[:, :, :, y, x] += given[:, :, :, y, x]
    return sums_BHWC[:, above : above + height, left : left + width].permute(0, 3, 1, 2)


def _windows(x_BHWC: Tensor, weight: Tensor, stride: Sequence[int], size: Sequence[int]) -> Tensor:
    """The windows that a kernel sees, [B, *size, height, width, C], as a view."""
    rows, down, right, channel = x_BHWC.stride()
    shape = (len(x_BHWC), *size, *weight.shape[2:], x_BHWC.shape[-1])
    return x_BHWC.as_strided(shape, (rows, down * stride[0], right * stride[1], down, right, channel))
