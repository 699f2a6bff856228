"""The layers against PEFT, against the plain formula, and in the conditions of training."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffusion_lora.lora.gate import Gate
from diffusion_lora.lora.layer import LoraConv2d, LoraLayer, LoraLinear, Stack, lora_reference, wrap

BASES = {
    "linear": (lambda: nn.Linear(12, 20), (3, 7, 12)),
    "linear, one vector a row": (lambda: nn.Linear(12, 20, bias=False), (3, 12)),
    "linear, four axes": (lambda: nn.Linear(12, 20), (3, 2, 5, 12)),
    "conv 3x3": (lambda: nn.Conv2d(6, 10, 3, padding=1), (3, 6, 8, 8)),
    "conv 3x3, stride 2": (lambda: nn.Conv2d(6, 10, 3, stride=2, padding=1), (3, 6, 8, 8)),
    "conv 3x3, dilated": (lambda: nn.Conv2d(6, 10, 3, padding=2, dilation=2, bias=False), (3, 6, 8, 8)),
    "conv 1x1": (lambda: nn.Conv2d(6, 10, 1), (3, 6, 8, 8)),
}


@pytest.fixture(params=BASES)
def base_and_input(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    make, shape = BASES[request.param]
    return make().requires_grad_(False), torch.randn(shape, requires_grad=True)


def matrices(base: nn.Module, rank: int) -> tuple[Tensor, Tensor]:
    weight = base.weight
    down = torch.randn(rank, *weight.shape[1:]) * 0.3
    up = torch.randn(weight.shape[0], rank, *(1 for _ in weight.shape[2:])) * 0.3
    return down.requires_grad_(), up.requires_grad_()


def open_gate(rows: Tensor) -> Gate:
    gate = Gate()
    gate.open(rows)
    return gate


def with_stack(base: nn.Module, down: Tensor, up: Tensor, gate: Gate) -> LoraLayer:
    layer = wrap(base)
    layer.branches = (Stack(down, up, gate),)
    return layer


@pytest.mark.parametrize("kind", [kind for kind in BASES if "dilated" not in kind])  # PEFT forgets the dilation
def test_forward_and_gradients_equal_peft(kind: str) -> None:
    """Otherwise a LoRA trained here would mean something else everywhere else."""
    from peft.tuners.lora import Conv2d, Linear, LoraConfig

    torch.manual_seed(3)
    make, shape = BASES[kind]
    base, x = make().requires_grad_(False), torch.randn(shape, requires_grad=True)
    rank, alpha = 4, 6.0
    down, up = matrices(base, rank)
    ours = with_stack(base, down, up, open_gate(torch.full((rank,), alpha / rank)))
    peft_layer = Linear if isinstance(base, nn.Linear) else Conv2d
    theirs = peft_layer(base, "default", config=LoraConfig(r=rank, lora_alpha=alpha), r=rank, lora_alpha=alpha)
    theirs.lora_A["default"].weight.data.copy_(down.detach())
    theirs.lora_B["default"].weight.data.copy_(up.detach())

    results = []
    for layer, parameters in (
        (ours, (down, up)),
        (theirs, (theirs.lora_A["default"].weight, theirs.lora_B["default"].weight)),
    ):
        y = layer(x)
        gradients = torch.autograd.grad((y * y).mean(), (x, *parameters))
        results.append((y, *gradients))
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_a_stack_of_adapters_equals_the_plain_formula(base_and_input: tuple[nn.Module, Tensor]) -> None:
    """A gate [R] is one mix for the batch: adapters of different rank and alpha, one of them negative, one silent."""
    base, x = base_and_input
    adapters = [(*matrices(base, rank), alpha) for rank, alpha in ((4, 2.0), (1, 1.0), (3, 9.0))]
    strengths = [0.7, -0.4, 0.0]
    rows = torch.cat([torch.full((a[0].shape[0],), s * a[2] / a[0].shape[0]) for a, s in zip(adapters, strengths)])
    down, up = torch.cat([a[0] for a in adapters]), torch.cat([a[1] for a in adapters], dim=1)
    layer = with_stack(base, down, up, open_gate(rows))
    expected = lora_reference(base, x, adapters, [strengths] * 3)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_a_mix_for_every_row_equals_the_plain_formula(base_and_input: tuple[nn.Module, Tensor]) -> None:
    """A gate [batch, R]: row b must be computed as if it were alone with its mix, forward and backward."""
    base, x = base_and_input
    adapters = [(*matrices(base, rank), alpha) for rank, alpha in ((4, 2.0), (2, 1.0))]
    strengths = [[1.0, 0.0], [0.25, -1.5], [0.0, 0.0]]
    rows = torch.tensor([[s * a[2] / a[0].shape[0] for a, s in zip(adapters, row) for _ in a[0]] for row in strengths])
    down, up = torch.cat([a[0] for a in adapters]), torch.cat([a[1] for a in adapters], dim=1)
    y = with_stack(base, down, up, open_gate(rows))(x)
    expected = lora_reference(base, x, adapters, strengths)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    wanted = [x, *(matrix for a in adapters for matrix in a[:2])]
    for mine, plain in zip(
        torch.autograd.grad((y * y).mean(), wanted),
        torch.autograd.grad((expected * expected).mean(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-5)
    assert torch.equal(y[2], base(x)[2]), "a row whose mix is empty is the base's row, bit for bit"


@pytest.mark.parametrize("shape", [(3, 7, 6), (3, 6)])
@pytest.mark.parametrize("rows", [torch.full((4,), 0.7), torch.tensor([[1.0], [0.0], [-0.3]]).expand(3, 4)])
def test_adding_onto_the_base_s_own_output_is_the_same(shape: tuple[int, ...], rows: Tensor) -> None:
    """Outside of training the change is added in place: another sum, or a spoilt input, would be another picture."""
    torch.manual_seed(3)
    base, x = nn.Linear(6, 10).requires_grad_(False), torch.randn(shape)
    layer = with_stack(base, *matrices(base, 4), open_gate(rows))
    plain, before = layer(x), x.clone()
    with torch.inference_mode():
        in_place = layer(x)
    assert plain.requires_grad
    torch.testing.assert_close(in_place, plain.detach(), rtol=1e-6, atol=1e-6)
    assert torch.equal(x, before)
    if rows.ndim == 2:
        assert torch.equal(in_place[1], base(x)[1]), "a row whose mix is empty is the base's row, bit for bit"


def test_a_closed_gate_is_the_base_bit_for_bit(base_and_input: tuple[nn.Module, Tensor]) -> None:
    base, x = base_and_input
    layer = with_stack(base, *matrices(base, 4), Gate())
    assert torch.equal(layer(x), base(x))


def test_a_unit_gate_only_saves_the_multiplication(base_and_input: tuple[nn.Module, Tensor]) -> None:
    base, x = base_and_input
    layer = with_stack(base, *matrices(base, 4), open_gate(torch.ones(4)))
    expected = layer(x)
    layer.branches[0].gate.open(torch.ones(4), unit=True)
    assert torch.equal(layer(x), expected)


def test_a_mix_for_another_batch_size_is_refused(base_and_input: tuple[nn.Module, Tensor]) -> None:
    """Broadcasting a batch of one would otherwise hide the mistake."""
    base, x = base_and_input
    layer = with_stack(base, *matrices(base, 4), open_gate(torch.ones(2, 4)))
    for batch in (x, x[:1]):
        with pytest.raises(ValueError, match="mix has 2 rows"):
            layer(batch)


@pytest.mark.parametrize("kind", ["linear", "conv 3x3"])
def test_under_autocast_the_adapter_stays_fp32_and_learns(kind: str) -> None:
    """bf16 autocast over fp32 matrices: output as the base's, gradients fp32 and near those of fp32."""
    torch.manual_seed(0)
    make, shape = BASES[kind]
    base, x = make().requires_grad_(False), torch.randn(shape)
    down, up = matrices(base, 4)
    layer = with_stack(base, down, up, open_gate(torch.full((4,), 0.5)))
    expected = torch.autograd.grad((layer(x) ** 2).mean(), (down, up))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        assert y.dtype == base(x).dtype == torch.bfloat16
    gradients = torch.autograd.grad((y.float() ** 2).mean(), (down, up))
    for gradient, reference in zip(gradients, expected, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - reference).norm() < 0.02 * reference.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["linear", "conv 3x3"])
