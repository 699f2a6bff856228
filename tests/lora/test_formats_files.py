"""Files of other programs: what is read has their delta, and what is written from it has it still.

The strength a file has in other programs is computed by their own rules, re-implemented here (`STRENGTH_RULES`).
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from diffusion_lora.errors import AdapterFileError, OutputError
from diffusion_lora.lora.adapter import Adapter, AdapterLayer, Full, LoHa, LowRank, read_adapter, write_adapter
from diffusion_lora.lora.header import read_header
from diffusion_lora.lora.report import load_report
from tests.lora import spellings
from tests.lora.spellings import SPELLINGS, Truth

TO_Q = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def relative_error(adapter: Adapter, truth: Truth) -> float:
    """The largest over the layers, each relative to its own norm."""
    assert adapter.layers.keys() == truth.keys()
    return max(
        float((layer.delta(truth[key]) - truth[key]).norm() / truth[key].norm())
        for key, layer in adapter.layers.items()
    )


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_read_and_written_in_both_forms(spelling: str, tmp_path: Path) -> None:
    """Mixed ranks and alphas: a wrong name loses a layer, a wrong scale makes the LoRA weaker or stronger."""
    path, truth = SPELLINGS[spelling](tmp_path)
    adapter = read_adapter(path)
    assert adapter.format == spelling
    assert adapter.unread == {}
    assert relative_error(adapter, truth) < 1e-6
    for form in ("kohya", "peft"):
        write_adapter(adapter, tmp_path / f"{form}.safetensors", None, form)
        assert relative_error(read_adapter(tmp_path / f"{form}.safetensors"), truth) < 1e-6


def test_lycoris_forms_have_the_deltas_of_their_formulas(tmp_path: Path) -> None:
    """LoHa, LoKr whole, factored and with a folded kernel, Tucker forms, full differences; kohya's form keeps each."""
    path, truth = spellings.lycoris(tmp_path)
    adapter = read_adapter(path)
    assert relative_error(adapter, truth) < 1e-6
    write_adapter(adapter, tmp_path / "kohya.safetensors", None)
    again = read_adapter(tmp_path / "kohya.safetensors")
    assert {key: type(layer) for key, layer in again.layers.items()} == {
        key: type(layer) for key, layer in adapter.layers.items()
    }
    assert relative_error(again, truth) < 1e-6


def test_lycoris_forms_become_plain_ones_for_peft_and_nothing_is_lost(tmp_path: Path) -> None:
    """PEFT's LoRA in diffusers knows none of them: they are factored, exactly, biases refused."""
    path, truth = spellings.lycoris(tmp_path)
    adapter = read_adapter(path)
    unbiased = {key: Full(layer.diff) for key, layer in adapter.layers.items() if isinstance(layer, Full)}
    with pytest.raises(OutputError, match="a trained bias"):
        write_adapter(adapter, tmp_path / "peft.safetensors", None, "peft")
    write_adapter(Adapter({**adapter.layers, **unbiased}, {}), tmp_path / "peft.safetensors", None, "peft")
    again = read_adapter(tmp_path / "peft.safetensors")
    assert all(isinstance(layer, LowRank) and layer.mid is None for layer in again.layers.values())
    assert relative_error(again, truth) < 1e-6


@pytest.mark.parametrize("folder_of", ["unet", "text_encoder"])
def test_a_folder_of_one_part_is_read_too(tmp_path: Path, folder_of: str) -> None:
    spellings.peft_folders(tmp_path)
    components = read_adapter(tmp_path / folder_of).components
    assert components == (("unet",) if folder_of == "unet" else ("te",))
    assert read_adapter(tmp_path / folder_of / "adapter_model.safetensors").components == components


