"""Half-precision products by way of fp32: the numbers of half precision, a quick way to them, and no more memory."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lora.train.widened import widened

ROUNDED = {"rtol": 2**-7, "atol": 2**-7}  # bf16 keeps 8 bits


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def both_ways(compute: Callable[..., Tensor], *inputs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """(result, gradients of the inputs) inside, and what fp32 makes of the very same numbers."""
    found = []
    for inside in (True, False):
        own = [(one if inside else one.float()).detach().clone().requires_grad_() for one in inputs]
        if inside:
            with widened(), torch.autocast("cpu", torch.bfloat16):
                y = compute(*own)
            assert y.dtype == torch.bfloat16
        else:
            y = compute(*own)
        y.backward(drawn(*y.shape, seed=9).to(y.dtype))
        found.append([y.detach().float(), *(one.grad.float() for one in own if one.grad is not None)])
    return found[0], found[1]


def close(ours: list[Tensor], exact: list[Tensor]) -> None:
    assert len(ours) == len(exact)
    for one, other in zip(ours, exact, strict=True):
        scale = other.abs().max()
        torch.testing.assert_close(one / scale, other / scale, **ROUNDED)


@pytest.mark.parametrize(
    ("kernel", "stride", "side"), [(3, 1, 6), (3, 2, 6), (3, 1, 16), (3, 2, 32), (1, 1, 6), (1, 2, 6), (5, 2, 9)]
)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("at_once", [10**6, 300])
def test_convolutions_by_either_way_are_fp32s(
    kernel: int, stride: int, side: int, last: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusion_lora.train.widened._AT_ONCE", at_once)
    layer = nn.Conv2d(8, 12, kernel, stride, padding=kernel // 2).bfloat16().requires_grad_(False)
    if last:
        layer = layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weight, bias = layer.weight.float(), layer.bias.float()  # type: ignore[union-attr]

    def compute(x: Tensor) -> Tensor:
        if x.dtype == torch.bfloat16:
            return layer(x)
        return F.conv2d(x, weight, bias, stride, kernel // 2)

    ours, exact = both_ways(compute, drawn(2, 8, side, side))
    close(ours, exact)


@pytest.mark.parametrize("at_once", [10**6, 100])
def test_linear_layers_and_what_learns_beside_them_are_fp32s(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter's matrices are fp32 and get fp32 gradients."""
    monkeypatch.setattr("diffusion_lora.train.widened._AT_ONCE", at_once)
    base = nn.Linear(32, 24).bfloat16().requires_grad_(False)
    down, up = drawn(4, 32, seed=1).float() / 6, drawn(24, 4, seed=2).float()

    def compute(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        y = base(x) if x.dtype == torch.bfloat16 else F.linear(x, base.weight.float(), base.bias.float())
        return y + F.linear(F.linear(x, down), up)

    x = drawn(2, 5, 32)
    own = [x.clone().requires_grad_(), down.clone().requires_grad_(), up.clone().requires_grad_()]
    with widened(), torch.autocast("cpu", torch.bfloat16):
        y = compute(*own)
    exact_own = [one.detach().float().requires_grad_() for one in own]
    exact = compute(*exact_own)
    for result in (y, exact):
        result.backward(drawn(*y.shape, seed=9).to(result.dtype))
    assert own[1].grad is not None
    assert own[1].grad.dtype == torch.float32
    close(
        [y.detach().float(), *(one.grad.float() for one in own if one.grad is not None)],
        [exact.detach(), *(one.grad for one in exact_own if one.grad is not None)],
    )


@pytest.mark.parametrize("words", [7, 40])
def test_attention_is_fp32s(words: int) -> None:
    def compute(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)

    close(*both_ways(compute, drawn(2, 3, 40, 8), drawn(2, 3, words, 8, seed=1), drawn(2, 3, words, 8, seed=2)))


def test_attention_under_a_mask_is_fp32s() -> None:
    mask = torch.zeros(40, 40).masked_fill(torch.ones(40, 40).triu(1).bool(), float("-inf"))

    def compute(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype))

    close(*both_ways(compute, *(drawn(1, 2, 40, 8, seed=seed) for seed in range(3))))


def test_nothing_wide_is_kept_for_the_backward_pass() -> None:
    """Else widened weights would fill memory: that is what half precision is chosen for."""
    layers = [nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Linear(8, 8)]
    conv, pointwise, linear = (layer.bfloat16().requires_grad_(False) for layer in layers)
    kept: list[torch.dtype] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.dtype)
        return tensor

    x = drawn(1, 8, 16, 16).requires_grad_()
    down = torch.zeros(2, 8, requires_grad=True)
    with (
        widened(),
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        tokens = pointwise(conv(x)).flatten(2).transpose(1, 2)
        F.scaled_dot_product_attention(linear(tokens), tokens, tokens).sum() + F.linear(tokens, down).sum()
    assert set(kept) == {torch.bfloat16}


def test_outside_and_in_fp32_nothing_changes() -> None:
    layer = nn.Linear(8, 8)
    x = drawn(1, 8).float()
    expected = layer(x)
    with widened():
        assert torch.equal(layer(x), expected)
