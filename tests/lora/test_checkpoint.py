"""Adapters written into the files of a base and taken out of them again, with no model in between."""

import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from diffusion_lora.errors import AdapterFileError, BaseModelError, ConfigError, OutputError
from diffusion_lora.lora.adapter import Adapter
from diffusion_lora.lora.algebra import Term
from diffusion_lora.lora.bake import fold_into
from diffusion_lora.lora.checkpoint import open_checkpoint
from diffusion_lora.lora.compare import compare
from diffusion_lora.lora.extract import extract
from diffusion_lora.lora.header import read_header
from diffusion_lora.lora.inject import find_sites
from diffusion_lora.lora.plain import Cut
from diffusion_lora.lora.weights import Full, LowRank

MakeAdapter = Callable[..., Adapter]


@pytest.fixture
def folder(components: dict[str, nn.Module], tmp_path: Path) -> Path:
    """A base as diffusers saves it, with things beside the weights."""
    folder = tmp_path / "base"
    components["unet"].save_pretrained(folder / "unet")
    components["te"].save_pretrained(folder / "text_encoder")
    (folder / "vae").mkdir()
    safetensors.torch.save_file({"decoder.conv_in.weight": torch.ones(2, 2)}, folder / "vae" / "model.safetensors")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"an old pickle")
    shutil.copy(folder / "unet" / "diffusion_pytorch_model.safetensors", folder / "unet" / "x.fp16.safetensors")
    return folder


@pytest.fixture
def adapter(components: dict[str, nn.Module], make_adapter: MakeAdapter) -> Adapter:
    return make_adapter(components, rank=3, targets="wide", size=0.05)


def original_names(unet: nn.Module) -> dict[str, Tensor]:
    """A single file in original names: a convolution, attention, and both kinds of text encoder."""
    weights = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    generator = torch.Generator().manual_seed(0)
    return {
        "model.diffusion_model.input_blocks.0.0.weight": weights["conv_in.weight"],
        "model.diffusion_model.input_blocks.0.0.bias": weights["conv_in.bias"],
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight": weights[path],
        "model.diffusion_model.output_blocks.2.1.conv.weight": torch.randn(8, 8, 3, 3, generator=generator),
        "model.diffusion_model.out.0.weight": torch.ones(8),
        "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight": torch.randn(6, 4),
        "conditioner.embedders.1.model.transformer.resblocks.3.attn.in_proj_weight": torch.randn(12, 4),
        "conditioner.embedders.1.model.transformer.resblocks.3.attn.in_proj_bias": torch.randn(12),
        "conditioner.embedders.1.model.transformer.resblocks.3.mlp.c_proj.weight": torch.randn(4, 16),
        "conditioner.embedders.1.model.token_embedding.weight": torch.randn(9, 4),
        "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight": torch.randn(9, 4),
        "first_stage_model.decoder.conv_in.weight": torch.randn(4, 4, 3, 3),
        "alphas_cumprod": torch.ones(10),
    }


@pytest.fixture
def single_file(components: dict[str, nn.Module], tmp_path: Path) -> Path:
    path = tmp_path / "base.safetensors"
    metadata = {"modelspec.title": "Base", "modelspec.hash_sha256": "0xold", "format": "pt"}
    safetensors.torch.save_file(original_names(components["unet"]), path, metadata)
    return path


def test_a_diffusers_folder_has_the_layers_of_its_model(folder: Path, components: dict[str, nn.Module]) -> None:
    """Key for key and number for number what `find_sites` finds in the loaded model."""
    checkpoint = open_checkpoint(folder)
    sites = find_sites(components)
    assert set(checkpoint.weights) == set(sites)
    for key, site in sites.items():
        assert torch.equal(checkpoint.read(key), site.weight)
    assert set(checkpoint.biases) == {key for key, site in sites.items() if site.module.bias is not None}


