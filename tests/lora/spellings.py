"""Files of one adapter in every spelling that is read, made by hand here and not by the code under test."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

ATTENTION = "mid_block.attentions.0.transformer_blocks.0"
UNET: Mapping[str, tuple[int, ...]] = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (12, 12),
    f"{ATTENTION}.attn2.to_k": (12, 768),
    f"{ATTENTION}.attn1.to_out.0": (12, 12),
    f"{ATTENTION}.ff.net.0.proj": (24, 12),
    "mid_block.attentions.0.proj_in": (12, 12, 1, 1),
    "up_blocks.1.resnets.0.conv1": (12, 10, 3, 3),
}
TEXT: Mapping[str, tuple[int, ...]] = {
    "encoder.layers.0.self_attn.q_proj": (12, 12),
    "encoder.layers.0.self_attn.k_proj": (12, 12),
    "encoder.layers.0.self_attn.v_proj": (12, 12),
    "encoder.layers.0.self_attn.out_proj": (12, 12),
    "encoder.layers.0.mlp.fc1": (24, 12),
}
ORIGINAL = {
    "down_blocks.0.attentions.0": "input_blocks.1.1",
    "mid_block.attentions.0": "middle_block.1",
    "up_blocks.1.resnets.0.conv1": "output_blocks.3.0.in_layers.2",
}
RANKS, ALPHAS = (4, 2, 4, 3), (1.5, 4.0, 1.5, 0.7)
"""Mixed ranks and alphas, dealt out in turn."""

Truth = dict[str, Tensor]
"""The delta that each layer must have, by canonical key."""


def matrices(shape: tuple[int, ...], rank: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, *shape[1:], generator=generator)
    up = torch.randn(shape[0], rank, *(1 for _ in shape[2:]), generator=generator)
    return down, up


def layers() -> list[tuple[str, str, str, Tensor, Tensor, float]]:
    """(component, dotted path, canonical key, down, up, alpha) of every layer."""
    found = []
    for component, shapes in (("unet", UNET), ("te", TEXT)):
        for path, shape in shapes.items():
            number = len(found)
            down, up = matrices(shape, RANKS[number % 4], number)
            found.append((component, path, f"{component}.{path.replace('.', '_')}", down, up, ALPHAS[number % 4]))
    return found


def truth(*, scale: Callable[[Tensor, float], float] = lambda down, alpha: alpha / len(down)) -> Truth:
    return {
        key: scale(down, alpha) * (up.flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:])
        for _, _, key, down, up, alpha in layers()
    }


def one(down: Tensor, _: float) -> float:
    """The scale of files that say none."""
    return 1.0


def _flat(component: str, path: str) -> str:
    return {"unet": "lora_unet_", "te": "lora_te_text_model_"}[component] + path.replace(".", "_")


def _kohya(folder: Path, name: Callable[[str, str], str] = _flat, end: str = ".lora_%s.weight") -> Path:
    tensors = {}
    for component, path, _, down, up, alpha in layers():
        module = name(component, path)
        tensors |= {f"{module}{end % 'down'}": down, f"{module}{end % 'up'}": up}
        tensors[f"{module}.alpha"] = torch.tensor(alpha)
    return _save(folder, tensors)


def _save(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    path = folder / "a.safetensors"
    safetensors.torch.save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def kohya(folder: Path) -> tuple[Path, Truth]:
    return _kohya(folder), truth()


def kohya_original(folder: Path) -> tuple[Path, Truth]:
    def name(component: str, path: str) -> str:
        for new, old in ORIGINAL.items():
            path = path.replace(new, old) if component == "unet" else path
        return _flat(component, path)

    return _kohya(folder, name), truth()


def kohya_doubled(folder: Path) -> tuple[Path, Truth]:
    def name(component: str, path: str) -> str:
        return _flat(component, path).replace("lora_unet_", "lora_unet_unet_")

    return _kohya(folder, name, "_lora_%s.weight"), truth()


def lycoris_wrapper(folder: Path) -> tuple[Path, Truth]:
    return _kohya(folder, lambda _, path: "lycoris_" + path.replace(".", "_")), truth()


def comfy(folder: Path) -> tuple[Path, Truth]:
    def name(component: str, path: str) -> str:
        for new, old in ORIGINAL.items():
            path = path.replace(new, old) if component == "unet" else path
        return {"unet": "diffusion_model.", "te": "text_encoders.clip_l.transformer.text_model."}[component] + path

    return _kohya(folder, name), truth()


def diffusers_middle(folder: Path) -> tuple[Path, Truth]:
    tensors = {}
    for component, path, _, down, up, _ in layers():
        module = {"unet": "unet.", "te": "text_encoder.text_model."}[component] + path
        end = {"unet": ".lora.", "te": ".lora_linear_layer."}[component]
        tensors |= {f"{module}{end}down.weight": down, f"{module}{end}up.weight": up}
    return _save(folder, tensors, {"format": "pt"}), truth(scale=one)


def diffusers_processors(folder: Path) -> tuple[Path, Truth]:
    tensors, expected = {}, {}
    for component, path, key, down, up, _ in layers():
        module, _, projection = path.removesuffix(".0").rpartition(".")
        if component == "unet" and "attn" in module:
            name = f"{module}.processor.{projection}_lora"
            tensors |= {f"{name}.down.weight": down, f"{name}.up.weight": up}
            expected[key] = up @ down
    return _save(folder, tensors), expected


def diffusers_without_settings(folder: Path) -> tuple[Path, Truth]:
    return _save(folder, _peft_tensors("unet.", "text_encoder.")), truth(scale=one)


def diffusers_peft(folder: Path) -> tuple[Path, Truth]:
    """As diffusers writes it with `unet_lora_adapter_metadata`; the text encoder without `text_model`."""
    settings = {}
    for component, name in (("unet", "unet"), ("te", "text_encoder")):
        alphas = {path: alpha for part, path, _, _, _, alpha in layers() if part == component}
        settings |= {f"{name}.peft_type": "LORA", f"{name}.r": 4, f"{name}.lora_alpha": 1.5, f"{name}.bias": "none"}
        settings |= {f"{name}.use_rslora": False, f"{name}.alpha_pattern": alphas}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(settings)}
    return _save(folder, _peft_tensors("unet.", "text_encoder."), metadata), truth()


def peft_folders(folder: Path) -> tuple[Path, Truth]:
    """As `PeftModel.save_pretrained` of the UNet and of the text encoder writes it, rank-stabilised."""
    for component, name in (("unet", "unet"), ("te", "text_encoder")):
        (folder / name).mkdir()
        tensors = {
            name: tensor
            for name, tensor in _peft_tensors("base_model.model.", "base_model.model.text_model.").items()
            if ("encoder.layers" in name) == (component == "te")
        }
        path = folder / name / "adapter_model.safetensors"
        safetensors.torch.save_file(tensors, path, {"format": "pt"})
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "use_rslora": True, "alpha_pattern": {}}
        path.with_name("adapter_config.json").write_text(json.dumps(config))
    return folder, truth(scale=lambda down, _: 6 / len(down) ** 0.5)


def _peft_tensors(unet: str, text: str) -> dict[str, Tensor]:
    tensors = {}
    for component, path, _, down, up, _ in layers():
        module = {"unet": unet, "te": text}[component] + path
        tensors |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    return tensors


def lycoris(folder: Path) -> tuple[Path, Truth]:
    """LoHa, LoKr, Tucker forms and full differences, each formula written out over single entries by einsum."""
    generator = torch.Generator().manual_seed(9)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    k, r = 3, 2
    a, b, c, d = (random(*n) for n in ((12, r), (r, 10), (12, r), (r, 10)))
    at, bt, t1 = random(r, 12), random(r, 10), random(r, r, k, k)
    ct, dt, t2 = random(r, 12), random(r, 10), random(r, r, k, k)
    w1, w2 = random(3, 2), random(4, 5)
    w1a, w1b, w2a, w2b = (random(*n) for n in ((3, r), (r, 2), (4, r), (r, 5 * k * k)))
    u, v = random(r, 4), random(r, 5)
    down, mid, up = random(r, 10, 1, 1), random(r, r, k, k), random(12, r, 1, 1)
    diff, bias = random(12, 10), random(12)
    folded_1, folded_2 = random(4, 15), random(3, 6)  # kron: [12, 90], a 3 x 3 kernel folded into the inputs
    resnet = "up_blocks_1_resnets_%d_conv1"
    modules: dict[str, tuple[dict[str, Tensor], float | None, Tensor]] = {
        "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (
            {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d},
            3.0,
            1.5 * torch.einsum("or,ri,os,si->oi", a, b, c, d),
        ),
        resnet % 0: (
            {"hada_w1_a": at, "hada_w1_b": bt, "hada_t1": t1, "hada_w2_a": ct, "hada_w2_b": dt, "hada_t2": t2},
            1.0,
            0.5 * torch.einsum("abkl,ao,bi,cdkl,co,di->oikl", t1, at, bt, t2, ct, dt),
        ),
        "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k": (
            {"lokr_w1": w1, "lokr_w2": w2},
            7.0,  # not looked at: nothing is factored
            torch.einsum("ab,cd->acbd", w1, w2).reshape(12, 10),
        ),
        resnet % 1: (
            {"lokr_w1_a": w1a, "lokr_w1_b": w1b, "lokr_w2_a": w2a, "lokr_w2_b": w2b},
            1.0,
            0.5 * torch.einsum("ar,rb,cs,sdk->acbdk", w1a, w1b, w2a, w2b.reshape(r, 5, 9)).reshape(12, 10, k, k),
        ),
        resnet % 2: (
            {"lokr_w1": w1, "lokr_w2_a": u, "lokr_w2_b": v, "lokr_t2": t2},
            1.0,
            0.5 * torch.einsum("ab,rskl,rc,sd->acbdkl", w1, t2, u, v).reshape(12, 10, k, k),
        ),
        "up_blocks_2_resnets_0_conv2": (
            {"lokr_w1": folded_1, "lokr_w2": folded_2},
            None,
            torch.einsum("ab,cd->acbd", folded_1, folded_2).reshape(12, 10, k, k),
        ),
        "up_blocks_1_resnets_0_conv2": (
            {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up},
            1.0,
            0.5 * torch.einsum("oaxy,abkl,bixy->oikl", up, mid, down),
        ),
        "mid_block_attentions_0_proj_in": ({"diff": diff, "diff_b": bias}, None, diff),
    }
    tensors = {}
    for path, (parts, alpha, _) in modules.items():
        tensors |= {f"lora_unet_{path}.{suffix}": tensor for suffix, tensor in parts.items()}
        if alpha is not None:
            tensors[f"lora_unet_{path}.alpha"] = torch.tensor(alpha)
    return _save(folder, tensors), {f"unet.{path}": delta for path, (_, _, delta) in modules.items()}


SPELLINGS = {
    "kohya": kohya,
    "kohya, original block names": kohya_original,
    "kohya, doubled prefix": kohya_doubled,
    "LyCORIS": lycoris_wrapper,
    "ComfyUI": comfy,
    "diffusers, before PEFT": diffusers_middle,
    "diffusers, old attention processors": diffusers_processors,
    "diffusers (PEFT)": diffusers_peft,
    "PEFT": peft_folders,
}
