"""What XL alone has: two text encoders, a pooled text, empty prompts that are zeros, and sizes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusion_lora.config import parse_train_config
from diffusion_lora.data.sources import Item
from diffusion_lora.data.views import Shown, View
from diffusion_lora.errors import BaseModelError
from diffusion_lora.events import read_events
from diffusion_lora.families.family import (
    Conditioning,
    Model,
    Sizes,
    encode_ids,
    encode_text,
    load_base,
    predict,
    with_sizes,
)
from diffusion_lora.families.hub import needed_files
from diffusion_lora.families.source import locate
from diffusion_lora.layouts.layout import SD15, SDXL, layout_of_base
from diffusion_lora.run import Run
from diffusion_lora.train.draws import sizes_of
from diffusion_lora.train.trainer import train


@pytest.fixture(scope="module")
def model(miniature: Callable[[str], Path]) -> Model:
    return load_base(str(miniature("sdxl")), device="cpu")


def answer(model: Model, cond: Conditioning) -> torch.Tensor:
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).expand(len(cond), -1, -1, -1)
    with torch.no_grad():
        return predict(model, noisy, torch.tensor([500] * len(cond)), cond)


def test_an_empty_prompt_is_zeros_only_where_the_base_says_so(
    model: Model, miniature: Callable[[str], Path], tmp_path: Path
) -> None:
    with torch.no_grad():
        empty, full = (encode_text(model, [prompt, "a cat"])[0] for prompt in ("", "a"))
        assert not any(tensor.any() for tensor in empty.tensors.values())
        assert all(tensor.any() for tensor in full.tensors.values())
        other = Path(shutil.copytree(miniature("sdxl"), tmp_path / "other"))
        index = json.loads((other / "model_index.json").read_text())
        (other / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": False}))
        spoken = encode_text(load_base(str(other), device="cpu"), [""])
    assert all(tensor.any() for tensor in spoken.tensors.values())


def test_an_earlier_layer_is_read_as_diffusers_counts(model: Model, miniature: Callable[[str], Path]) -> None:
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(miniature("sdxl"), add_watermarker=False)
    ids = {
        part: tokenizer(["a cat"], padding="max_length", return_tensors="pt").input_ids
        for part, tokenizer in model.tokenizers.items()
    }
    with torch.no_grad():
        for skipped in (0, 1, 2):
            theirs = pipe.encode_prompt("a cat", device="cpu", do_classifier_free_guidance=False, clip_skip=skipped)
            for clip_skip in (1, 2) if skipped == 0 else (skipped + 2,):  # "Clip skip: 2" is what XL always reads
                ours = encode_ids(model, ids, clip_skip).tensors
                assert torch.equal(ours["hidden_BTC"], theirs[0])
                assert torch.equal(ours["pooled_BC"], theirs[2])


def test_gradients_reach_both_text_encoders(miniature: Callable[[str], Path]) -> None:
    model = load_base(str(miniature("sdxl")), device="cpu")
    weights = [
        encoder.get_submodule(start + "encoder.layers.0.mlp.fc1").weight
        for encoder, start in zip(model.text_encoders.values(), ("", "text_model."), strict=True)
    ]
    for weight in weights:
        weight.requires_grad_(True)
    cond = encode_text(model, ["a cat", ""])
    sum(tensor.square().sum() for tensor in cond.tensors.values()).backward()  # type: ignore[union-attr]
    assert all(weight.grad is not None and weight.grad.any() for weight in weights)


def test_sizes_matter_and_default_to_the_picture_that_is_drawn(model: Model) -> None:
    with torch.no_grad():
        cond = encode_text(model, ["a cat"])
    whole = Sizes((64, 64), (0, 0), (64, 64))
    assert torch.equal(answer(model, cond), answer(model, with_sizes(model, cond, [whole])))
    for other in (Sizes((32, 64), (0, 0), (64, 64)), Sizes((64, 64), (8, 0), (64, 64))):
        assert not torch.equal(answer(model, cond), answer(model, with_sizes(model, cond, [other])))
    rows = with_sizes(model, Conditioning.cat([cond, cond]), [whole, other])
    torch.testing.assert_close(answer(model, rows)[1:], answer(model, with_sizes(model, cond, [other])))


@pytest.mark.parametrize(
    ("size", "crop", "mirrored", "cut"),
    [
        ((300, 100), (0.5, 0.5), False, (0, 64)),  # 192 x 64 once scaled: 128 too wide
        ((300, 100), (0.25, 0.5), False, (0, 32)),
        ((300, 100), (0.25, 0.5), True, (0, 96)),  # what was cut on the right is now on the left
        ((50, 200), (0.5, 1.0), False, (192, 0)),
        ((64, 64), (0.5, 0.5), True, (0, 0)),
    ],
)
def test_training_tells_what_was_done_to_a_picture(
    size: tuple[int, int], crop: tuple[float, float], mirrored: bool, cut: tuple[int, int]
) -> None:
    shown = Shown(Item(Path("x.png"), size=size), "", "", View((64, 64), mirrored, crop))
    assert sizes_of(shown) == Sizes((size[1], size[0]), cut, (64, 64))


def test_of_a_repository_both_encoders_and_tokenizers_are_fetched() -> None:
    from huggingface_hub.hf_api import RepoSibling

    wanted = [
        "model_index.json", "scheduler/scheduler_config.json", "tokenizer/merges.txt", "tokenizer_2/merges.txt",
        "tokenizer_2/tokenizer_config.json", "text_encoder_2/config.json", "text_encoder_2/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    others = [
        "sd_xl_base_1.0.safetensors", "text_encoder_2/model.onnx", "text_encoder_2/model.fp16.safetensors",
        "vae_1_0/diffusion_pytorch_model.safetensors", "vae_decoder/config.json", "unet/openvino_model.bin",
    ]  # fmt: skip
    files = needed_files([RepoSibling(rfilename=name, size=1) for name in [*wanted, *others]])
    assert sorted(files) == sorted(wanted)


def test_an_incomplete_folder_names_what_is_missing(miniature: Callable[[str], Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(miniature("sdxl"), tmp_path / "copy"))
    (copy / "text_encoder_2/model.safetensors").unlink()
    with pytest.raises(BaseModelError, match=r"text_encoder_2/\*\.safetensors .* is missing"):
        locate(str(copy))
    shutil.rmtree(copy / "tokenizer_2")
    with pytest.raises(BaseModelError, match=r"tokenizer_2/tokenizer_config\.json is missing"):
        locate(str(copy))


@pytest.mark.parametrize(
    ("pipeline", "reason"),
    [
        ("StableDiffusionXLImg2ImgPipeline", "a refiner, which does not draw by itself"),
        ("StableDiffusionInpaintPipeline", "an inpainting model, whose UNet also reads a mask"),
        ("StableDiffusion3Pipeline", "is a StableDiffusion3Pipeline; this version serves pocket, Stable Diffusion 1"),
    ],
)
def test_folders_of_other_models_are_refused_with_the_reason(
    pipeline: str, reason: str, miniature: Callable[[str], Path], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(miniature("sdxl"), tmp_path / "copy"))
    (copy / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    with pytest.raises(BaseModelError, match=reason):
        locate(str(copy))


def test_a_folder_whose_unet_reads_a_mask_is_refused(miniature: Callable[[str], Path], tmp_path: Path) -> None:
    """Some inpainting models are published under the plain pipeline's name."""
    from safetensors.torch import load_file, save_file

    copy = Path(shutil.copytree(miniature("sd15"), tmp_path / "copy"))
    config, file = copy / "unet/config.json", copy / "unet/diffusion_pytorch_model.safetensors"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"in_channels": 9}))
    tensors = load_file(file)
    tensors["conv_in.weight"] = torch.zeros(32, 9, 3, 3)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(BaseModelError, match="reads 9 channels and its autoencoder gives 4: inpainting"):
        load_base(str(copy), device="cpu")