def test_a_single_file_in_original_names(single_file: Path) -> None:
    """OpenCLIP's q, k and v are rows of one matrix; embeddings, norms and the VAE are nobody's layers."""
    checkpoint = open_checkpoint(single_file)
    text = "te2.encoder_layers_3_self_attn_{}_proj"
    assert set(checkpoint.weights) == {
        "unet.conv_in",
        "unet.down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "unet.up_blocks_0_upsamplers_0_conv",
        "te1.encoder_layers_0_mlp_fc1",
        *(text.format(part) for part in "qkv"),
        "te2.encoder_layers_3_mlp_fc2",
    }
    joined = safetensors.torch.load_file(single_file)[
        "conditioner.embedders.1.model.transformer.resblocks.3.attn.in_proj_weight"
    ]
    assert torch.equal(torch.cat([checkpoint.read(text.format(part)) for part in "qkv"]), joined)
    assert checkpoint.biases[text.format("v")].rows == slice(8, 12)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_every_layer_of_every_family_is_found(lora_data: Path, tmp_path: Path, family: str) -> None:
    """The published maps from original to diffusers' names, one tiny tensor for each of some 2 500 names."""
    maps = json.loads((lora_data.parent / "configs" / "keymaps" / f"stable_diffusion_{family}.json").read_text())
    parts = {"unet": "unet", "te": "te", "te0": "te1", "te1": "te2"}
    expected, tensors = set(), {}
    names = dict(maps["ldm_diffusers_keymap"])
    for joined, operation in maps["ldm_diffusers_operator_map"].items():
        tensors[joined] = torch.zeros(3, 1) if joined.endswith("weight") else torch.zeros(3)
        names |= {f"{joined}#{index}": name for index, name in enumerate(operation["cat"])}
    for original, name in names.items():
        part, _, path = name.partition("_")
        flat = path.removesuffix(".weight").removeprefix("text_model.").replace(".", "_")
        is_layer = name.endswith("weight") and part != "vae" and "norm" not in path and "embeddings" not in path
        if is_layer:
            expected.add(f"{parts[part]}.{flat}")
        if "#" not in original:
            matrix = name.endswith("weight") and "norm" not in path
            tensors[original] = torch.zeros(1, 1) if matrix else torch.zeros(1)
    safetensors.torch.save_file(tensors, tmp_path / "base.safetensors")
    checkpoint = open_checkpoint(tmp_path / "base.safetensors")
    assert set(checkpoint.weights) == expected
    assert len(expected) > 300


