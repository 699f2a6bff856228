"""pocket as it ships, and two adapters on it whose matrices are random: the mathematics needs no training."""

import os

import pytest
import torch

from diffusion_lora.families.family import Model, load_base
from diffusion_lora.generate.engine import Engine
from diffusion_lora.generate.request import LoraUse
from diffusion_lora.lora.adapter import Adapter, AdapterLayer, write_adapter
from diffusion_lora.lora.bank import AdapterBank

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def model() -> Model:
    return load_base("pocket", device="cpu")


@pytest.fixture(scope="session")
def engine(model: Model) -> Engine:
    return Engine(model)


def random_adapter(rank: int, seed: int) -> Adapter:
    """An adapter on attention of UNet and text encoder that changes pictures visibly; alpha differs from the rank."""
    fresh = load_base("pocket", device="cpu")
    trainable = AdapterBank(fresh.components, "pocket").add_trainable("new", rank, rank / 2, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    layers = {
        key: AdapterLayer(layer.down, torch.randn(layer.up.shape, generator=generator) * 0.1, layer.alpha)
        for key, layer in trainable.adapter().layers.items()
    }
    return Adapter(layers, {})


@pytest.fixture(scope="session")
def style(tmp_path_factory: pytest.TempPathFactory) -> LoraUse:
    path = tmp_path_factory.mktemp("loras") / "style.safetensors"
    write_adapter(random_adapter(4, 1), path, dtype="fp32")
    return LoraUse("style", path)


@pytest.fixture(scope="session")
def hero(tmp_path_factory: pytest.TempPathFactory) -> LoraUse:
    path = tmp_path_factory.mktemp("loras") / "hero.safetensors"
    write_adapter(random_adapter(2, 2), path, dtype="fp32")
    return LoraUse("hero", path)
