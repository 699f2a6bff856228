"""A base as one checkpoint file: what its folder is, known by its header, refused in words if it is something else."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusion_lora.errors import BaseModelError
from diffusion_lora.families.family import Model, encode_text, load_base, predict
from diffusion_lora.families.original import recognise
from diffusion_lora.families.reading import base_size, load_base_tokenizer
from diffusion_lora.generate.engine import Engine
from diffusion_lora.generate.request import Request
from diffusion_lora.lora.header import read_header
from tests.families.miniatures import write_checkpoint, write_tokenizer

FIRST = "model.diffusion_model.input_blocks.0.0.weight"
ONE = torch.zeros(1)


def cpu(base: Path, **options: str) -> Model:
    return load_base(str(base), device="cpu", **options)


def picture(model: Model) -> np.ndarray:
    drawn = Engine(model).draw([Request("a red cat", seed=3, steps=2)])[0]
    return np.asarray(drawn.image).astype(int)


@pytest.mark.parametrize("kind", ["sd15", "sd2", "sd2-v", "sdxl", "sdxl-v"])
def test_a_file_is_its_folders_twin(
    kind: str, miniature: Callable[[str], Path], checkpoint: Callable[[str], Path]
) -> None:
    """Every weight and every fact: what the file does not say comes from the layout."""
    folder, file = cpu(miniature(kind)), cpu(checkpoint(kind))
    assert (file.kind, file.layout, file.size_px, file.zero_empty_prompt) == (
        folder.kind, folder.layout, folder.size_px, folder.zero_empty_prompt
    )  # fmt: skip
    for part, module in {**folder.components, "vae": folder.vae}.items():
        other = {**file.components, "vae": file.vae}[part].state_dict()
        mine = {name.removeprefix("text_model."): tensor for name, tensor in module.state_dict().items()}
        theirs = {name.removeprefix("text_model."): tensor for name, tensor in other.items()}
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items()), part
    assert np.abs(picture(folder) - picture(file)).max() <= 1
    assert file.notes == []


def test_the_miniatures_names_are_those_of_real_checkpoints(checkpoint: Callable[[str], Path]) -> None:
    data = Path(os.environ.get("LORA_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "configs" / "keymaps"
    if not data.is_dir():
        pytest.skip(f"there are no tables of names in {data}; LORA_TEST_DATA names the data folder")
    for kind, name in (("sd15", "sd1"), ("sd2", "sd2"), ("sdxl", "sdxl")):
        table = json.loads((data / f"stable_diffusion_{name}.json").read_text(encoding="utf-8"))
        real = table["ldm_diffusers_keymap"].keys() | table["ldm_diffusers_operator_map"].keys()
        unread = re.compile(r"logit_scale|resblocks\.23\.|text_projection|^v_pred$")  # real too, and not in the tables
        mine = {name for name in load_file(checkpoint(kind)) if not unread.search(name)}
        assert mine <= real


def test_half_precision_files_and_the_hash_of_the_whole_file(
    checkpoint: Callable[[str], Path], miniature: Callable[[str], Path], tmp_path: Path
) -> None:
    """The hash is the one by which sites list checkpoints; A1111 calls its first ten digits the model hash."""
    file = write_checkpoint(miniature("sd15"), tmp_path / "half.safetensors", dtype=torch.float16)
    for dtype, expected in (("auto", torch.float32), ("bf16", torch.bfloat16)):
        model = cpu(file, dtype=dtype)
        assert {p.dtype for module in model.components.values() for p in module.parameters()} == {expected}
        assert {p.dtype for p in model.vae.parameters()} == {torch.float32}
    assert model.weights_hash == hashlib.sha256(file.read_bytes()).hexdigest()
    assert model.weights_hash != cpu(checkpoint("sd15")).weights_hash


def test_fp8_weights_are_widened(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    tensors = load_file(checkpoint("sd15"))
    small = {n: t.to(torch.float8_e4m3fn) if n.startswith("model.diffusion") else t for n, t in tensors.items()}
    save_file(small, tmp_path / "fp8.safetensors")
    write_tokenizer(tmp_path)
    assert cpu(tmp_path / "fp8.safetensors").unet.state_dict()["conv_in.weight"].dtype == torch.float32


# --- what it predicts -------------------------------------------------------------------------------------------------


def without_metadata(file: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    tensors = load_file(file)
    change(tensors)
    copy = folder / "copy.safetensors"
    save_file(tensors, copy)
    write_tokenizer(folder)
    return copy


def test_an_xl_that_predicts_velocity_is_known_by_its_marks(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    told = recognise(checkpoint("sdxl-v")).configs["scheduler"]
    assert told["prediction_type"] == "v_prediction"
    assert (told["rescale_betas_zero_snr"], told["timestep_spacing"]) == (True, "trailing")
    half = without_metadata(checkpoint("sdxl-v"), tmp_path, lambda tensors: tensors.pop("ztsnr"))
    said = recognise(half).configs["scheduler"]
    assert said["prediction_type"] == "v_prediction"
    assert "rescale_betas_zero_snr" not in said


@pytest.mark.parametrize(("answer", "kind"), [("eps", "noise"), ("v", "velocity")])
def test_an_sd2_that_does_not_say_what_it_predicts_is_asked(
    answer: str, kind: str, checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A UNet whose answer is made to be the noise it was shown, or nearly none of it."""
    from diffusion_lora.families import sd

    real = predict

    def answering(model: Model, noisy: torch.Tensor, *rest: object) -> torch.Tensor:
        return noisy + 0.1 * real(model, noisy, *rest) if answer == "eps" else real(model, noisy, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(sd, "predict", answering)
    model = cpu(without_metadata(checkpoint("sd2"), tmp_path, lambda tensors: None))
    assert f"so it is taken to predict {kind}" in model.notes[0]
    assert model.scheduler_config["prediction_type"] == {"eps": "epsilon", "v": "v_prediction"}[answer]
    assert model.size_px == {"eps": 512, "v": 768}[answer]


@pytest.mark.parametrize(("said", "prediction"), [("v", "v_prediction"), ("eps", "epsilon")])
def test_a_settings_file_beside_it_decides(
    said: str, prediction: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    file = without_metadata(checkpoint("sd2"), tmp_path, lambda tensors: None)
    file.with_suffix(".yaml").write_text(f'model:\n  params:\n    parameterization: "{said}"\n')
    model = cpu(file)
    assert model.scheduler_config["prediction_type"] == prediction
    assert model.layout.kohya_base.endswith("_v") == (said == "v")
    assert model.notes == []


# --- tokenizer --------------------------------------------------------------------------------------------------------


def alone(file: Path, folder: Path) -> Path:
    folder.mkdir()
    return Path(shutil.copy(file, folder / file.name))


def test_without_a_tokenizer_it_is_said_which_files_and_where(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DIFFUSION_LORA_WORKSPACE", str(tmp_path / "workspace"))
    file = alone(checkpoint("sd15"), tmp_path / "models")
    with pytest.raises(BaseModelError) as caught:
        cpu(file)
    assert f"put vocab.json and merges.txt of openai/clip-vit-large-patch14 into {file.parent / 'tokenizer'}" in str(
        caught.value
    )
    write_tokenizer(tmp_path / "workspace/bases/tokenizer")
    cpu(file)


def test_a_tokenizer_of_other_models_in_the_hubs_cache_serves(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DIFFUSION_LORA_WORKSPACE", str(tmp_path / "workspace"))
    root = tmp_path / "cache/models--stabilityai--stable-diffusion-xl-base-1.0"
    write_tokenizer(root / "snapshots/0123456789abcdef0123456789abcdef01234567/tokenizer")
    (root / "refs").mkdir()
    (root / "refs/main").write_text("0123456789abcdef0123456789abcdef01234567")
    model = cpu(alone(checkpoint("sdxl"), tmp_path / "models"))
    assert [t.pad_token for t in model.tokenizers.values()] == ["<|endoftext|>", "!"]


def test_a_tokenizer_of_another_size_is_refused(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    file = alone(checkpoint("sd15"), tmp_path / "models")
    write_tokenizer(file.parent)
    tokens = json.loads((file.parent / "vocab.json").read_text())
    (file.parent / "vocab.json").write_text(json.dumps(tokens | {"more</w>": len(tokens)}))
    with pytest.raises(BaseModelError, match=rf"has {len(tokens) + 1} tokens and .* reads {len(tokens)}"):
        cpu(file)


# --- what is not served -----------------------------------------------------------------------------------------------

REFUSED = {
    "inpainting": ({FIRST: torch.zeros(1, 9, 1, 1)}, "is an inpainting checkpoint, whose UNet also reads a mask"),
    "editing": ({FIRST: torch.zeros(1, 8, 1, 1)}, "is an editing checkpoint"),
    "depth": ({FIRST: torch.zeros(1, 5, 1, 1)}, "is a depth checkpoint"),
    "odd": ({FIRST: torch.zeros(1, 6, 1, 1)}, "reads 6 channels"),
    "refiner": (
        {FIRST: torch.zeros(1, 4, 1, 1), "conditioner.embedders.0.model.ln_final.bias": ONE},
        "is the refiner of Stable Diffusion XL",
    ),
    "unclip": (
        {
            FIRST: torch.zeros(1, 4, 1, 1),
            "model.diffusion_model.label_emb.0.0.weight": torch.zeros(3),
            "cond_stage_model.model.ln_final.bias": ONE,
            "embedder.model.visual.proj": torch.zeros(2),
        },
        "unCLIP",
    ),
    "unet alone": ({FIRST: torch.zeros(1, 4, 1, 1)}, "lacks its text encoder: it holds a UNet alone"),
    "sd3": ({"model.diffusion_model.joint_blocks.0.x": ONE}, "is Stable Diffusion 3"),
    "flux": ({"double_blocks.0.img_attn.qkv.weight": ONE}, "is Flux"),
    "video": ({"model.diffusion_model.input_blocks.1.0.time_stack.x": ONE}, "is Stable Video Diffusion"),
    "controlnet": ({"control_model.input_blocks.0.0.weight": ONE}, "is a ControlNet"),
    "lora": ({"lora_unet_mid_block_x.lora_down.weight": ONE}, "is a LoRA, which is drawn with by --lora"),
    "embedding": ({"emb_params": ONE}, "is a textual inversion"),
    "diffusers unet": ({"down_blocks.0.resnets.0.conv1.weight": ONE}, "give the diffusers folder it belongs to"),
    "vae": ({"first_stage_model.decoder.conv_in.weight": ONE}, "is an autoencoder alone"),
    "text": ({"text_model.encoder.layers.0.mlp.fc1.weight": ONE}, "is a text encoder alone"),
    "unknown": ({"some.thing": ONE}, "its first tensor is some.thing"),
    "cut down": (
        {FIRST: torch.zeros(1, 4, 1, 1), "cond_stage_model.transformer.text_model.x": ONE},
        "begins like sd15 and is not built like it",
    ),
    "quantised": (
        {
            FIRST: torch.zeros(1, 4, 1, 1),
            "model.diffusion_model.out.0.weight": torch.zeros(1, dtype=torch.int8),
            "cond_stage_model.transformer.text_model.x": ONE,
        },
        "is quantised",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_served_is_named(name: str, tmp_path: Path) -> None:
    tensors, sentence = REFUSED[name]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(BaseModelError) as caught:
        cpu(tmp_path / "model.safetensors")
    assert sentence in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("model.diffusion_model.middle_block.0.out_layers.3.bias", "holds 681 tensors model.diffusion_model.* and"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "the text encoder lacks final_layer_norm"),
        ("first_stage_model.decoder.norm_out.bias", "its family's AutoencoderKL has 240: it is incomplete"),
    ],
)
def test_gaps_are_never_filled(name: str, what: str, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    file = without_metadata(checkpoint("sd15"), tmp_path, lambda tensors: tensors.pop(name))
    with pytest.raises(BaseModelError, match=re.escape(what)):
        cpu(file)


def test_what_is_left_over_is_not_overlooked(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """Another structure under known names would draw noise."""

    def more(tensors: dict[str, torch.Tensor]) -> None:
        name = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn3.to_q.weight"
        tensors[name] = torch.zeros(4, 4)

    with pytest.raises(BaseModelError, match="built in another way"):
        cpu(without_metadata(checkpoint("sd15"), tmp_path, more))


def test_a_file_without_autoencoder_wants_one(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    def bare(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("first_stage_model.")]:
            del tensors[name]

    file = without_metadata(checkpoint("sd15"), tmp_path, bare)
    with pytest.raises(BaseModelError, match=r"holds no autoencoder: name one in model\.vae, or with --vae"):
        cpu(file)


def test_a_header_tells_the_family_without_a_weight_being_read(checkpoint: Callable[[str], Path]) -> None:
    for kind, name in (("sd15", "sd15"), ("sd2-v", "sd2"), ("sdxl", "sdxl")):
        assert recognise(checkpoint(kind)).layout_name == name
        assert read_header(checkpoint(kind)).tensors.keys() == recognise(checkpoint(kind)).header.tensors.keys()


def test_size_and_tokenizer_are_known_before_it_is_loaded(
    checkpoint: Callable[[str], Path], miniature: Callable[[str], Path]
) -> None:
    for kind in ("sd15", "sd2", "sdxl"):
        file, folder = str(checkpoint(kind)), str(miniature(kind))
        assert base_size(file) == base_size(folder) == (64, 8)
        mine, theirs = load_base_tokenizer(file), load_base_tokenizer(folder)
        assert mine("a cat", padding="max_length").input_ids == theirs("a cat", padding="max_length").input_ids


def test_old_files_name_clip_without_its_text_model(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    def shorter(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if ".text_model." in name]:
            tensors[name.replace(".text_model.", ".")] = tensors.pop(name)

    old = cpu(without_metadata(checkpoint("sd15"), tmp_path, shorter))
    with torch.no_grad():
        mine, theirs = (encode_text(m, ["a cat"]).tensors["hidden_BTC"] for m in (old, cpu(checkpoint("sd15"))))
    assert torch.equal(mine, theirs)
