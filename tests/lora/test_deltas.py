"""Every form an adapter's layer can have, at its place: against ``W x + sum of strength x dW x`` with dW formed."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lora.errors import AdapterFileError
from diffusion_lora.lora.adapter import Adapter
from diffusion_lora.lora.bank import AdapterBank
from diffusion_lora.lora.deltas import Decomposed, Dense, Fixed, Kronecker, Part, RankRows, fits, prepare
from diffusion_lora.lora.gate import Gate
from diffusion_lora.lora.layer import Stack
from diffusion_lora.lora.weights import Full, LoHa, LoKr, LowRank, Weights

Components = dict[str, nn.Module]

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(24, 36), (3, 7, 24)),
    "linear, one vector a row": (lambda: nn.Linear(24, 36), (3, 24)),
    "conv 3x3": (lambda: nn.Conv2d(24, 36, 3, padding=1, stride=2), (3, 24, 6, 6)),
    "conv 1x1": (lambda: nn.Conv2d(24, 36, 1), (3, 24, 6, 6)),
}
STRENGTHS = [0.7, 0.0, -1.3]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * 0.3


def forms(base: Tensor) -> dict[str, Weights]:
    """One of each that fits a weight of 36 outputs and 24 inputs."""
    kernel = tuple(base.shape[2:])
    size = kernel[0] if kernel else 1
    folded = 24 * size * size
    loha = [normal(36, 2), normal(2, folded), normal(36, 2, seed=1), normal(2, folded, seed=1)]
    wide = [normal(36, 9), normal(9, folded), normal(36, 9, seed=1), normal(9, folded, seed=1)]
    found: dict[str, Weights] = {
        "low rank": LowRank(normal(4, 24, *kernel), normal(36, 4, *(1 for _ in kernel)), 2.0),
        "rank-stabilised": LowRank(normal(4, 24, *kernel), normal(36, 4, *(1 for _ in kernel)), 2.0, rs=True),
        "LoHa": LoHa(*loha, alpha=3.0),
        "LoHa of high rank": LoHa(*wide, alpha=3.0),
        "LoKr": LoKr(normal(6, 4), (normal(6, 2), normal(2, 6 * size * size)), alpha=1.0),
        "LoKr of two pairs": LoKr(
            (normal(6, 2), normal(2, 4)), (normal(6, 2), normal(2, 6 * size * size, seed=2)), alpha=1.0
        ),
        "LoKr of whole factors": LoKr(normal(6, 4), normal(6, 6, *kernel), alpha=5.0),
        "full": Full(normal(*base.shape), normal(36)),
    }
    if size > 1:
        found |= {
            "Tucker": LowRank(normal(4, 24, 1, 1), normal(36, 4, 1, 1), 2.0, mid=normal(4, 4, 3, 3)),
            "LoHa, Tucker": LoHa(
                normal(2, 36), normal(2, 24), normal(2, 36, seed=3), normal(2, 24, seed=3), 1.0,
                normal(2, 2, 3, 3), normal(2, 2, 3, 3, seed=1),
            ),
            "LoKr, Tucker": LoKr(normal(6, 4), (normal(2, 6), normal(2, 6)), 1.0, normal(2, 2, 3, 3)),
            "LoKr with the kernel in both factors": LoKr(normal(6, 18), normal(6, 12), 1.0),
        }  # fmt: skip
    magnitudes = {"rows": (36, *(1 for _ in base.shape[1:])), "columns": (1, 24, *kernel[:0], *(1 for _ in kernel))}
    for axis, shape in magnitudes.items():
        magnitude = base.norm() / 6 * (1 + normal(*shape).abs())
        found |= {
            f"DoRA, {axis}": LowRank(
                normal(4, 24, *kernel), normal(36, 4, *(1 for _ in kernel)), 2.0, magnitude=magnitude
            ),
            f"LoHa with magnitudes of {axis}": LoHa(*loha, alpha=3.0, magnitude=magnitude),
            f"LoKr with magnitudes of {axis}": LoKr(normal(6, 4), normal(6, 6, *kernel), 5.0, magnitude=magnitude),
        }
    return found


def cases() -> list[tuple[str, str]]:
    return [(layer, form) for layer, (make, _) in LAYERS.items() for form in forms(make().weight.detach())]


def through(base: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if isinstance(base, nn.Conv2d):
        return F.conv2d(x, weight, bias, base.stride, base.padding)
    return F.linear(x, weight, bias)


@pytest.fixture
def base_and_input(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    make, shape = LAYERS[request.param]
    return make().requires_grad_(False), torch.randn(shape)


@pytest.mark.parametrize(("base_and_input", "form"), cases(), indirect=["base_and_input"])
def test_a_strength_for_every_row_multiplies_the_exact_change(
    base_and_input: tuple[nn.Module, Tensor], form: str
) -> None:
    """Rows of a batch must not see each other, and no form may be drawn by an approximation of itself."""
    base, x = base_and_input
    weights = forms(base.weight)[form]
    assert fits(weights, base.weight)
    bank = AdapterBank({"unet": nn.Sequential(base)}, "one layer")
    bank.load("it", Adapter({"unet.0": weights}, {}))
    delta = weights.delta(base.weight)
    shift = weights.bias if isinstance(weights, Full) else None
    model = bank.components["unet"]
    with bank.mix([{"it": strength} for strength in STRENGTHS]):
        y = model(x)
    assert torch.equal(y[1], base(x)[1]), "a row of strength 0 is the base's row"
    for row, strength in enumerate(STRENGTHS):
        bias = base.bias if shift is None else base.bias + strength * shift
        expected = through(base, x, base.weight + strength * delta, bias)
        with bank.mix({"it": strength}):
            together = model(x)
        assert (together - expected).abs().max() < 1e-5 * expected.abs().max()
        assert (y[row] - expected[row]).abs().max() < 1e-5 * expected.abs().max()
    assert torch.equal(model(x), base(x)), "a closed gate is the base bit for bit"


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("low rank", RankRows),
        ("Tucker", RankRows),
        ("LoHa", RankRows),
        ("LoHa of high rank", Dense),
        ("LoKr of two pairs", RankRows),
        ("LoKr of whole factors", Kronecker),
        ("LoKr with the kernel in both factors", Dense),
        ("full", Dense),
    ],
)
def test_the_thinnest_form_is_taken(form: str, kind: type) -> None:
    """A LoKr of 350 layers as whole matrices would take the memory of the base once more."""
    base = nn.Conv2d(24, 36, 3).weight.detach()
    part = prepare(forms(base)[form], base)
    assert isinstance(operator_of(part), kind)


def operator_of(part: Part) -> object:
    if part.rows is not None:
        return part.rows
    assert part.branch is not None
    return part.branch(Gate()).operator


def test_all_forms_stack_on_one_layer_and_leave_one_by_one() -> None:
    torch.manual_seed(0)
    base = nn.Conv2d(24, 36, 3, padding=1).requires_grad_(False)
    x = torch.randn(2, 24, 5, 5)
    bank = AdapterBank({"unet": nn.Sequential(base)}, "one layer")
    all_forms = forms(base.weight)
    for name, weights in all_forms.items():
        bank.load(name, Adapter({"unet.0": weights}, {}))
    strengths = {name: 0.1 * (i - 5) for i, name in enumerate(all_forms)}
    while strengths:
        weight, bias = base.weight.clone(), base.bias.clone()
        for name, strength in strengths.items():
            weight += strength * all_forms[name].delta(base.weight)
            if isinstance(all_forms[name], Full):
                bias += strength * all_forms[name].bias
        expected = through(base, x, weight, bias)
        with bank.mix(strengths):
            mixed = bank.components["unet"](x)
        assert (mixed - expected).abs().max() < 1e-5 * expected.abs().max()
        gone = next(iter(strengths))
        del strengths[gone]
        bank.unload(gone)
    assert bank.components["unet"][0] is base


def test_rank_rows_of_every_origin_share_one_stack() -> None:
    """Two small products whatever the number of adapters: that is what makes a mix cheap."""
    base = nn.Linear(24, 36).requires_grad_(False)
    bank = AdapterBank({"unet": nn.Sequential(base)}, "one layer")
    all_forms = forms(base.weight)
    for name in ("low rank", "LoKr of two pairs", "DoRA, rows", "full"):
        bank.load(name, Adapter({"unet.0": all_forms[name]}, {}))
    branches = bank.components["unet"][0].branches
    assert [type(branch) for branch in branches] == [Stack, Decomposed, Fixed]
    assert len(branches[0].down) == 4 + 4


def test_half_precision_bases_get_half_precision_matrices() -> None:
    for name, weights in forms(nn.Linear(24, 36).weight).items():
        torch.manual_seed(3)
        base = nn.Linear(24, 36).requires_grad_(False)
        x = torch.randn(2, 5, 24)
        expected = through(base, x, base.weight + 0.5 * weights.delta(base.weight), base.bias)
        if isinstance(weights, Full):
            expected = expected + 0.5 * weights.bias
        bank = AdapterBank({"unet": nn.Sequential(base.to(torch.bfloat16))}, "half a layer")
        bank.load("it", Adapter({"unet.0": weights}, {}))
        with bank.mix([{"it": 0.5}] * 2):
            y = bank.components["unet"](x.bfloat16())
        assert y.dtype == torch.bfloat16, name
        assert (y.float() - expected).norm() < 0.02 * expected.norm(), name


def test_what_does_not_fit_is_refused_and_nothing_is_changed() -> None:
    """A bias for a layer without one, and factors of another width."""
    base = nn.Linear(24, 36, bias=False)
    bank = AdapterBank({"unet": nn.Sequential(base)}, "one layer")
    with pytest.raises(AdapterFileError, match=r"it changes the bias of unet\.0, which has none"):
        bank.load("it", Adapter({"unet.0": Full(normal(36, 24), normal(36))}, {}))
    with pytest.raises(AdapterFileError, match=r"unet\.0 is 30 x 24 there and 36 x 24 here"):
        bank.load("it", Adapter({"unet.0": LoKr(normal(5, 4), normal(6, 6), 1.0)}, {}))
    assert bank.names == ()
    assert bank.components["unet"][0] is base
