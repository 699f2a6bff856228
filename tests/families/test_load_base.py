"""Loading a base: from a folder, from the hub's cache offline, and what is said when there is none."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusion_lora.errors import BaseModelError, DeviceError
from diffusion_lora.families.family import load_base, pick_device
from diffusion_lora.families.hub import needed_files
from diffusion_lora.families.source import locate, weights_file
from diffusion_lora.families.streamed import streamed


@pytest.fixture
def copy(sd_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base, to be damaged."""
    return Path(shutil.copytree(sd_folder, tmp_path / "copy"))


def hub_cache(folder: Path, cache: Path, repo: str) -> str:
    """Lay `folder` out as the hub's cache holds `repo`: blobs, a snapshot of links, a ref. Returns the commit."""
    import hashlib

    commit = "0123456789abcdef0123456789abcdef01234567"
    root = cache / ("models--" + repo.replace("/", "--"))
    (root / "blobs").mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        blob = root / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copyfile(file, blob)
        link = root / "snapshots" / commit / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return commit


def test_a_diffusers_folder_loads_with_its_facts(sd_folder: Path) -> None:
    model = load_base(str(sd_folder), device="cpu")
    assert (model.name, model.layout.name, model.layout.cross_attention_width) == ("tiny-sd", "sd-32", 32)
    assert (model.size_px, model.vae_factor, model.max_tokens) == (64, 8, 75)
    assert model.latent_shape(64, 128) == (4, 8, 16)
    assert set(model.components) == {"unet", "te"}
    parameters = [p for module in (*model.components.values(), model.vae) for p in module.parameters()]
    assert not any(p.requires_grad for p in parameters), "the base is frozen"
    assert {p.dtype for p in parameters} == {torch.float32}


def test_half_precision_leaves_the_autoencoder_in_fp32(sd_folder: Path) -> None:
    """A half precision autoencoder overflows on real models and draws black pictures."""
    model = load_base(str(sd_folder), device="cpu", dtype="bf16")
    assert {p.dtype for p in model.unet.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.vae.parameters()} == {torch.float32}


def test_a_folder_of_fp16_variant_files_loads(copy: Path) -> None:
    """Hub repositories often hold `*.fp16.safetensors` alone."""
    for file in copy.rglob("*.safetensors"):
        file.rename(file.with_name(file.stem + ".fp16.safetensors"))
    load_base(str(copy), device="cpu")


def test_a_hub_id_loads_from_the_cache_with_no_network(
    sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    hub_cache(sd_folder, tmp_path, "someone/tiny-sd")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model = load_base("someone/tiny-sd", device="cpu")
    assert model.name == "tiny-sd"
    assert model.source == "someone/tiny-sd"
    plain = load_base(str(sd_folder), device="cpu")
    assert model.weights_hash == plain.weights_hash, "the hash does not depend on where the base lies"


def test_a_hub_id_that_is_not_cached_says_so_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BaseModelError, match=r"someone/else is not in the hub's cache .* connect once") as caught:
        locate("someone/else")
    assert "\n" not in str(caught.value)


