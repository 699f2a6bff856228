"""Sums and resizings of adapters: exact where they promise it, the loss told truly where they do not."""

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from diffusion_lora.errors import AdapterFileError, ConfigError
from diffusion_lora.lora.adapter import Adapter
from diffusion_lora.lora.algebra import Term, merge, resize
from diffusion_lora.lora.bank import AdapterBank
from diffusion_lora.lora.factors import delta_of, difference, factors_of, norm, rank_bound, singular_values, svd, svd_of
from diffusion_lora.lora.plain import Cut
from diffusion_lora.lora.sparse import dare, ties
from diffusion_lora.lora.weights import Full, LoHa, LoKr, LowRank, Weights

MakeAdapter = Callable[..., Adapter]


def layers_of_every_form(seed: int = 0) -> dict[str, Weights]:
    """Linear and convolution layers of all forms that need no base, the early LoKr with a folded kernel among them."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "unet.linear_lora": LowRank(random(4, 24), random(32, 4), 2.0),
        "unet.linear_rs": LowRank(random(4, 24), random(32, 4), 2.0, rs=True),
        "unet.conv_lora": LowRank(random(4, 12, 3, 3), random(32, 4, 1, 1), 1.0),
        "unet.tucker": LowRank(random(3, 12, 1, 1), random(32, 4, 1, 1), 3.0, mid=random(4, 3, 3, 3)),
        "unet.loha": LoHa(random(32, 2), random(2, 24), random(32, 2), random(2, 24), 1.0),
        "unet.loha_core": LoHa(
            random(3, 32), random(3, 12), random(3, 32), random(3, 12), 1.0, random(3, 3, 3, 3), random(3, 3, 3, 3)
        ),
        "unet.lokr": LoKr((random(4, 2), random(2, 6)), (random(8, 2), random(2, 4)), -3.0),
        "unet.lokr_whole": LoKr(random(4, 3), random(8, 4, 3, 3), 1.0),
        "unet.lokr_core": LoKr(random(4, 3), (random(2, 8), random(2, 4)), 1.0, t2=random(2, 2, 3, 3)),
        "unet.wide_lora": LowRank(random(40, 24), random(32, 40), 40.0),
        "unet.full": Full(random(32, 12, 3, 3)),
        "unet.nothing": LowRank(random(2, 24), torch.zeros(32, 2), 2.0),
        "unet.lokr_nothing": LoKr(torch.zeros(4, 3), (random(8, 2), random(2, 8)), 2.0),
    }


def adapter_of_every_form(seed: int = 0) -> Adapter:
    return Adapter(layers_of_every_form(seed), {})


def deltas(adapter: Adapter) -> dict[str, Tensor]:
    return {key: layer.delta().flatten(1) for key, layer in adapter.layers.items()}


def distance(a: Adapter, b: dict[str, Tensor]) -> float:
    """Relative distance of all deltas together."""
    mine = deltas(a)
    assert mine.keys() == b.keys()
    gap = torch.stack([(mine[key] - b[key]).norm() for key in b]).norm()
    return float(gap / torch.stack([delta.norm() for delta in b.values()]).norm())


@pytest.mark.parametrize("key", layers_of_every_form())
def test_every_form_is_what_its_factors_say(key: str) -> None:
    """If this fails, everything built on the factors is about another matrix than the one that acts."""
    layer = layers_of_every_form()[key]
    expected = layer.delta().double().flatten(1)
    for delta in (factors_of(layer), delta_of(layer)):
        torch.testing.assert_close(delta.matrix(), expected, rtol=1e-5, atol=1e-5)
        assert delta.shape == expected.shape
        assert norm(delta) == pytest.approx(float(expected.norm()), rel=1e-6, abs=1e-9)
    reference = torch.linalg.svdvals(expected)
    values = singular_values(layer)
    torch.testing.assert_close(values, reference[: len(values)], rtol=1e-5, atol=1e-5)
    assert float(reference[len(values) :].square().sum()) < 1e-9 * max(float(reference.square().sum()), 1.0)
    assert len(values) <= rank_bound(layer)
    for decomposed in (svd(delta_of(layer)), svd_of(layer)):
        torch.testing.assert_close((decomposed.u * decomposed.s) @ decomposed.v, expected, rtol=1e-5, atol=1e-5)
        assert decomposed.energy == pytest.approx(float(expected.square().sum()), rel=1e-6)


def test_a_randomised_decomposition_is_as_good_as_the_exact_one() -> None:
    """The fast path of a large matrix: on a spectrum that falls slowly it must still catch what the rank can hold."""
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(300, 300, generator=generator, dtype=torch.float64))[0] for _ in range(2))
    matrix = (u / torch.arange(1, 301) ** 0.5) @ v
    delta = delta_of(Full(matrix.float()))
    fast, exact = svd(delta, 8), svd(delta).first(8)
    torch.testing.assert_close(fast.s, exact.s, rtol=1e-3, atol=0)
    assert fast.energy == exact.energy
    kept_fast, kept_exact = float(fast.s.square().sum()), float(exact.s.square().sum())
    assert kept_fast == pytest.approx(kept_exact, rel=1e-4)


def test_resizing_at_full_energy_loses_nothing() -> None:
    """Of every form; and the result is plain, so that every program loads it."""
    adapter = adapter_of_every_form()
    result = resize(adapter, Cut(energy=1.0, per_layer=True), torch.float32)
    assert distance(result.adapter, deltas(adapter)) < 1e-6
    assert result.error < 1e-6
    assert all(isinstance(layer, LowRank) and layer.mid is None for layer in result.adapter.layers.values())
    assert {layer.alpha for layer in result.adapter.layers.values()} == {32.0}, "diffusers wants one alpha for all"
    ranks = {key: layer.rank for key, layer in result.adapter.layers.items()}
    assert (ranks["unet.linear_lora"], ranks["unet.loha"], ranks["unet.lokr"], ranks["unet.nothing"]) == (4, 4, 4, 1)
    for key, layer in result.adapter.layers.items():
        assert layer.shape == adapter.layers[key].shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cut", [Cut(rank=2), Cut(energy=0.9), Cut(energy=0.9, per_layer=True), Cut(2, per_layer=True)])
def test_the_told_loss_is_the_true_one(cut: Cut, dtype: torch.dtype) -> None:
    """Measured on the deltas of what would be written, the rounding to half precision included."""
    adapter = adapter_of_every_form()
    before = deltas(adapter)
    result = resize(adapter, cut, dtype)
    after = deltas(result.adapter)
    assert result.error == pytest.approx(distance(result.adapter, before), rel=1e-2)
    for loss in result.layers:
        assert loss.norm == pytest.approx(float(before[loss.key].norm()), rel=1e-5)
        assert loss.error == pytest.approx(float((after[loss.key] - before[loss.key]).norm()), rel=2e-2, abs=1e-4)
    if cut.energy is not None:
        lost = {loss.key: loss.relative**2 for loss in result.layers}
        assert result.error**2 < 0.1 + 1e-4
        assert not cut.per_layer or max(lost.values()) < 0.1 + 1e-4


def test_a_cut_is_the_best_of_its_rank() -> None:
    """Eckart and Young: no matrix of this rank is nearer than the leading singular values."""
    layer = layers_of_every_form()["unet.wide_lora"]
    result = resize(Adapter({"unet.a": layer}, {}), Cut(rank=5), torch.float32)
    values = torch.linalg.svdvals(layer.delta())
    assert result.layers[0].error == pytest.approx(float(values[5:].norm()), rel=1e-4)
    assert result.layers[0].rank_before == 40


def test_rank_rows_go_where_the_energy_is() -> None:
    """The same file size, less lost, when a rank for all layers is shared out among them."""
    layer = plain(1, rank=8, alpha=8.0).layers["unet.a"]
    layers = {f"unet.{size}": LowRank(layer.down, layer.up * size, 8.0) for size in (0.1, 1.0)}
    adapter = Adapter(layers, {})
    same, shared = resize(adapter, Cut(rank=4)), resize(adapter, Cut(rank=4, per_layer=True))
    assert sum(layer.rank for layer in shared.adapter.layers.values()) == 8
    assert shared.adapter.layers["unet.1.0"].rank > 4
    assert shared.error < same.error


def test_a_higher_rank_than_there_is_changes_nothing() -> None:
    layer = layers_of_every_form()["unet.linear_lora"]
    adapter = Adapter({"unet.a": layer}, {"ss_output_name": "x"})
    result = resize(adapter, Cut(rank=64))
    assert result.adapter is adapter
    assert "nothing is changed" in result.notes[0]


def test_a_dora_keeps_its_magnitude_and_that_is_said() -> None:
    plain = layers_of_every_form()["unet.linear_lora"]
    dora = LowRank(plain.down, plain.up, plain.alpha, magnitude=torch.ones(32, 1))
    result = resize(Adapter({"unet.a": dora}, {}), Cut(rank=2))
    assert result.adapter.layers["unet.a"].magnitude is dora.magnitude
    assert "DoRA" in result.notes[0]


def test_a_kernel_folded_into_the_inputs_is_unfolded() -> None:
    """An early LoKr holds a 3 x 3 convolution as 320 x 2880; a plain convolution LoRA has its kernel in `down`."""
    generator = torch.Generator().manual_seed(0)
    layer = LoKr(torch.randn(4, 12, generator=generator), torch.randn(8, 9, generator=generator), 1.0)
    result = resize(Adapter({"unet.up_blocks_0_resnets_0_conv1": layer}, {}), Cut(rank=3))
    assert result.adapter.layers["unet.up_blocks_0_resnets_0_conv1"].down.shape == (3, 12, 3, 3)


def test_concat_equals_the_stack() -> None:
    """Every form with thin factors, strengths of both signs, a layer that only one adapter has."""
    thin = {key: layer for key, layer in layers_of_every_form().items() if delta_of(layer).u is not None}
    thin["unet.wide_lora"] = layers_of_every_form()["unet.wide_lora"]
    a = Adapter(thin, {})
    b = Adapter({key: layers_of_every_form(1)[key] for key in list(thin)[1:]}, {})
    result = merge([Term(a, 0.8, "a"), Term(b, -1.5, "b")], "concat", dtype=torch.float32)
    stack = {
        key: 0.8 * delta - 1.5 * (deltas(b)[key] if key in b.layers else torch.zeros(()))
        for key, delta in deltas(a).items()
    }
    assert distance(result.adapter, stack) < 1e-6
    assert result.error < 1e-6
    assert "b has no part in 1 of" in " ".join(result.notes)


def test_concat_draws_what_the_stack_draws(components: dict[str, nn.Module], make_adapter: MakeAdapter) -> None:
    """The merged file at strength 1 against its two parts at their strengths behind one gate."""
    a, b = (make_adapter(components, rank=3 + seed, targets="wide", seed=seed, size=0.1) for seed in (0, 1))
    bank = AdapterBank(components, "tiny")
    for name, one in (("a", a), ("b", b), ("ab", merge([Term(a, 0.8, "a"), Term(b, -0.5, "b")], "concat").adapter)):
        bank.load(name, one)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def draw(mix: dict[str, float]) -> Tensor:
        with torch.no_grad(), bank.mix(mix):
            text = components["te"](torch.arange(18).view(2, 9)).last_hidden_state
            return components["unet"](latents, torch.tensor([500, 500]), text).sample

    base, stacked, merged = draw({}), draw({"a": 0.8, "b": -0.5}), draw({"ab": 1.0})
    assert float((stacked - base).abs().max()) > 0.1
    assert float((stacked - merged).abs().max()) < 1e-5 * float((stacked - base).abs().max())


def test_concat_keeps_every_bit_of_what_it_need_not_scale(
    components: dict[str, nn.Module], make_adapter: MakeAdapter
) -> None:
    """At strength 1 and scale 1 the rank rows are only laid side by side, in half precision too."""
    a, b = (make_adapter(components, rank=4, alpha=4.0, targets="wide", seed=seed) for seed in (0, 1))
    result = merge([Term(a, 1.0, "a"), Term(b, 1.0, "b")], "concat")
    for key, layer in result.adapter.layers.items():
        assert torch.equal(layer.down, torch.cat([a.layers[key].down, b.layers[key].down]))
        assert torch.equal(layer.up, torch.cat([a.layers[key].up, b.layers[key].up], 1))
        assert layer.scale == 1.0
    assert result.error < 1e-12


def test_a_text_encoder_can_have_its_own_strength(components: dict[str, nn.Module], make_adapter: MakeAdapter) -> None:
    a = make_adapter(components)
    result = merge([Term(a, 0.5, "a", text_strength=0.0)], "concat", dtype=torch.float32)
    for key, delta in deltas(result.adapter).items():
        expected = deltas(a)[key] * (0.5 if key.startswith("unet.") else 0.0)
        torch.testing.assert_close(delta, expected)


@pytest.mark.parametrize("key", ["unet.full", "unet.lokr_whole", "unet.loha_core"])
def test_concat_refuses_what_has_no_rank_rows(key: str) -> None:
    layers = {**layers_of_every_form(), "unet.lokr_whole": LoKr(torch.eye(4), torch.eye(8), 1.0)}
    adapter = Adapter({key: layers[key]}, {})
    with pytest.raises(AdapterFileError, match=rf"{key} of odd .* take --how svd"):
        merge([Term(adapter, 1.0, "odd")], "concat")


def test_svd_of_a_stack_of_every_form_is_exact_at_full_energy() -> None:
    a, b = adapter_of_every_form(0), adapter_of_every_form(1)
    terms = [Term(a, 0.8, "a"), Term(b, 0.5, "b")]
    stack = {key: 0.8 * delta + 0.5 * deltas(b)[key] for key, delta in deltas(a).items()}
    whole = merge(terms, "svd", cut=Cut(energy=1.0, per_layer=True), dtype=torch.float32)
    assert distance(whole.adapter, stack) < 1e-6


def test_svd_cuts_to_the_larger_rank_unless_told_otherwise() -> None:
    a, b = plain(0, rank=3), plain(1, rank=4)
    cut = merge([Term(a, 0.8, "a"), Term(b, 0.5, "b")], "svd", dtype=torch.float32)
    stack = {key: 0.8 * delta + 0.5 * deltas(b)[key] for key, delta in deltas(a).items()}
    assert {layer.rank for layer in cut.adapter.layers.values()} == {4}
    assert cut.error == pytest.approx(distance(cut.adapter, stack), rel=1e-3)
    assert cut.error > 0.1


def plain(seed: int, rank: int = 4, alpha: float = 4.0) -> Adapter:
    """Two plain layers, 24 -> 32 and 32 -> 24."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name, inputs, outputs in (("a", 24, 32), ("b", 32, 24)):
        down = torch.randn(rank, inputs, generator=generator)
        layers[f"unet.{name}"] = LowRank(down, torch.randn(outputs, rank, generator=generator), alpha)
    return Adapter(layers, {})


