"""How two adapters meet: cosines, overlap and advice against what their whole deltas say."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from diffusion_lora.errors import AdapterFileError
from diffusion_lora.lora.adapter import Adapter, read_adapter
from diffusion_lora.lora.algebra import Term, merge
from diffusion_lora.lora.compare import MAX_STRENGTH, compare
from diffusion_lora.lora.weights import Full, LoHa, LoKr, LowRank, Weights

MakeAdapter = Callable[..., Adapter]


def flat(adapter: Adapter) -> torch.Tensor:
    return torch.cat([layer.delta().double().flatten() for layer in adapter.layers.values()])


def mixed(a: Adapter, b: Adapter, share: float) -> Adapter:
    """a + share * b, exactly."""
    return merge([Term(a, 1.0, "a"), Term(b, share, "b")], "concat", dtype=torch.float32).adapter


@pytest.fixture
def pair(components: dict[str, nn.Module], make_adapter: MakeAdapter) -> tuple[Adapter, Adapter]:
    return make_adapter(components, targets="wide", seed=0), make_adapter(components, targets="wide", seed=1)


@pytest.mark.parametrize(("strength", "cosine"), [(1.0, 1.0), (0.3, 1.0), (-1.0, -1.0)])
def test_an_adapter_and_itself(pair: tuple[Adapter, Adapter], strength: float, cosine: float) -> None:
    found = compare(Term(pair[0], 1.0, "a"), Term(pair[0], strength, "b"))
    assert f"{found.whole.cosine:.2f}" == f"{cosine:.2f}"
    assert found.whole.cosine == pytest.approx(cosine, abs=1e-12)
    assert found.whole.overlap_a == pytest.approx(1.0)
    assert {f"{meeting.cosine:.2f}" for meeting in found.blocks.values()} == {f"{cosine:.2f}"}
    assert found.whole.verdict == ("reinforcing" if cosine > 0 else "cancelling")


def test_figures_are_those_of_the_whole_deltas(pair: tuple[Adapter, Adapter]) -> None:
    """Computed from small matrices; the deltas, which are not formed, must say the same."""
    a, b = pair[0], mixed(pair[1], pair[0], 0.5)
    found = compare(Term(a, 0.8, "a"), Term(b, 1.2, "b"))
    x, y = 0.8 * flat(a), 1.2 * flat(b)
    assert found.whole.norm_a == pytest.approx(float(x.norm()))
    assert found.whole.norm_b == pytest.approx(float(y.norm()))
    assert found.whole.cosine == pytest.approx(float(x @ y / (x.norm() * y.norm())), abs=1e-6)
    assert found.whole.gain == pytest.approx(float((x + y).norm() / math.hypot(x.norm(), y.norm())), abs=1e-6)
    key, layer = next(iter(a.layers.items()))
    other = b.layers[key].delta().double().flatten(1)
    u, s, v = torch.linalg.svd(other)
    rank = int((s > 1e-5 * s[0]).sum())
    inside = u[:, :rank].T @ layer.delta().double().flatten(1) @ v[:rank].T
    only = compare(Term(Adapter({key: layer}, {}), 1.0, "a"), Term(Adapter({key: b.layers[key]}, {}), 1.0, "b"))
    assert only.whole.overlap_a == pytest.approx(float(inside.square().sum() / layer.delta().square().sum()), rel=1e-4)
    assert only.whole.overlap_a == pytest.approx(1.0, rel=1e-4), "b holds all directions of a"
    assert only.whole.overlap_b < 0.9


def test_forms_meet_each_other() -> None:
    """Low-rank, Hadamard, Kronecker and full deltas of one layer, each with each."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    forms: list[Weights] = [
        LowRank(random(3, 12, 3, 3), random(32, 3, 1, 1), 1.0),
        LoHa(random(32, 2), random(2, 108), random(32, 2), random(2, 108), 1.0),
        LoKr(random(4, 3), (random(2, 8), random(2, 4)), -1.0, t2=random(2, 2, 3, 3)),
        Full(random(32, 12, 3, 3)),
    ]
    for one in forms:
        for other in forms:
            a, b = Adapter({"unet.a": one}, {}), Adapter({"unet.a": other}, {})
            x, y = flat(a), flat(b)
            found = compare(Term(a, 1.0, "a"), Term(b, 1.0, "b")).whole
            assert found.cosine == pytest.approx(float(x @ y / (x.norm() * y.norm())), abs=1e-6)
            assert 0 <= found.overlap_a <= 1 + 1e-9
        full = Term(Adapter({"unet.a": forms[-1]}, {}), 1.0, "full")
        assert compare(Term(a, 1.0, "a"), full).whole.overlap_a == pytest.approx(1.0), "it has all directions"