def test_a_half_fetched_hub_id_is_not_loaded(sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted download leaves a snapshot without its weights."""
    from huggingface_hub import constants

    commit = hub_cache(sd_folder, tmp_path, "someone/half")
    (tmp_path / "models--someone--half/snapshots" / commit / "unet/diffusion_pytorch_model.safetensors").unlink()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BaseModelError, match="someone/half"):
        locate("someone/half")


@pytest.mark.parametrize("base", ["nowhere", "./no/such/folder", "C:\\models\\sd", "", "a--b/c..d"])
def test_a_base_that_is_nowhere_says_what_to_give(base: str) -> None:
    with pytest.raises(BaseModelError, match="say pocket, a diffusers folder"):
        locate(base)


def test_a_pickled_checkpoint_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.ckpt"
    file.write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(BaseModelError, match="is a pickle, which can run any program"):
        load_base(str(file), device="cpu")


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"model_index\.json is missing"):
        locate(str(tmp_path))


def test_another_architecture_is_named(copy: Path) -> None:
    (copy / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(BaseModelError, match="is a FluxPipeline"):
        locate(str(copy))


def test_pickled_weights_are_not_opened(copy: Path) -> None:
    weights = copy / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(BaseModelError, match="pickled"):
        locate(str(copy))


def test_a_truncated_weight_file_is_named(copy: Path) -> None:
    weights = copy / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(BaseModelError, match=r"unet cannot be loaded") as caught:
        load_base(str(copy), device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("component", ["unet", "text_encoder", "vae"])
def test_missing_weights_are_never_made_up(copy: Path, component: str) -> None:
    """The libraries fill gaps with random numbers and only log it: such a base would draw noise."""
    (file,) = (copy / component).glob("*.safetensors")
    weights = load_file(file)
    weights.pop(next(iter(sorted(weights))))
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=f"{component}: the weights lack"):
        load_base(str(copy), device="cpu")


def test_old_scheduler_entries_are_corrected_as_the_pipelines_do(copy: Path) -> None:
    path = copy / "scheduler/scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"clip_sample": True, "steps_offset": 0}))
    config = load_base(str(copy), device="cpu").scheduler_config
    assert (config["clip_sample"], config["steps_offset"]) == (False, 1)


def test_an_unknown_dtype_is_refused(sd_folder: Path) -> None:
    with pytest.raises(BaseModelError, match="dtype 'int8'"):
        load_base(str(sd_folder), dtype="int8", device="cpu")


def test_of_a_repository_only_what_is_needed_is_fetched() -> None:
    """Stable Diffusion 1.5's own repository holds 44 GB; 4 of them are needed."""
    from huggingface_hub.hf_api import RepoSibling

    names = [
        "model_index.json", "README.md", "v1-5-pruned.ckpt", "v1-5-pruned-emaonly.safetensors",
        "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json", "unet/config.json", "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors", "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/config.json", "text_encoder/model.safetensors.index.json",
        "text_encoder/model-00001-of-00002.safetensors", "text_encoder/model-00002-of-00002.safetensors",
        "safety_checker/model.safetensors",
    ]  # fmt: skip
    files = needed_files([RepoSibling(rfilename=name, size=1) for name in names])
    assert sorted(files) == sorted([
        "model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors", "text_encoder/config.json",
        "text_encoder/model.safetensors.index.json", "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model-00002-of-00002.safetensors",
    ])  # fmt: skip


def test_loading_prints_nothing(sd_folder: Path) -> None:
    """A first run shows our own lines only: no warning, no bar, no report of the libraries."""
    code = f"from diffusion_lora.families.family import load_base; load_base({str(sd_folder)!r}, device='cpu')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:0", "cuda:99", "tpu"])
def test_a_device_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(DeviceError, match=name):
        pick_device(name)


def test_the_automatic_device_is_one_that_works() -> None:
    torch.ones(2, device=pick_device("auto")).sum().item()


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
@pytest.mark.parametrize("shards", [False, True])
def test_weights_that_are_converted_are_read_one_by_one_and_are_the_librarys(
    copy: Path, stored: torch.dtype, shards: bool
) -> None:
    """Mapped and converted by the library, a UNet needs three times its memory while it loads."""
    from diffusers import UNet2DConditionModel

    place = copy / "unet"
    unet = UNet2DConditionModel.from_pretrained(place, dtype=stored)
    for file in place.glob("*.safetensors"):
        file.unlink()
    unet.save_pretrained(place, max_shard_size="100KB" if shards else "10GB")
    file = weights_file(copy, "unet")
    assert (file is not None and file.suffix == ".json") == shards
    expected = UNet2DConditionModel.from_pretrained(place, dtype=torch.bfloat16).state_dict()
    ours = streamed(UNet2DConditionModel, place, file, torch.bfloat16)
    assert ours is not None
    found = ours.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    loaded = load_base(str(copy), device="cpu", dtype="bf16").unet.state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert streamed(UNet2DConditionModel, place, file, stored) is None  # nothing is converted: the library maps it


@pytest.mark.parametrize(("said", "kept"), [(None, "8192"), ("77", "77")])
def test_room_for_kernels_is_asked_for_unless_somebody_did(
    monkeypatch: pytest.MonkeyPatch, sd_folder: Path, said: str | None, kept: str
) -> None:
    """Wrong: a sweep that compiles its kernels in every step, or a person's own number that is written over."""
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    if said:
        monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", said)
    load_base(str(sd_folder), device="cpu")
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == kept