def test_fp32_matrices_work_on_a_half_precision_base_without_autocast(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    make, shape = BASES[kind]
    base, x = make().requires_grad_(False), torch.randn(shape)
    down, up = matrices(base, 4)
    expected = with_stack(base, down, up, open_gate(torch.ones(4)))(x)
    y = with_stack(base.to(dtype), down, up, open_gate(torch.ones(4)))(x.to(dtype))
    assert y.dtype == dtype
    assert (y.float() - expected).norm() < 0.02 * expected.norm()


def test_gradients_survive_checkpointing(base_and_input: tuple[nn.Module, Tensor]) -> None:
    base, x = base_and_input
    down, up = matrices(base, 4)
    layer = with_stack(base, down, up, open_gate(torch.full((4,), 0.5)))
    plain = torch.autograd.grad((layer(x) ** 2).sum(), (down, up, x))
    again = torch.autograd.grad((checkpoint(layer, x, use_reentrant=False) ** 2).sum(), (down, up, x))
    for mine, other in zip(plain, again, strict=True):
        assert torch.equal(mine, other)


def test_wrapping_keeps_what_model_code_asks_of_a_layer() -> None:
    base = nn.Linear(4, 6)
    layer = wrap(base)
    assert isinstance(layer, LoraLinear)
    assert layer.weight is base.weight
    assert layer.bias is base.bias
    assert isinstance(wrap(nn.Conv2d(4, 6, 3)), LoraConv2d)


@pytest.mark.parametrize("base", [nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")])
def test_convolutions_whose_delta_is_not_a_plain_lora_are_refused(base: nn.Module) -> None:
    with pytest.raises(TypeError, match="ungrouped"):
        wrap(base)
