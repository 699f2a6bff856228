"""The strength that suits: found without a threshold, folded exactly, said in the file and beside it, kept."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffusion_lora.config import TrainConfig, parse_train_config, to_toml
from diffusion_lora.errors import AdapterFileError, ConfigError
from diffusion_lora.events import read_events
from diffusion_lora.families.family import Model, encode_text, load_base, predict
from diffusion_lora.lora.adapter import Adapter, read_adapter, write_adapter
from diffusion_lora.lora.algebra import resize
from diffusion_lora.lora.bank import AdapterBank
from diffusion_lora.lora.calibrated import KEY, calibrated_strength, note_calibration
from diffusion_lora.lora.card import read_card
from diffusion_lora.lora.header import read_header
from diffusion_lora.lora.plain import Cut
from diffusion_lora.lora.strength import at_strength
from diffusion_lora.lora.weights import Full, LoHa, LoKr, LowRank
from diffusion_lora.run import Run
from diffusion_lora.sidecar import read_notes
from diffusion_lora.train.calibrate import Look, _climb, _common_shift, calibrate, prompts_for
from diffusion_lora.train.trainer import train


def changed(config: TrainConfig, *settings: str) -> TrainConfig:
    return parse_train_config(to_toml(config), source="test", overrides=settings)


@pytest.fixture
def trained(config: TrainConfig, tmp_path: Path) -> Path:
    """An adapter that does something, of alpha 3."""
    strong = changed(config, "train.steps=4", "optimizer.lr=0.05", "optimizer.warmup_steps=0", "lora.alpha=3.0",
                     "output.trigger_word=zib", "output.dtype=fp32")  # fmt: skip
    return train(Run.create(tmp_path / "run", strong), strong)


@torch.no_grad()
def answer(model: Model, adapter: Adapter, strength: float) -> torch.Tensor:
    bank = AdapterBank(model.components, "tiny")
    bank.load("a", adapter)
    with bank.mix({"a": strength}):
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        found = predict(model, x, torch.tensor([500]), encode_text(model, ["a red thing"]))
    bank.unload("a")
    return found


def test_strength_one_of_the_folded_file_is_the_one_that_was_folded(base: Path, trained: Path, tmp_path: Path) -> None:
    model, adapter = load_base(str(base), device="cpu"), read_adapter(trained)
    folded = at_strength(adapter, 0.7)
    write_adapter(folded, tmp_path / "folded.safetensors", None)
    again = read_adapter(tmp_path / "folded.safetensors")
    assert again.alpha == pytest.approx(2.1)
    assert again.metadata["ss_network_alpha"] == str(3.0 * 0.7)
    wanted = answer(model, adapter, 0.7)
    assert (wanted - answer(model, adapter, 1.0)).abs().max() > 0.01, "the strength makes no difference here"
    torch.testing.assert_close(answer(model, again, 1.0), wanted, rtol=1e-5, atol=1e-5)
    for key, layer in adapter.layers.items():
        assert torch.equal(layer.tensors()["lora_up.weight"], again.layers[key].tensors()["lora_up.weight"])


def test_every_form_of_layer_takes_a_strength_but_dora() -> None:
    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))

    layers = {
        "unet.a": LowRank(some(2, 6), some(4, 2), 3.0),
        "unet.b": LowRank(some(2, 6), some(4, 2), 3.0, rs=True),
        "unet.c": LoHa(some(4, 2), some(2, 6), some(4, 2), some(2, 6), 5.0),
        "unet.d": LoKr(some(2, 3), some(2, 2), 7.0),
        "unet.e": LoKr((some(2, 1), some(1, 3)), some(2, 2), 7.0),
        "unet.f": Full(some(4, 6).half(), some(4).half()),
    }
    folded = at_strength(Adapter(layers, {}), 0.35)
    for key, layer in layers.items():
        torch.testing.assert_close(folded.layers[key].delta(), 0.35 * layer.delta(), rtol=1e-6, atol=1e-7)
    assert folded.layers["unet.f"].tensors()["diff_b"].dtype == torch.float32
    dora = replace(layers["unet.a"], magnitude=torch.ones(4, 1))
    with pytest.raises(AdapterFileError, match="cannot be folded into DoRA layers"):
        at_strength(Adapter({"unet.a": dora}, {}), 0.35)


def test_the_note_is_in_the_header_and_beside_it_and_other_operations_keep_it(trained: Path, tmp_path: Path) -> None:
    before = read_header(trained)
    (trained.with_suffix(".json")).write_text('{"notes": "mine"}', encoding="utf-8")
    note_calibration(trained, {"strength": 0.8, "base": "0"})
    after = read_header(trained)
    assert {key: value for key, value in after.metadata.items() if key != KEY} == before.metadata
    assert read_adapter(trained).metadata["sshs_model_hash"] == before.metadata["sshs_model_hash"]
    notes = read_notes(trained)
    assert (notes.preferred_weight, notes.notes) == (0.8, "mine")
    assert read_card(trained, "trained").preferred_weight == 0.8
    write_adapter(read_adapter(trained), tmp_path / "peft.safetensors", None, "peft")
    write_adapter(resize(read_adapter(trained), Cut(rank=2)).adapter, tmp_path / "small.safetensors", None)
    for name in ("peft.safetensors", "small.safetensors"):
        assert calibrated_strength(read_header(tmp_path / name).metadata) == 0.8, name
    for nonsense in ("[]", "no", '{"strength": "1"}', '{"strength": NaN}', '{"strength": true}'):
        assert calibrated_strength({KEY: nonsense}) == 0.0


def test_the_climb_finds_the_top_and_twice_the_alpha_is_half_the_strength() -> None:
    def looked(best: float) -> tuple[list[Look], float]:
        # Saturating effect, falling content: the product has one top, where the strength is about `best`.
        return _climb(lambda s: Look(s, s / (s + best), best / (s + best)), lambda done, total: None)

    tops = {}
    for best in (0.32, 0.64, 1.0, 1.28):
        looks, tops[best] = looked(best)
        assert tops[best] == pytest.approx(best, rel=0.02)
        assert 5 <= len(looks) <= 8
    assert tops[0.64] / tops[0.32] == pytest.approx(2, rel=0.02)
    weak, strength = looked(100.0)
    assert strength == max(look.strength for look in weak) > 3


def test_the_effect_is_what_all_pictures_have_in_common() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(12, 3, 8, 16, generator=generator)
    noise = torch.randn(12, 3, 8, 16, generator=generator)
    assert _common_shift(base + noise, base) < 0.15
    together = _common_shift(base + 2.0 + noise, base)
    assert together == pytest.approx(2.0, rel=0.15)  # in spreads of the base's own pictures


def test_prompts_hold_the_trigger_word_as_the_captions_did(base: Path) -> None:
    model = load_base(str(base), device="cpu")
    style = {"modelspec.trigger_phrase": "ink", "ss_tag_frequency": json.dumps({"a": {"ink": 3, "a cat in ink": 2}})}
    assert prompts_for(model, style, 2) == ("a cat on a sofa, ink", "a red car in a street, ink")
    captions = {f"a zib on {place}": 1 for place in ("sand", "snow", "grass", "stone", "wood")}
    subject = {"modelspec.trigger_phrase": "Zib", "ss_tag_frequency": json.dumps({"a": captions})}
    assert prompts_for(model, subject, 4) == tuple(captions)[:4]
    assert prompts_for(model, {}, 1) == ("a cat on a sofa",)
    pocket = load_base("pocket", device="cpu")
    things = prompts_for(pocket, style, 24)
    assert len(set(things)) == 24
    assert things[0] == "a red tree on a sky background, ink"


def test_a_run_tells_it_and_folds_it_on_request(config: TrainConfig, tmp_path: Path) -> None:
    settings = ["train.steps=4", "optimizer.lr=0.05", "optimizer.warmup_steps=0", "output.dtype=fp32",
                "calibration.pictures=4", "calibration.steps=2"]  # fmt: skip
    found = {}
    for mode in ("tell", "fold"):
        run = Run.create(tmp_path / mode, changed(config, *settings, f"calibration.mode={mode}"))
        train(run, run.config)
        event = next(event for event in read_events(run.folder) if event["kind"] == "calibration")
        assert event["text"].startswith(f"strength {event['strength']:.2f}")
        assert event["folded"] == (mode == "fold")
        assert len(event["looks"]) >= 5
        found[mode] = (event["strength"], read_adapter(run.adapter_path), read_notes(run.adapter_path).preferred_weight)
    (told, plain, weight), (again, folded, one) = found["tell"], found["fold"]
    assert (told, weight, one) == (again, told, 1.0), "the same training did not lead to the same strength"
    assert calibrated_strength(plain.metadata) == told
    assert calibrated_strength(folded.metadata) == 1.0
    assert folded.alpha == pytest.approx(plain.alpha * told)


def test_what_moves_nothing_and_too_few_prompts_are_refused_and_leave_no_trace(base: Path, trained: Path) -> None:
    model, adapter = load_base(str(base), device="cpu"), read_adapter(trained)
    bank = AdapterBank(model.components, "tiny")
    before = {name: value.clone() for name, value in model.unet.state_dict().items()}
    with pytest.raises(ConfigError, match="2 prompts are too few"):
        calibrate(model, bank, adapter, prompts=["a", "b"])
    still = {key: replace(layer, up=torch.zeros_like(layer.up)) for key, layer in adapter.layers.items()}
    with pytest.raises(AdapterFileError, match="moves the pictures of these prompts nowhere"):
        calibrate(model, bank, Adapter(still, {}), pictures=4, steps=1)
    assert bank.names == ()
    after = model.unet.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