def peft_merge(
    adapters: list[Adapter], weights: list[float], how: str, density: float | None = None
) -> dict[str, Tensor]:
    """peft's own `add_weighted_adapter` on the same adapters."""
    from peft import LoraConfig, get_peft_model

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(24, 32), nn.Linear(32, 24)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    names = [f"n{index}" for index in range(len(adapters))]
    model = None
    for name, adapter in zip(names, adapters):
        layer = adapter.layers["unet.a"]
        config = LoraConfig(r=layer.rank, lora_alpha=layer.alpha, target_modules=["a", "b"])
        if model is None:
            model = get_peft_model(Model(), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
        for path in ("a", "b"):
            target = getattr(model.base_model.model, path)
            target.lora_A[name].weight.data.copy_(adapter.layers[f"unet.{path}"].down)
            target.lora_B[name].weight.data.copy_(adapter.layers[f"unet.{path}"].up)
    assert model is not None
    model.add_weighted_adapter(names, weights, "merged", combination_type=how, svd_rank=24, density=density)
    return {
        f"unet.{path}": getattr(model.base_model.model, path).get_delta_weight("merged").detach() for path in ("a", "b")
    }


@pytest.mark.parametrize(
    ("ours", "theirs", "weights"),
    [
        ("concat", "cat", [0.8, 0.5]),
        ("svd", "svd", [0.8, 0.5]),
        ("linear", "linear", [0.8, -0.5]),
        ("ties", "ties_svd", [1.0, 1.0]),
    ],
)
def test_merges_are_those_of_peft(ours: str, theirs: str, weights: list[float]) -> None:
    """An independent implementation. In ties only equal weights are the same: peft elects signs before it weights."""
    adapters = [plain(0, alpha=2.0), plain(1, alpha=4.0)]
    terms = [Term(adapter, weight, str(weight)) for adapter, weight in zip(adapters, weights)]
    cut = None if ours in ("concat", "linear") else Cut(rank=24)
    result = merge(terms, ours, cut=cut, density=0.4, dtype=torch.float32)
    expected = peft_merge(adapters, weights, theirs, 0.4 if ours == "ties" else None)
    assert distance(result.adapter, expected) < 1e-5


def test_linear_tells_its_cross_terms() -> None:
    """Adding the factors is not adding the deltas; at equal strengths half of the result is cross terms."""
    a, b = plain(0), plain(1)
    result = merge([Term(a, 0.5, "a"), Term(b, 0.5, "b")], "linear", dtype=torch.float32)
    stack = {key: 0.5 * delta + 0.5 * deltas(b)[key] for key, delta in deltas(a).items()}
    assert result.error == pytest.approx(distance(result.adapter, stack), rel=1e-4)
    assert result.error > 0.5


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ([Term(plain(0, 4), 1.0, "a"), Term(plain(0, 8), 1.0, "b")], "equal rank"),
        ([Term(Adapter({"unet.a": layers_of_every_form()["unet.loha"]}, {}), 1.0, "a")], "is a LoHa"),
    ],
)
def test_linear_refuses_what_it_cannot_add(terms: list[Term], words: str) -> None:
    with pytest.raises(AdapterFileError, match=words):
        merge(terms, "linear")


