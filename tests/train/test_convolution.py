"""Frozen convolutions over few places as products: torch's numbers both ways, and only where they may be."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lora.train.convolution import _ByProducts, convolve
from diffusion_lora.train.products import by_products


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def layer_of(kernel: int, stride: int, last: bool = True) -> nn.Conv2d:
    torch.manual_seed(1)
    layer = nn.Conv2d(8, 12, kernel, stride, padding=kernel // 2).bfloat16().requires_grad_(False)
    return layer.to(memory_format=torch.channels_last) if last else layer  # type: ignore[call-overload, no-any-return]


def run(layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().clone().requires_grad_()
    y = layer(x)
    y.backward(drawn(*y.shape, seed=9).to(y.dtype))
    assert x.grad is not None
    return y, x.grad


SHAPES = [(3, 1, 6), (3, 2, 6), (3, 2, 7), (5, 2, 9), (1, 1, 6), (1, 2, 6)]


@pytest.mark.parametrize(("kernel", "stride", "side"), SHAPES)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_products_are_the_convolution(kernel: int, stride: int, side: int, rows: int, channels_last: bool) -> None:
    """Wrong: windows in another order than the weight's columns, a border lost, strides mixed up on the way back."""
    layer, x = layer_of(kernel, stride), drawn(rows, 8, side, side)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    with by_products():
        ours = run(layer, x)
    exact = run(layer.float(), x.float())
    for one, right in zip(ours, exact, strict=True):
        assert one.dtype == torch.bfloat16
        assert one.shape == right.shape
        assert (one.float() - right).norm() / right.norm() < 0.01


def test_under_autocast_it_stays_in_half_precision() -> None:
    layer, x = layer_of(3, 1), drawn(1, 8, 6, 6)
    with by_products(), torch.autocast("cpu", torch.bfloat16):
        y, grad = run(layer, x)
    assert (y.dtype, grad.dtype) == (torch.bfloat16, torch.bfloat16)


@pytest.mark.parametrize(
    ("side", "last", "learns", "taken"),
    [(16, True, False, True), (17, True, False, False), (6, False, False, False), (6, True, True, False)],
)
def test_many_places_other_layouts_and_weights_that_learn_are_torchs(
    side: int, last: bool, learns: bool, taken: bool
) -> None:
    """Wrong: a weight that learns would get no gradient; a weight laid out otherwise would be copied at each call."""
    layer, x = layer_of(3, 1, last).requires_grad_(learns), drawn(1, 8, side, side).requires_grad_()
    y = convolve(x, layer.weight, layer.bias, layer.stride, layer.padding)
    assert (type(y.grad_fn).__name__ == f"{_ByProducts.__name__}Backward") == taken
    if not taken:
        assert torch.equal(y, F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding))