def test_shards_and_variants_are_found(folder: Path, components: dict[str, nn.Module], tmp_path: Path) -> None:
    whole = open_checkpoint(folder)
    sharded = tmp_path / "sharded"
    shutil.copytree(folder, sharded)
    (sharded / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (sharded / "unet" / "x.fp16.safetensors").unlink()
    components["unet"].save_pretrained(sharded / "unet", max_shard_size="200KB")
    checkpoint = open_checkpoint(sharded)
    assert len(checkpoint.headers) > 3
    assert set(checkpoint.weights) == set(whole.weights)
    (folder / "text_encoder" / "model.safetensors").rename(folder / "text_encoder" / "model.fp16.safetensors")
    assert set(open_checkpoint(folder).weights) == set(whole.weights)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"\x80\x02}q\x00.", "is a pickle"),
        ({"lora_unet_a.lora_down.weight": torch.ones(1, 2)}, "holds no UNet of a Stable Diffusion model"),
        ("folder", "is no diffusers folder"),
        ("empty unet", r"holds no \.safetensors weights"),
    ],
)
def test_what_is_no_checkpoint_is_refused_in_a_sentence(tmp_path: Path, content: object, words: str) -> None:
    path = tmp_path / "base.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        safetensors.torch.save_file(content, path)
    elif content is not None:
        (path / "unet" if content == "empty unet" else path).mkdir(parents=True)
    with pytest.raises(BaseModelError, match=words) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_folded_folder_is_the_base_plus_the_deltas_and_loads(folder: Path, adapter: Adapter, tmp_path: Path) -> None:
    """In diffusers and transformers, with nothing else changed; pickles and stale variants stay behind."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    out = tmp_path / "out" / "folded"
    folding = fold_into(open_checkpoint(folder), [Term(adapter, 0.8, "a"), Term(adapter, -0.3, "b", 0.0)], out)
    base, folded = open_checkpoint(folder), open_checkpoint(out)
    for key in base.weights:
        strength = 0.5 if key.startswith("unet.") else 0.8
        expected = base.read(key)
        if key in adapter.layers:
            expected = expected + strength * adapter.layers[key].delta(expected)
        torch.testing.assert_close(folded.read(key), expected, rtol=1e-6, atol=1e-6)
    assert folding.layers == len(adapter.layers)
    assert folding.relative_rounding < 1e-4
    names = {entry.relative_to(out).as_posix() for entry in out.rglob("*") if entry.is_file()}
    assert "model_index.json" in names
    assert "vae/model.safetensors" in names
    assert not {name for name in names if name.endswith(".bin") or "fp16" in name}
    unet = UNet2DConditionModel.from_pretrained(out / "unet")
    CLIPTextModel.from_pretrained(out / "text_encoder")
    key, site = next(iter(find_sites({"unet": unet}).items()))
    assert torch.equal(site.weight, folded.read(key))
    assert [entry.name for entry in out.parent.iterdir()] == ["folded"]


def test_a_folded_file_keeps_every_other_byte(single_file: Path, tmp_path: Path) -> None:
    """The same names, shapes and order; a range of a joined matrix changes alone; stale hashes go."""
    layers = {
        "te2.encoder_layers_3_self_attn_k_proj": LowRank(torch.ones(1, 4), torch.ones(4, 1), 1.0),
        "te.encoder_layers_0_mlp_fc1": LowRank(torch.ones(1, 4), torch.ones(6, 1), 1.0),
        "unet.conv_in": Full(torch.ones(32, 4, 3, 3), torch.ones(32)),
    }
    out = tmp_path / "folded.safetensors"
    folding = fold_into(open_checkpoint(single_file), [Term(Adapter(layers, {}), 2.0, "a")], out)
    assert folding.layers == 4, "a bias counts"
    before, after = safetensors.torch.load_file(single_file), safetensors.torch.load_file(out)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    joined = "conditioner.embedders.1.model.transformer.resblocks.3.attn.in_proj_weight"
    assert changed == {
        joined,
        "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
        "model.diffusion_model.input_blocks.0.0.weight",
        "model.diffusion_model.input_blocks.0.0.bias",
    }
    difference = after[joined] - before[joined]
    torch.testing.assert_close(difference[4:8], torch.full((4, 4), 2.0))
    assert not difference[:4].any()
    assert not difference[8:].any()
    old, new = read_header(single_file), read_header(out)
    assert dict(new.tensors) == dict(old.tensors)
    assert new.metadata == {"modelspec.title": "Base", "format": "pt", "modelspec.merged_from": "Base, a:2"}
    assert stat.S_IMODE(out.stat().st_mode) == 0o644


def test_a_dora_is_folded_exactly(folder: Path, components: dict[str, nn.Module], tmp_path: Path) -> None:
    """Its delta is that on the untouched base, whatever is folded beside it."""
    key = "unet.mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    weight = find_sites(components)[key].weight.detach()
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, weight.shape[1], generator=generator), torch.randn(len(weight), 2, generator=generator)
    magnitude = torch.rand(len(weight), 1, generator=generator) + 0.5
    dora = LowRank(down, up, 2.0, magnitude=magnitude)
    terms = [Term(Adapter({key: dora}, {}), 0.5, "a"), Term(Adapter({key: LowRank(down, up, 2.0)}, {}), 1.0, "b")]
    fold_into(open_checkpoint(folder), terms, tmp_path / "out")
    merged = weight + up @ down
    expected = weight + 0.5 * (magnitude * merged / merged.norm(dim=1, keepdim=True) - weight) + up @ down
    torch.testing.assert_close(open_checkpoint(tmp_path / "out").read(key), expected, rtol=1e-5, atol=1e-5)


def test_half_precision_is_rounded_once_and_the_loss_told(folder: Path, adapter: Adapter, tmp_path: Path) -> None:
    """bf16 keeps three digits of a weight: of a small change that is a lot, and a user should know."""
    weights = safetensors.torch.load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    coarse = tmp_path / "coarse.safetensors"
    safetensors.torch.save_file({name: tensor.bfloat16() for name, tensor in weights.items()}, coarse)
    unet = Adapter({key: layer for key, layer in adapter.layers.items() if key.startswith("unet.")}, {})
    checkpoint = open_checkpoint(coarse)
    folding = fold_into(checkpoint, [Term(unet, 0.1, "a")], tmp_path / "out.safetensors")
    folded = open_checkpoint(tmp_path / "out.safetensors")
    lost = change = 0.0
    for key, layer in unet.layers.items():
        meant = checkpoint.read(key).float() + 0.1 * layer.delta(checkpoint.read(key))
        assert torch.equal(folded.read(key), meant.bfloat16())
        lost += float((folded.read(key).float() - meant).double().square().sum())
        change += float((0.1 * layer.delta()).double().square().sum())
    assert folding.relative_rounding == pytest.approx((lost / change) ** 0.5, rel=1e-3)
    assert folding.relative_rounding > 0.01


def test_layers_the_base_lacks_are_loud_and_other_models_refused(
    folder: Path, adapter: Adapter, other_family: dict[str, nn.Module], make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    strange = {"unet.down_blocks_9_resnets_0_conv1": LowRank(torch.ones(1, 4), torch.ones(4, 1), 1.0)}
    checkpoint = open_checkpoint(folder)
    folding = fold_into(checkpoint, [Term(Adapter({**adapter.layers, **strange}, {}), 1.0, "a")], tmp_path / "out")
    assert "1 of " in folding.notes[0]
    assert "down_blocks_9" in folding.notes[0]
    for wrong, words in (
        (Adapter(strange, {}), "none of the 1 layers of b"),
        (make_adapter(other_family), "b is for another model: .* 32 x 24 in it and 32 x 16"),
    ):
        with pytest.raises(AdapterFileError, match=words):
            fold_into(checkpoint, [Term(wrong, 1.0, "b")], tmp_path / "other")
        assert not (tmp_path / "other").exists()


def test_nothing_is_left_of_what_fails(folder: Path, adapter: Adapter, tmp_path: Path) -> None:
    """A strength that fp32 cannot hold, and a place that is taken."""
    places = set(tmp_path.iterdir())
    with pytest.raises(OutputError, match="not finite in F32 with these adapters: lower the strengths"):
        fold_into(open_checkpoint(folder), [Term(adapter, 1e300, "a")], tmp_path / "out")
    assert set(tmp_path.iterdir()) == places
    with pytest.raises(OutputError, match="exists already"):
        fold_into(open_checkpoint(folder), [Term(adapter, 1.0, "a")], folder)


def test_a_quantised_base_is_refused(folder: Path, adapter: Adapter, tmp_path: Path) -> None:
    weights = safetensors.torch.load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    path = tmp_path / "fp8.safetensors"
    safetensors.torch.save_file({name: tensor.to(torch.float8_e4m3fn) for name, tensor in weights.items()}, path)
    with pytest.raises(BaseModelError, match="as F8_E4M3"):
        fold_into(open_checkpoint(path), [Term(adapter, 1.0, "a")], tmp_path / "out.safetensors")


def test_extracting_what_was_folded_gives_the_adapter_back(folder: Path, adapter: Adapter, tmp_path: Path) -> None:
    """To 1e-3 of its length, in single precision; and layers without an adapter are not among them."""
    fold_into(open_checkpoint(folder), [Term(adapter, 1.0, "a")], tmp_path / "tuned")
    tuned, base = open_checkpoint(tmp_path / "tuned"), open_checkpoint(folder)
    for cut in (Cut(rank=3), Cut(energy=1 - 1e-9, per_layer=True)):
        found = extract(tuned, base, cut, dtype=torch.float32)
        assert found.adapter.layers.keys() == adapter.layers.keys()
        gap = expected = 0.0
        for key, layer in adapter.layers.items():
            assert found.adapter.layers[key].shape == layer.shape
            gap += float((found.adapter.layers[key].delta() - layer.delta()).double().square().sum())
            expected += float(layer.delta().double().square().sum())
        assert (gap / expected) ** 0.5 < 1e-3
        assert found.error < 1e-3
        assert found.adapter.rank == 3
        assert "the same in both and left out" in found.notes[0]
    assert compare(Term(found.adapter, 1.0, "a"), Term(adapter, 1.0, "b")).whole.cosine == pytest.approx(1.0, abs=1e-6)


def test_what_a_lora_cannot_hold_is_told(folder: Path, adapter: Adapter, tmp_path: Path) -> None:
    """A rank too small, and a norm that was tuned too."""
    fold_into(open_checkpoint(folder), [Term(adapter, 1.0, "a")], tmp_path / "tuned")
    path = tmp_path / "tuned" / "unet" / "diffusion_pytorch_model.safetensors"
    weights = safetensors.torch.load_file(path)
    weights["conv_norm_out.weight"] += 1
    safetensors.torch.save_file(weights, path)
    found = extract(open_checkpoint(tmp_path / "tuned"), open_checkpoint(folder), Cut(rank=1), dtype=torch.float32)
    total = sum(float(layer.delta().double().square().sum()) for layer in adapter.layers.values())
    gap = sum(
        float((found.adapter.layers[key].delta() - layer.delta()).double().square().sum())
        for key, layer in adapter.layers.items()
    )
    assert found.error == pytest.approx((gap / total) ** 0.5, rel=1e-3)
    assert "1 other tensors differ too" in " ".join(found.notes)
    assert "conv_norm_out.weight" in " ".join(found.notes)


def test_extraction_chooses_layers_and_counts_them(folder: Path, adapter: Adapter, tmp_path: Path) -> None:
    fold_into(open_checkpoint(folder), [Term(adapter, 1.0, "a")], tmp_path / "tuned")
    tuned, base = open_checkpoint(tmp_path / "tuned"), open_checkpoint(folder)
    seen: list[tuple[int, int]] = []
    found = extract(tuned, base, Cut(rank=1), only=r"attn1_to_q$", progress=lambda *step: seen.append(step))
    assert all(key.endswith("attn1_to_q") for key in found.adapter.layers)
    assert seen == [(index + 1, len(found.layers)) for index in range(len(found.layers))]
    assert found.adapter.metadata["ss_training_comment"] == "extracted: tuned minus base"
    with pytest.raises(ConfigError, match="matches no layer"):
        extract(tuned, base, Cut(rank=1), only="nothing")
    with pytest.raises(ConfigError, match="not a regular expression"):
        extract(tuned, base, Cut(rank=1), only="(")


def test_checkpoints_that_cannot_be_compared_are_refused(
    folder: Path, other_family: dict[str, nn.Module], tmp_path: Path
) -> None:
    base = open_checkpoint(folder)
    with pytest.raises(BaseModelError, match="do not differ"):
        extract(base, base, Cut(rank=1))
    other_family["unet"].save_pretrained(tmp_path / "other" / "unet")
    with pytest.raises(BaseModelError, match="are different models"):
        extract(open_checkpoint(tmp_path / "other"), base, Cut(rank=1))
