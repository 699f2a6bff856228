"""Our file in somebody else's program: diffusers loads it and computes what we compute."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from diffusion_lora.lora.adapter import Adapter, write_adapter
from diffusion_lora.lora.bank import AdapterBank


@pytest.mark.parametrize("targets", ["attention", "qv", "wide"])
def test_diffusers_loads_our_file_and_predicts_the_same(
    components: dict[str, nn.Module],
    make_adapter: Callable[..., Adapter],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    targets: str,
) -> None:
    """Every preset, alpha other than the rank, text encoder included: a key diffusers did not know would be skipped
    with no more than a log line, and an alpha it did not find would change the strength."""
    from diffusers import StableDiffusionPipeline

    adapter = make_adapter(components, rank=4, alpha=2.5, targets=targets, size=0.2)
    latents, ids = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(18).view(2, 9)

    def predict() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            text = components["te"](ids).last_hidden_state
            return text, components["unet"](latents, torch.tensor([400, 600]), text).sample

    base = predict()
    bank = AdapterBank(components, "tiny")
    bank.load("ours", adapter)
    with bank.mix({"ours": 0.8}):
        ours = predict()
    bank.unload("ours")

    write_adapter(adapter, tmp_path / "ours.safetensors", "fp32")
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
    assert "ours" in pipeline.get_list_adapters()["unet"]
    assert not [record for record in caplog.records if "keys" in record.getMessage()]
    theirs = predict()
    for mine, other, plain in zip(ours, theirs, base, strict=True):
        assert (mine - other).abs().max() < 1e-5 * mine.abs().max()
        assert (mine - plain).abs().max() > 1e-2, "the adapter acts"