def test_a_second_text_encoder_makes_the_first_one_sdxls(tmp_path: Path) -> None:
    """PEFT's folders alone tell the two apart: their layers are named alike."""
    path, _ = spellings.peft_folders(tmp_path)
    (path / "text_encoder").rename(path / "text_encoder_2")
    assert read_adapter(path).components == ("te2", "unet")
    (path / "more").mkdir()
    spellings.peft_folders(path / "more")
    (path / "more" / "text_encoder").rename(path / "text_encoder")
    assert read_adapter(path).components == ("te1", "te2", "unet")


def test_a_folder_without_an_adapter_is_told(tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match="without a PEFT adapter"):
        read_adapter(tmp_path)


def test_another_kind_of_peft_adapter_is_refused(tmp_path: Path) -> None:
    spellings.peft_folders(tmp_path)
    (tmp_path / "unet" / "adapter_config.json").write_text('{"peft_type": "LOHA"}')
    with pytest.raises(AdapterFileError, match="of type LOHA"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("convolution", [False, True])
def test_dora_of_a_peft_file_scales_rows_and_comes_back(tmp_path: Path, convolution: bool) -> None:
    """W' = m (W + BA) / |W + BA|, written out; PEFT stores [out] and [1, out, 1, 1], which reads like [1, in, 1, 1]."""
    kernel = (3, 3) if convolution else ()
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(12, 12, *kernel, generator=generator)
    down, up = spellings.matrices((12, 12, *kernel), 2, seed=1)
    magnitude = torch.rand(12, generator=generator) + 0.5
    module = "unet.up_blocks.1.resnets.0.conv1" if convolution else f"unet.{spellings.ATTENTION}.attn1.to_q"
    tensors = {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    tensors[f"{module}.lora_magnitude_vector"] = magnitude.reshape(1, 12, 1, 1) if convolution else magnitude
    settings = '{"unet.lora_alpha": 3, "unet.r": 2, "unet.use_dora": true}'
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": settings})

    merged = (base + 1.5 * torch.einsum("or...,ri...->oi...", up, down)).flatten(1)
    rows = magnitude[:, None] / merged.norm(dim=1, keepdim=True)
    expected = (rows * merged).reshape(base.shape) - base
    adapter = read_adapter(tmp_path / "a.safetensors")
    for form in ("kohya", "peft"):
        write_adapter(adapter, tmp_path / f"{form}.safetensors", None, form)
        for layer in (*adapter.layers.values(), *read_adapter(tmp_path / f"{form}.safetensors").layers.values()):
            assert layer.needs_base
            torch.testing.assert_close(layer.delta(base), expected, rtol=1e-5, atol=1e-5)


def test_dora_of_columns_is_read_and_not_written_as_peft(tmp_path: Path) -> None:
    """LyCORIS's older default; PEFT would take such a magnitude for one of rows."""
    base, (down, up) = torch.randn(12, 10), spellings.matrices((12, 10), 2, seed=1)
    columns = torch.rand(1, 10) + 0.5
    merged = base + 0.5 * up @ down
    expected = columns * merged / merged.norm(dim=0, keepdim=True) - base
    adapter = Adapter({f"unet.{TO_Q}": LowRank(down, up, 1.0, magnitude=columns)}, {})
    write_adapter(adapter, tmp_path / "a.safetensors", None)
    layer = read_adapter(tmp_path / "a.safetensors").layers[f"unet.{TO_Q}"]
    torch.testing.assert_close(layer.delta(base), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(OutputError, match="magnitude for every input"):
        write_adapter(adapter, tmp_path / "b.safetensors", None, "peft")
    with pytest.raises(ValueError, match="only together with its base"):
        layer.delta()


def test_dora_of_a_part_is_not_written_as_peft(tmp_path: Path) -> None:
    """PEFT would start the magnitudes of the others at the base's norms, which is another adapter."""
    down, up = spellings.matrices((12, 12), 2, seed=1)
    layers = {
        f"unet.{TO_Q}": LowRank(down, up, 1.0, magnitude=torch.ones(12, 1)),
        "unet.conv_in": LowRank(down, up, 1.0),
    }
    with pytest.raises(OutputError, match="1 of 2 layers of unet have a magnitude"):
        write_adapter(Adapter(layers, {}), tmp_path / "a.safetensors", None, "peft")


# -- real files


def test_three_real_files_of_one_lora_are_the_same_adapter(lora_data: Path) -> None:
    """One LoRA under diffusers', kohya's and the old processors' names: total Frobenius norm 4.7301, 128 modules."""
    names = ("weapon_v15_rank4_attnprocs", "derived/weapon_v15_rank4_diffusers", "derived/weapon_v15_rank4_kohya")
    first, *others = [read_adapter(lora_data / f"{name}.safetensors") for name in names]
    assert [adapter.format for adapter in (first, *others)] == [
        "diffusers, old attention processors",
        "diffusers, before PEFT",
        "kohya",
    ]
    assert all(first.allclose(other) for other in others)
    assert (len(first.layers), first.rank, first.alpha, first.components) == (128, 4, 4.0, ("unet",))
    assert first.cross_attention_width == 768
    deltas = [layer.delta() for layer in first.layers.values()]
    assert torch.stack([delta.norm() for delta in deltas]).norm().item() == pytest.approx(4.7301, abs=5e-5)


@pytest.mark.parametrize("form", ["kohya", "peft"])
@pytest.mark.parametrize(
    "name",
    ["weapon_v15_rank4_attnprocs", "derived/weapon_v15_rank4_kohya", "lycoris_smart_falcon_4_lokr"],
)
def test_real_files_survive_being_written_in_both_forms(lora_data: Path, tmp_path: Path, name: str, form: str) -> None:
    """The LoKr becomes plain in PEFT's form: rank 16, exactly."""
    adapter = read_adapter(lora_data / f"{name}.safetensors")
    write_adapter(adapter, tmp_path / "a.safetensors", None, form)
    again = read_adapter(tmp_path / "a.safetensors")
    kept = {key: value for key, value in adapter.metadata.items() if not key.startswith("sshs_")}
    assert {key: again.metadata.get(key) for key in kept} == kept
    assert again.layers.keys() == adapter.layers.keys()
    for key in list(adapter.layers)[::7]:
        wanted = adapter.layers[key].delta()
        assert (again.layers[key].delta().reshape(wanted.shape) - wanted).norm() <= 1e-6 * wanted.norm(), key


def test_the_real_lokr_file_fits_stable_diffusion_1_and_has_its_formulas_delta(lora_data: Path) -> None:
    """All 350 modules have a place in the real architecture, and the change is (alpha / rank) kron(w1, w2), computed
    with numpy from the file's own bytes for every seventh."""
    path = lora_data / "lycoris_smart_falcon_4_lokr.safetensors"
    adapter = read_adapter(path)
    assert (len(adapter.layers), adapter.kinds, adapter.components) == (350, ("LoKr",), ("te", "unet"))
    shapes = stable_diffusion_1()
    raw = safetensors.torch.load_file(path)
    modules = {name.partition(".")[0] for name in raw}
    assert load_report(adapter, shapes).unfit == {}
    for key in list(adapter.layers)[::7]:
        delta = adapter.layers[key].delta(torch.empty(shapes[key], device="meta"))
        assert delta.shape == shapes[key], key
        module = next(m for m in (f"lora_unet_{key[5:]}", f"lora_te_text_model_{key[3:]}") if m in modules)
        alpha = float(raw[f"{module}.alpha"])
        w1, w2 = (
            raw[f"{module}.lokr_w{n}_a"].float().numpy() @ raw[f"{module}.lokr_w{n}_b"].float().numpy() for n in (1, 2)
        )
        expected = alpha / 4 * np.kron(w1, w2).reshape(shapes[key])
        np.testing.assert_allclose(delta.numpy(), expected, rtol=1e-4, atol=1e-7 + 1e-6 * float(np.abs(expected).max()))


def stable_diffusion_1() -> Mapping[str, torch.Size]:
    """The shape of every weight of the real architecture by layer key, without a weight of it."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        text = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
    return {
        f"{component}.{name.removeprefix('text_model.').removesuffix('.weight').replace('.', '_')}": weight.shape
        for component, model in (("unet", unet), ("te", text))
        for name, weight in model.named_parameters()
        if name.endswith(".weight") and weight.ndim > 1
    }


@pytest.mark.parametrize(
    ("name", "format_name", "width"),
    [
        ("sd2_rank4_diffusers", "diffusers, before PEFT", 1024),
        ("sd15_rank4_diffusers", "diffusers, before PEFT", 768),
        ("sd15_rank4_diffusers_bf16", "diffusers, before PEFT", 1024),  # whatever its name says
        ("sd15_rank4_unet_prefixed_attnprocs", "diffusers, old attention processors", 768),
        ("sd15_rank4_doubled_prefix_kohya", "kohya, doubled prefix", 768),
    ],
)
def test_files_with_the_names_of_real_ones_are_read_whole(
    lora_data: Path, tmp_path: Path, name: str, format_name: str, width: int
) -> None:
    """Names, shapes and dtypes of five public files; the numbers are random."""
    stated = json.loads((lora_data / "headers" / f"{name}.json").read_text())["tensors"]
    dtypes = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    tensors = {tensor: torch.randn(shape).to(dtypes[dtype]) for tensor, (dtype, shape) in stated.items()}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    adapter = read_adapter(tmp_path / "a.safetensors")
    assert (adapter.format, len(adapter.layers), adapter.unread) == (format_name, 128, {})
    assert adapter.cross_attention_width == width


# -- how strong a file of ours is in other programs


def plain_rule(parts: Mapping[str, Tensor]) -> float:
    """A1111, Forge, ComfyUI, InvokeAI, Fooocus: alpha / r, and 1 where there is no alpha."""
    return float(parts["alpha"]) / len(parts["down"]) if "alpha" in parts else 1.0


def kohya_rule(parts: Mapping[str, Tensor]) -> float:
    """sd-scripts: the same, and an alpha of 0 is the rank."""
    alpha = float(parts["alpha"]) if "alpha" in parts else 0.0
    return (alpha or len(parts["down"])) / len(parts["down"])


def diffusers_rule(modules: Mapping[str, Mapping[str, Tensor]]) -> dict[str, float]:
    """diffusers: alphas that differ from the commonest of their component reach feed-forward, projection and resnet
    layers, but none in attention, whose alphas go by names that PEFT does not find."""
    scales = {}
    for start in ("lora_unet_", "lora_te_"):
        mine = {module: parts for module, parts in modules.items() if module.startswith(start)}
        alphas = {module: float(parts["alpha"]) for module, parts in mine.items() if "alpha" in parts}
        usual = Counter(alphas.values()).most_common(1)[0][0] if alphas else None
        for module, parts in mine.items():
            attention = "attn" in module
            alpha = usual if attention else alphas.get(module, usual)
            scales[module] = 1.0 if alpha is None else alpha / len(parts["down"])
    return scales


def blind_rule(parts: Mapping[str, Tensor]) -> float:
    """Programs that read PEFT's names and not the header: no alpha tensor, scale 1."""
    return plain_rule(parts)


STRENGTH_RULES: Mapping[str, Callable[[Mapping[str, Mapping[str, Tensor]]], dict[str, float]]] = {
    "A1111, Forge, ComfyUI, InvokeAI, Fooocus": lambda modules: {m: plain_rule(p) for m, p in modules.items()},
    "sd-scripts": lambda modules: {m: kohya_rule(p) for m, p in modules.items()},
    "diffusers": diffusers_rule,
}


def modules_of(path: Path) -> dict[str, dict[str, Tensor]]:
    modules: dict[str, dict[str, Tensor]] = {}
    ends = {
        "lora_down.weight": "down",
        "lora_up.weight": "up",
        "lora_A.weight": "down",
        "lora_B.weight": "up",
        "alpha": "alpha",
    }
    for name, tensor in safetensors.torch.load_file(path).items():
        end = next(end for end in ends if name.endswith("." + end))
        modules.setdefault(name.removesuffix("." + end), {})[ends[end]] = tensor
    return modules


def strong(rank: int, alpha: float, *, rs: bool = False) -> LowRank:
    down, up = spellings.matrices((12, 12), rank, seed=rank)
    return LowRank(down.half(), up.half(), alpha, rs=rs)


ADAPTERS: Mapping[str, dict[str, LowRank]] = {
    "alpha = rank": {TO_Q: strong(4, 4), "conv_in": strong(4, 4)},
    "alpha = 1": {TO_Q: strong(4, 1), "conv_in": strong(4, 1)},
    "mixed ranks, alpha = rank": {TO_Q: strong(4, 4), f"{TO_Q[:-1]}k": strong(2, 2), "conv_in": strong(4, 4)},
    "mixed ranks, one alpha": {TO_Q: strong(4, 1), f"{TO_Q[:-1]}k": strong(2, 1), "conv_in": strong(8, 1)},
    "mixed alphas": {TO_Q: strong(4, 4), f"{TO_Q[:-1]}k": strong(4, 0.7), "conv_in": strong(4, 4)},
    "rank-stabilised, mixed ranks": {TO_Q: strong(4, 4, rs=True), f"{TO_Q[:-1]}k": strong(2, 3, rs=True)},
    "a layer of strength 0": {TO_Q: strong(4, 0), f"{TO_Q[:-1]}k": strong(4, 2)},
}


@pytest.mark.parametrize("loader", STRENGTH_RULES)
@pytest.mark.parametrize("name", ADAPTERS)
def test_our_kohya_file_is_as_strong_under_every_loaders_rule(name: str, loader: str, tmp_path: Path) -> None:
    """Users compensate with strengths of 3 or 4 where a program arrives at another scale."""
    adapter = Adapter({f"unet.{path}": layer for path, layer in ADAPTERS[name].items()}, {})
    write_adapter(adapter, tmp_path / "a.safetensors", None)
    modules = modules_of(tmp_path / "a.safetensors")
    scales = STRENGTH_RULES[loader](modules)
    for key, layer in adapter.layers.items():
        module = f"lora_unet_{key[5:]}"
        seen = scales[module] * modules[module]["up"].float() @ modules[module]["down"].float()
        wanted = layer.delta()
        assert (seen - wanted).norm() <= 1e-6 * max(float(wanted.norm()), 1.0), key


@pytest.mark.parametrize("name", ADAPTERS)
def test_our_peft_file_is_as_strong_with_its_header_and_without(name: str, tmp_path: Path) -> None:
    """ComfyUI reads no header, and diffusers before this one wrote none: both must arrive at the same strength."""
    adapter = Adapter({f"unet.{path}": layer for path, layer in ADAPTERS[name].items()}, {})
    write_adapter(adapter, tmp_path / "a.safetensors", None, "peft")
    settings = json.loads(read_header(tmp_path / "a.safetensors").metadata["lora_adapter_metadata"])
    for module, parts in modules_of(tmp_path / "a.safetensors").items():
        key = module.replace(".", "_").replace("unet_", "unet.", 1)
        path = module.removeprefix("unet.")
        rank = settings["unet.rank_pattern"].get(path, settings["unet.r"])
        alpha = settings["unet.alpha_pattern"].get(path, settings["unet.lora_alpha"])
        assert rank == len(parts["down"])
        assert alpha / rank == blind_rule(parts) == 1.0
        wanted = adapter.layers[key].delta()
        assert (parts["up"].float() @ parts["down"].float() - wanted).norm() <= 1e-6 * max(float(wanted.norm()), 1.0)


def test_a_scale_that_half_precision_cannot_hold_is_kept_in_fp32(tmp_path: Path) -> None:
    """0.7 / 4 of an fp16 number is none, a half is: rounding would change the LoRA a little with every conversion."""
    layers = {f"unet.{path}": layer for path, layer in ADAPTERS["mixed alphas"].items()}
    layers |= {"unet.conv_out": strong(4, 2)}
    write_adapter(Adapter(layers, {}), tmp_path / "a.safetensors", None)
    dtypes = {name: info.dtype for name, info in read_header(tmp_path / "a.safetensors").tensors.items()}
    assert dtypes[f"lora_unet_{TO_Q}.lora_up.weight"] == "F16"
    assert dtypes[f"lora_unet_{TO_Q[:-1]}k.lora_up.weight"] == "F32"
    assert dtypes["lora_unet_conv_out.lora_up.weight"] == "F16"
    assert {dtype for name, dtype in dtypes.items() if "lora_down" in name} == {"F16"}


# -- what is written beside the tensors


@pytest.mark.parametrize(
    ("width", "metadata", "expected"),
    [
        (768, {}, ("sd_v1", "False")),
        (1024, {}, ("sd_v2", "True")),
        (2048, {}, ("sdxl_base_v1-0", "False")),
        (2048, {"ss_base_model_version": "sd_v1", "ss_v2": "True"}, ("sdxl_base_v1-0", "False")),
        (768, {"ss_base_model_version": "sd_v1-5"}, ("sd_v1-5", "False")),
    ],
)
def test_the_family_in_the_header_is_that_of_the_layers(
    tmp_path: Path, width: int, metadata: dict[str, str], expected: tuple[str, str]
) -> None:
    """A1111 hides a file whose header says another family than the model that runs."""
    down, up = spellings.matrices((12, width), 4, seed=0)
    key = f"unet.{spellings.ATTENTION.replace('.', '_')}_attn2_to_k"
    write_adapter(Adapter({key: AdapterLayer(down, up, 4)}, metadata), tmp_path / "a.safetensors")
    written = read_header(tmp_path / "a.safetensors").metadata
    assert (written["ss_base_model_version"], written["ss_v2"]) == expected
    assert (written["ss_network_dim"], written["ss_network_alpha"]) == ("4", "4.0")
    assert written["ss_network_module"] == "networks.lora"


def test_a_file_that_is_no_plain_lora_says_so(tmp_path: Path) -> None:
    a, b = torch.randn(12, 2), torch.randn(2, 10)
    write_adapter(Adapter({f"unet.{TO_Q}": LoHa(a, b, a, b, 1.0)}, {}), tmp_path / "a.safetensors")
    written = read_header(tmp_path / "a.safetensors").metadata
    assert (written["ss_network_module"], written["ss_network_args"]) == ("lycoris.kohya", '{"algo": "loha"}')


def test_a_kohya_file_made_of_a_peft_one_does_not_say_the_scale_twice(tmp_path: Path) -> None:
    """diffusers raises on a file with both."""
    path, _ = spellings.diffusers_peft(tmp_path)
    write_adapter(read_adapter(path), tmp_path / "b.safetensors", None)
    assert "lora_adapter_metadata" not in read_header(tmp_path / "b.safetensors").metadata


def test_a_bad_value_is_let_through_for_a_report_only(tmp_path: Path) -> None:
    down, up = spellings.matrices((12, 12), 2, seed=0)
    up[3, 1] = float("nan")
    tensors = {f"lora_unet_{TO_Q}.lora_down.weight": down, f"lora_unet_{TO_Q}.lora_up.weight": up}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(AdapterFileError, match="not finite"):
        read_adapter(tmp_path / "a.safetensors")
    assert read_adapter(tmp_path / "a.safetensors", finite=False).layers
