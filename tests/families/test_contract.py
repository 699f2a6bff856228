"""What holds for every family alike: pocket, and a miniature of each layout as a folder and as a single file.

Load, encode, inject at zero = the base, train by the real trainer, save, reload, draw.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lora.config import TrainConfig, parse_train_config
from diffusion_lora.diffusion.objective import target
from diffusion_lora.diffusion.schedule import NoiseSchedule
from diffusion_lora.families.family import Conditioning, Model, encode_image, encode_text, load_base, predict, tokens
from diffusion_lora.generate.engine import Engine
from diffusion_lora.generate.request import LoraUse, Request
from diffusion_lora.lora.adapter import read_adapter
from diffusion_lora.lora.bank import AdapterBank
from diffusion_lora.run import Run
from diffusion_lora.train.trainer import train

BASES = ("pocket", "sd15", "sd2", "sd2-v", "sdxl", "sdxl-v file")
PROMPTS = ("a red cat", "a blue house")


@pytest.fixture(scope="module", params=BASES)
def base(request: pytest.FixtureRequest, miniature: Callable[[str], Path], checkpoint: Callable[[str], Path]) -> str:
    kind, _, file = request.param.partition(" ")
    return "pocket" if kind == "pocket" else str(checkpoint(kind) if file else miniature(kind))


@pytest.fixture(scope="module")
def model(base: str) -> Model:
    return load_base(base, device="cpu")


def answer(model: Model, cond: Conditioning, timestep: int = 500) -> torch.Tensor:
    noisy = torch.randn(len(cond), *model.latent_shape(64, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return predict(model, noisy, torch.tensor([timestep] * len(cond)), cond)


def test_prompts_are_encoded_and_matter(model: Model) -> None:
    with torch.no_grad():
        cond = encode_text(model, PROMPTS)
        again = encode_text(model, PROMPTS[1:])
    assert len(cond) == 2
    first, second = answer(model, cond)
    assert not torch.equal(first, second)
    for name, tensor in again.tensors.items():
        torch.testing.assert_close(tensor[0], cond.tensors[name][1], rtol=1e-4, atol=1e-5)
    assert tokens(model, "") == 0
    assert 0 < tokens(model, PROMPTS[0]) < model.max_tokens == 75


def test_a_fresh_adapter_changes_no_bit(model: Model) -> None:
    with torch.no_grad():
        before = encode_text(model, PROMPTS)
        plain = answer(model, before)
        bank = AdapterBank(model.components, model.layout.title)
        bank.add_trainable("new", 4, 4.0, "everything", "attention+mlp")
        assert set(model.components) == {site.split(".")[0] for site in bank.export("new").layers}
        with bank.mix({"new": 1.0}):
            after = encode_text(model, PROMPTS)
            assert torch.equal(answer(model, after), plain)
        bank.unload("new")
    assert all(torch.equal(tensor, before.tensors[name]) for name, tensor in after.tensors.items())


def picture(number: int) -> torch.Tensor:
    """One of two of 64 px, [3, H, W] in 0 ... 255: dark to light, and dark to grey."""
    return torch.linspace(0, 255 - 100 * number, 64 * 64 * 3).reshape(64, 64, 3).permute(2, 0, 1)


@pytest.fixture
def config(base: str, tmp_path: Path) -> TrainConfig:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, prompt in enumerate(PROMPTS):
        x_HWC = picture(number).permute(1, 2, 0).to(torch.uint8).numpy()
        Image.fromarray(x_HWC).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(prompt, encoding="utf-8")
    text = f"""
        [model]
        base = '{base}'
        [dataset]
        path = '{folder}'
        size_px = 64
        [lora]
        rank = 4
        alpha = 4.0
        [train]
        steps = 10
        batch_size = 8
        precision = "fp32"
        device = "cpu"
        threads = 1
        [optimizer]
        name = "adamw"
        lr = 3e-3
        text_lr = 1e-4
        [loss]
        min_snr_gamma = 0
    """
    return parse_train_config(text, source="test")


def test_a_few_steps_lower_the_loss_and_the_file_draws(model: Model, config: TrainConfig, tmp_path: Path) -> None:
    file = train(Run.create(tmp_path / "run", config), config)
    adapter = read_adapter(file)
    assert set(adapter.components) == set(model.components), "UNet and every text encoder are trained"
    assert adapter.metadata["ss_base_model_version"] == model.layout.kohya_base
    assert adapter.metadata["ss_new_sd_model_hash"] == model.weights_hash

    bank = AdapterBank(model.components, model.layout.title, base_hash=model.weights_hash)
    assert bank.load("trained", adapter) == ()
    before, after = (_loss(model, bank, strength) for strength in (0.0, 1.0))
    assert after < before, "on other noise than it was trained with"
    bank.unload("trained")

    use = LoraUse("trained", file)
    requests = [Request(PROMPTS[0], seed=1, steps=2, width=64, height=64, loras=loras) for loras in ((), (use,))]
    plain, drawn = (np.asarray(picture.image).astype(int) for picture in Engine(model).draw(requests))
    assert drawn.shape == (64, 64, 3)
    assert np.abs(plain - drawn).mean() > 0.1, "the adapter acts"


def _loss(model: Model, bank: AdapterBank, strength: float) -> float:
    """Of the pictures it was trained on, over all noise levels."""
    schedule = NoiseSchedule.from_config(model.scheduler_config)
    generator = torch.Generator().manual_seed(5)
    timesteps = torch.arange(20, schedule.timesteps, 70)
    noise = torch.randn(len(timesteps), *model.latent_shape(64, 64), generator=generator)
    latents, _ = encode_image(model, torch.stack([picture(number) / 127.5 - 1 for number in range(2)]))
    x0 = latents.repeat(len(timesteps) // 2, 1, 1, 1)
    with torch.no_grad(), bank.mix({"trained": strength}):
        cond = encode_text(model, PROMPTS * (len(timesteps) // 2))
        prediction: Any = predict(model, schedule.add_noise(x0, noise, timesteps), timesteps, cond)
    return float(torch.nn.functional.mse_loss(prediction, target(schedule, x0, noise, timesteps)))