def test_ties_drops_small_entries_and_outvoted_signs() -> None:
    """By hand, on three numbers: small ones go, the larger sum of signs wins, those that agree are averaged."""
    a, b = torch.tensor([[4.0, 0.1, -3.0]]), torch.tensor([[2.0, 5.0, 1.0]])
    assert ties([a, b], 0.67).tolist() == [[3.0, 5.0, -3.0]]
    torch.testing.assert_close(ties([a, b], 1.0), torch.tensor([[3.0, 2.55, -3.0]]))
    assert ties([torch.ones(2, 2)], 0.5).tolist() == [[1.0, 1.0], [1.0, 1.0]], "equal entries share one fate"


def test_dare_keeps_the_expectation_and_depends_on_the_seed_alone() -> None:
    matrix = torch.ones(200, 200)
    one, again, other = (dare([matrix], 0.3, [torch.Generator().manual_seed(seed)]) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert float(one.mean()) == pytest.approx(1.0, abs=0.03)
    torch.testing.assert_close(one.unique(), torch.tensor([0.0, 1 / 0.3]))
    terms = [Term(plain(0), 1.0, "a"), Term(plain(1), 1.0, "b")]
    whole = merge(terms, "dare", cut=Cut(rank=24), density=0.5, seed=3, dtype=torch.float32)
    same = merge(terms, "dare", cut=Cut(rank=24), density=0.5, seed=3, dtype=torch.float32)
    assert whole.adapter.allclose(same.adapter)
    undropped = merge(terms, "dare", cut=Cut(rank=24), density=1.0, dtype=torch.float32)
    stack = {key: delta + deltas(terms[1].adapter)[key] for key, delta in deltas(terms[0].adapter).items()}
    assert distance(undropped.adapter, stack) < 1e-5


def test_adapters_of_different_models_are_not_added(
    components: dict[str, nn.Module], other_family: dict[str, nn.Module], make_adapter: MakeAdapter
) -> None:
    terms = [Term(make_adapter(components), 1.0, "a"), Term(make_adapter(other_family), 1.0, "b")]
    for how in ("concat", "svd", "linear", "ties", "dare"):
        with pytest.raises(AdapterFileError, match=r"a and b are for different models: .* 32 x 16 in the one and 32"):
            merge(terms, how)


def test_a_dora_is_not_added_without_its_base() -> None:
    layer = LowRank(torch.ones(1, 4), torch.ones(3, 1), 1.0, magnitude=torch.ones(3, 1))
    with pytest.raises(AdapterFileError, match="depend on the base: fold it"):
        merge([Term(Adapter({"unet.a": layer}, {}), 1.0, "a")], "concat")


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: Cut(),
        lambda: Cut(rank=0),
        lambda: Cut(energy=1.5),
        lambda: Cut(energy=float("nan")),
        lambda: merge([], "concat"),
        lambda: merge([Term(plain(0), float("nan"), "a")], "concat"),
        lambda: merge([Term(plain(0), 1.0, "a")], "ties", density=0.0),
    ],
)
def test_numbers_out_of_range_are_refused_in_a_sentence(attempt: Callable[[], object]) -> None:
    with pytest.raises(ConfigError) as caught:
        attempt()
    assert "\n" not in str(caught.value)


