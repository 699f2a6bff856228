"""One effective rate in the words of every trainer."""

import math

import pytest

from diffusion_lora.lora.scale import OTHERS, OURS, Setting, equal_settings


@pytest.mark.parametrize(
    "setting", [Setting(16, 8, 1e-4), Setting(4, 1, 3e-4), Setting(32, 32, 1e-4), Setting(64, 8, 1e-4, rs=True)]
)
def test_every_equal_setting_has_the_same_effective_rate(setting: Setting) -> None:
    """Told wrongly, a user who moves from one tool to another is off by up to the rank."""
    equals = equal_settings(setting)
    assert [equal.trainer for equal in equals] == [OURS.name, *(trainer.name for trainer in OTHERS)]
    for equal in equals:
        assert equal.rank == setting.rank
        assert equal.learning_rate * equal.alpha / equal.rank == pytest.approx(setting.effective_rate)
        assert equal.default_rate * equal.default_alpha / equal.rank == pytest.approx(setting.effective_rate)
        assert equal.scale == equal.alpha / equal.rank


def test_the_defaults_are_those_of_the_trainers() -> None:
    """kohya and OneTrainer take alpha 1, so their rate is 16 times ours at rank 16; diffusers knows no other alpha."""
    by_name = {equal.trainer: equal for equal in equal_settings(Setting(16, 16, 1e-4))}
    assert by_name["kohya"].default_rate == pytest.approx(16e-4)
    assert by_name["OneTrainer"].default_rate == pytest.approx(16e-4)
    assert by_name["ai-toolkit"].default_rate == pytest.approx(1e-4)
    halved = {equal.trainer: equal for equal in equal_settings(Setting(16, 8, 1e-4))}["diffusers"]
    assert (halved.alpha, halved.learning_rate) == (16, pytest.approx(0.5e-4))


def test_the_start_of_down_is_that_of_the_libraries() -> None:
    """Root mean squares of what torch's and peft's own initialisations draw."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch import nn

    torch.manual_seed(0)
    expected = {equal.trainer: equal.first_steps for equal in equal_settings(Setting(8, 8, 1e-4), inputs=512)}
    kaiming = torch.empty(64, 512)
    nn.init.kaiming_uniform_(kaiming, a=math.sqrt(5))
    ours = 512**-0.5
    assert float(kaiming.square().mean().sqrt()) / ours == pytest.approx(expected["kohya"], rel=0.02)
    model = get_peft_model(
        nn.Sequential(nn.Linear(512, 4)), LoraConfig(r=8, target_modules=["0"], init_lora_weights="gaussian")
    )
    down = next(tensor for name, tensor in model.named_parameters() if "lora_A" in name)
    assert float(down.square().mean().sqrt()) / ours == pytest.approx(expected["diffusers"], rel=0.05)


@pytest.mark.parametrize("wrong", [(0, 1.0, 1e-4), (4, 0.0, 1e-4), (4, 1.0, -1e-4), (4, float("nan"), 1e-4)])
def test_nonsense_is_refused(wrong: tuple[int, float, float]) -> None:
    with pytest.raises(ValueError, match="above zero"):
        Setting(*wrong)
