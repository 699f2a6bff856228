"""The verbs: what they return, and that they agree with diffusers' own pipeline."""

from pathlib import Path

import pytest
import torch

from diffusion_lora.families.family import (
    Conditioning,
    Model,
    decode,
    encode_image,
    encode_text,
    load_base,
    predict,
    tokens,
)


@pytest.fixture(scope="module")
def model(sd_folder: Path) -> Model:
    return load_base(str(sd_folder), device="cpu")


def test_a_conditioning_is_indexed_and_joined_without_knowing_its_tensors() -> None:
    cond = Conditioning({"a": torch.arange(6.0).reshape(3, 2), "b": torch.arange(3.0)})
    assert len(cond) == 3
    assert cond[1].tensors["a"].tolist() == [[2, 3]]
    assert cond[1:].tensors["b"].tolist() == [1, 2]
    assert cond[[2, 0]].tensors["b"].tolist() == [2, 0]
    assert cond[torch.tensor([True, False, True])].tensors["b"].tolist() == [0, 2]
    assert Conditioning.cat([cond, cond[0]]).tensors["b"].tolist() == [0, 1, 2, 0]
    assert cond.to(torch.float64).tensors["a"].dtype == torch.float64


def test_text_is_encoded_as_diffusers_does(model: Model, sd_folder: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(sd_folder, safety_checker=None)
    prompts = ["a red cat", "", "word " * 200]
    theirs, _ = pipe.encode_prompt(prompts, torch.device("cpu"), 1, False)
    with torch.no_grad():
        ours = encode_text(model, prompts)
    assert torch.equal(ours.tensors["hidden_BTC"], theirs)


def test_tokens_are_counted_without_start_and_end(model: Model) -> None:
    assert tokens(model, "") == 0
    assert tokens(model, "cat") == 3
    assert tokens(model, "cat " * 100) == 300


def test_a_picture_is_encoded_to_scaled_latents_and_decoded_back_to_the_unit_range(model: Model) -> None:
    x_BCHW = torch.rand(2, 3, 64, 48) * 2 - 1
    mean, std = encode_image(model, x_BCHW)
    assert mean.shape == std.shape == (2, 4, 8, 6)
    assert (std > 0).all()
    posterior = model.vae.encode(x_BCHW).latent_dist
    torch.testing.assert_close(mean, posterior.mean * 0.18215)
    torch.testing.assert_close(std, posterior.std * 0.18215)
    picture = decode(model, mean)
    assert picture.shape == (2, 3, 64, 48)
    assert 0 <= picture.min() <= picture.max() <= 1
    assert not picture.requires_grad


def test_prediction_has_the_shape_of_the_latents_and_lets_gradients_through(model: Model) -> None:
    noisy = torch.randn(2, 4, 8, 8, requires_grad=True)
    out = predict(model, noisy, torch.tensor([3, 900]), encode_text(model, ["a", "b"]))
    assert out.shape == noisy.shape
    out.sum().backward()
    assert noisy.grad is not None


def test_text_gradients_reach_the_encoder_when_it_is_unfrozen(sd_folder: Path) -> None:
    model = load_base(str(sd_folder), device="cpu")
    weight = next(model.text_encoders["te"].parameters()).requires_grad_()
    encode_text(model, ["a cat"]).tensors["hidden_BTC"].sum().backward()
    assert weight.grad is not None