@pytest.mark.parametrize(("kind", "matters"), [("sdxl", True), ("sd15", False)])
def test_the_trainer_tells_the_base_how_large_a_picture_was(
    kind: str, matters: bool, miniature: Callable[[str], Path], tmp_path: Path
) -> None:
    """An even grey is the same picture at any size: only what is told of it differs."""
    losses = []
    for side in (64, 128):
        folder = tmp_path / str(side)
        folder.mkdir()
        Image.new("RGB", (side, side), "grey").save(folder / "grey.png")
        text = f"""
            [model]
            base = '{miniature(kind)}'
            [dataset]
            path = '{folder}'
            caption = "grey"
            size_px = 64
            [lora]
            text_targets = "none"
            [train]
            steps = 1
            batch_size = 2
            precision = "fp32"
            device = "cpu"
            threads = 1
            checkpointing = "on"
        """
        config = parse_train_config(text, source="test")
        run = Run.create(tmp_path / f"run-{side}", config)
        train(run, config)
        losses += [event["loss"] for event in read_events(run.folder) if event["kind"] == "step"]
    assert (losses[0] != losses[1]) == matters


def test_a_layout_is_that_of_the_parts_whatever_the_width() -> None:
    assert layout_of_base("sdxl", 2048) is SDXL
    assert layout_of_base("sd", 768) is SD15
    assert layout_of_base("sdxl", 768).title == "a Stable Diffusion XL of width 768"
    assert layout_of_base("sd", 2048).kohya_base == "sd_v1", "2048 does not make an XL of what has one encoder"
    velocity = layout_of_base("sd", 1024, "v_prediction")
    assert (velocity.kohya_base, velocity.modelspec) == ("sd_v2_v", "stable-diffusion-v2-768-v")
    assert layout_of_base("sdxl", 2048, "v_prediction") is SDXL