def test_biases_and_bases_are_spoken_of() -> None:
    full = Full(torch.ones(3, 4), torch.ones(3))
    terms = [
        Term(Adapter({"unet.a": full}, {"ss_sd_model_name": "one.safetensors"}), 1.0, "a"),
        Term(Adapter({"unet.a": full}, {"ss_sd_model_name": "two.safetensors"}), 1.0, "b"),
    ]
    notes = " ".join(merge(terms, "svd", cut=Cut(rank=1)).notes)
    with pytest.raises(ConfigError, match="none of these adapters has a rank"):
        merge(terms, "svd")
    assert "biases of 2 full layers" in notes
    assert "a on one.safetensors" in notes
    assert "b on two.safetensors" in notes


def test_metadata_says_where_an_adapter_comes_from() -> None:
    """Web UIs read the family and the tags from it; a resized file that lost them is hidden or filed wrongly."""
    common = {"ss_base_model_version": "sd_v1", "ss_network_module": "lycoris.kohya", "sshs_model_hash": "e3b0"}
    tags = {"ss_tag_frequency": '{"5_tk": {"girl": 3}}'}
    a = Adapter(plain(0).layers, {**common, **tags, "modelspec.trigger_phrase": "tk"})
    b = Adapter(plain(1).layers, {**common, "modelspec.trigger_phrase": "rbt", "ss_tag_frequency": "damaged"})
    resized = resize(a, Cut(rank=2)).adapter.metadata
    assert resized["ss_network_dim"] == "2"
    assert resized["ss_network_alpha"] == "2"
    assert resized["ss_network_module"] == "networks.lora"
    assert resized["modelspec.trigger_phrase"] == "tk"
    assert "sshs_model_hash" not in resized
    merged = merge([Term(a, 0.8, "a"), Term(b, 0.5, "b")], "concat").adapter
    assert merged.metadata["ss_base_model_version"] == "sd_v1"
    assert merged.metadata["modelspec.merged_from"] == "a:0.8, b:0.5"
    assert merged.metadata["modelspec.trigger_phrase"] == "tk, rbt"
    assert json.loads(merged.metadata["ss_tag_frequency"]) == {"5_tk": {"girl": 3}}


def test_a_difference_of_nearly_equal_deltas_keeps_its_digits() -> None:
    """Squared differences of Gram matrices would lose half of them: 1e-4 here."""
    layer = layers_of_every_form()["unet.linear_lora"]
    moved = LowRank(layer.down, layer.up * (1 + 1e-6), layer.alpha)
    gap = difference(delta_of(layer), delta_of(moved))
    assert gap == pytest.approx(float((layer.delta().double() - moved.delta().double()).norm()), rel=0.2)