def test_strangers_are_independent(pair: tuple[Adapter, Adapter]) -> None:
    """Random adapters overlap by chance and not more; and nothing is advised against."""
    found = compare(Term(pair[0], 1.0, "a"), Term(pair[1], 1.0, "b"))
    assert found.whole.verdict == "independent"
    assert found.strengths == (1.0, 1.0)
    assert found.whole.overlap_a == pytest.approx(found.whole.as_dict()["chance_a"], abs=0.1)
    assert "their own ways" in found.advice


def test_suggested_strengths_give_each_its_own_length_back(pair: tuple[Adapter, Adapter]) -> None:
    """Along either one's direction the stack then reaches as far as that one does alone: for equal lengths exactly."""
    for share in (1.0, -0.35):
        a, b = pair[0], mixed(pair[1], pair[0], share)
        terms = Term(a, 1.0, "a"), Term(b, float(flat(a).norm() / flat(b).norm()), "b")
        found = compare(*terms)
        assert found.strengths is not None
        x, y = flat(a), terms[1].strength * flat(b)
        factor = found.strengths[0]
        assert found.strengths[1] == pytest.approx(factor * terms[1].strength)
        assert float(factor * (x + y) @ x / x.norm() ** 2) == pytest.approx(1.0, rel=1e-5)
        assert (factor < 1) == (share > 0)
        assert f"a:{factor:.2f}" in found.advice


def test_opposites_get_no_strengths(pair: tuple[Adapter, Adapter]) -> None:
    found = compare(Term(pair[0], 1.0, "a"), Term(mixed(pair[0], pair[1], 0.2), -1.0, "b"))
    assert found.strengths is None
    assert "no strengths make both act" in found.advice
    assert 1 / (1 + found.whole.cosine) > MAX_STRENGTH


def test_layers_of_only_one_count_for_its_length(pair: tuple[Adapter, Adapter]) -> None:
    """An adapter for attention and one for a text encoder do not meet: cosine 0, whatever they hold."""
    text = Adapter({key: layer for key, layer in pair[0].layers.items() if key.startswith("te.")}, {})
    unet = Adapter({key: layer for key, layer in pair[0].layers.items() if key.startswith("unet.")}, {})
    found = compare(Term(text, 1.0, "a"), Term(unet, 1.0, "b"))
    assert (found.whole.cosine, found.whole.verdict) == (0.0, "independent")
    assert found.whole.norm_a == pytest.approx(float(flat(text).norm()))
    assert found.notes[0].startswith("0 of ")
    nothing = compare(Term(text, 0.0, "a"), Term(unet, 1.0, "b"))
    assert "a changes nothing" in nothing.advice


def test_other_models_and_doras_are_refused(
    pair: tuple[Adapter, Adapter], other_family: dict[str, nn.Module], make_adapter: MakeAdapter
) -> None:
    with pytest.raises(AdapterFileError, match="for different models"):
        compare(Term(pair[0], 1.0, "a"), Term(make_adapter(other_family), 1.0, "b"))
    dora = LowRank(torch.ones(1, 3), torch.ones(4, 1), 1.0, magnitude=torch.ones(4, 1))
    with pytest.raises(AdapterFileError, match="depend on the base"):
        compare(Term(Adapter({"unet.a": dora}, {}), 1.0, "a"), Term(pair[0], 1.0, "b"))


def test_it_is_json(pair: tuple[Adapter, Adapter]) -> None:
    found = compare(Term(pair[0], 1.0, "a"), Term(pair[1], 1.0, "b"))
    told = json.loads(json.dumps(found.as_dict()))
    assert told["verdict"] == "independent"
    assert set(told["blocks"]) == set(found.blocks)


def test_real_files_of_one_lora_are_the_same_and_of_two_are_not(lora_data: Path) -> None:
    weapon = read_adapter(lora_data / "derived" / "weapon_v15_rank4_kohya.safetensors")
    lokr = read_adapter(lora_data / "lycoris_smart_falcon_4_lokr.safetensors")
    processors = read_adapter(lora_data / "weapon_v15_rank4_attnprocs.safetensors")
    same = compare(Term(weapon, 1.0, "a"), Term(processors, 1.0, "b"))
    assert same.whole.cosine == pytest.approx(1.0, abs=1e-9)
    assert same.whole.norm_a == pytest.approx(4.7302, abs=5e-5)
    other = compare(Term(weapon, 1.0, "a"), Term(lokr, 1.0, "b"))
    assert other.whole.verdict == "independent"
    assert abs(other.whole.cosine) < 0.02
