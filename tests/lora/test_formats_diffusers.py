"""Our files of mixed ranks and alphas in somebody else's program, in both forms; LyCORIS's forms as peft has them."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from diffusion_lora.lora.adapter import Adapter, AdapterLayer, LoHa, LoKr, read_adapter, write_adapter
from diffusion_lora.lora.bank import AdapterBank

MakeAdapter = Callable[..., Adapter]


def mixed(adapter: Adapter) -> Adapter:
    """Every second layer at half the rank, every third at another alpha."""
    layers = {}
    for number, (key, layer) in enumerate(adapter.layers.items()):
        assert isinstance(layer, AdapterLayer)
        rank = layer.rank // (2 if number % 2 else 1)
        alpha = 0.7 if number % 3 == 0 else layer.alpha
        layers[key] = AdapterLayer(layer.down[:rank], layer.up[:, :rank], alpha)
    return Adapter(layers, {})


@pytest.mark.parametrize("form", ["kohya", "peft"])
@pytest.mark.parametrize("targets", ["attention", "wide"])
def test_diffusers_draws_with_our_file_as_we_do_whatever_its_ranks_and_alphas(
    components: dict[str, nn.Module],
    make_adapter: MakeAdapter,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    targets: str,
    form: str,
) -> None:
    """diffusers finds no alphas of attention layers that differ from the commonest, and says nothing of it."""
    from diffusers import StableDiffusionPipeline

    adapter = mixed(make_adapter(components, rank=4, alpha=2.5, targets=targets, size=0.2))
    latents, ids = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(18).view(2, 9)

    def predict() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            text = components["te"](ids).last_hidden_state
            return text, components["unet"](latents, torch.tensor([400, 600]), text).sample

    bank = AdapterBank(components, "tiny")
    bank.load("ours", adapter)
    with bank.mix({"ours": 0.8}):
        ours = predict()
    bank.unload("ours")

    write_adapter(adapter, tmp_path / "ours.safetensors", "fp32", form)
    pipeline = StableDiffusionPipeline(
        vae=None,
        text_encoder=components["te"],
        tokenizer=None,
        unet=components["unet"],
        scheduler=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with caplog.at_level(logging.WARNING, logger="diffusers"):
        pipeline.load_lora_weights(tmp_path / "ours.safetensors", adapter_name="ours")
    pipeline.set_adapters(["ours"], [0.8])
    assert not [record for record in caplog.records if "keys" in record.getMessage()]
    for mine, other in zip(ours, predict(), strict=True):
        assert (mine - other).abs().max() < 1e-5 * mine.abs().max()


def test_a_file_that_diffusers_saved_is_read_with_its_alpha(components: dict[str, nn.Module], tmp_path: Path) -> None:
    """Its own writer and its own settings in the header: rank-stabilised, alpha other than the rank."""
    from diffusers import StableDiffusionPipeline
    from diffusers.training_utils import _collate_lora_metadata
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    unet = components["unet"]
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=targets, init_lora_weights=False))
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(unet)),
        **_collate_lora_metadata({"unet": unet}),
    )
    adapter = read_adapter(tmp_path / "pytorch_lora_weights.safetensors")
    assert adapter.unread == {}
    wanted = {
        f"unet.{path.replace('.', '_')}": module.get_delta_weight("default")
        for path, module in unet.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert adapter.layers.keys() == wanted.keys()
    for key, layer in adapter.layers.items():
        torch.testing.assert_close(layer.delta(), wanted[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("convolution", [False, True])
@pytest.mark.parametrize("tucker", [False, True])
@pytest.mark.parametrize("form", ["loha", "lokr", "lokr, both factored"])
def test_pefts_own_lycoris_layers_have_our_deltas(form: str, convolution: bool, tucker: bool) -> None:
    """Another implementation of the same papers."""
    from peft import LoHaConfig, LoKrConfig, get_peft_model

    torch.manual_seed(0)
    layer = nn.Conv2d(12, 16, 3) if convolution else nn.Linear(12, 16)
    settings = {"r": 2, "alpha": 3, "target_modules": ["0"], "init_weights": False}
    if form == "loha":
        config = LoHaConfig(**settings, use_effective_conv2d=tucker)
    else:
        both = form.endswith("factored")
        config = LoKrConfig(**settings, use_effective_conv2d=tucker, decompose_both=both, decompose_factor=4)
    theirs = get_peft_model(nn.Sequential(layer), config).base_model.model[0]
    factors = {
        name.split(".")[0].removeprefix("hada_").removeprefix("lokr_"): parameter.detach()
        for name, parameter in theirs.named_parameters()
        if "base" not in name
    }
    if form == "loha":
        a, b, c, d = (factors[name] for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
        ours: LoHa | LoKr = LoHa(a, b, c, d, 3, factors.get("t1"), factors.get("t2"))
    else:
        w1, w2 = (
            factors[name] if name in factors else (factors[f"{name}_a"], factors[f"{name}_b"]) for name in ("w1", "w2")
        )
        ours = LoKr(w1, w2, 3, factors.get("t2"))
    wanted = theirs.get_delta_weight("default").detach()
    if ours.rank is None:  # nothing is factored: peft scales it by alpha / r all the same, LyCORIS does not
        wanted = wanted / 1.5
    torch.testing.assert_close(ours.delta(layer.weight), wanted, rtol=1e-5, atol=1e-6)
