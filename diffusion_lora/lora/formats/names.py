"""What one tensor's name says, in any spelling that trainers use. Key logic only, no torch.

    lora_unet_input_blocks_4_1_proj_in.lora_down.weight                              kohya, original block names
    lora_te_text_model_encoder_layers_0_mlp_fc1.alpha                                kohya
    unet.mid_block.attentions.0.proj_in.lora_A.weight                                diffusers (PEFT)
    text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.up.weight     diffusers, before PEFT
    down_blocks.0.[...].attn1.processor.to_out_lora.down.weight                      diffusers, old attention processors
    base_model.model.down_blocks.0.[...].to_q.lora_B.weight                          PEFT
    lycoris_down_blocks_0_[...]_to_q.lokr_w1                                         LyCORIS
    diffusion_model.input_blocks.4.1.proj_in.lora_up.weight                          ComfyUI

A name becomes a component, a flat path in today's block names and the suffix that kohya's files would use. Which
tensors belong together and what a whole file is, is `reading`'s.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from diffusion_lora.lora.formats import paths
from diffusion_lora.lora.formats.forms import ALPHA, DOWN, MAGNITUDE, MID, UP

KOHYA = "kohya"
KOHYA_ORIGINAL = "kohya, original block names"
KOHYA_DOUBLED = "kohya, doubled prefix"
LYCORIS = "LyCORIS"
COMFY = "ComfyUI"
DIFFUSERS = "diffusers (PEFT)"
DIFFUSERS_MIDDLE = "diffusers, before PEFT"
DIFFUSERS_PROCESSORS = "diffusers, old attention processors"
PEFT = "PEFT"

PEFT_MAGNITUDE = "lora_magnitude_vector"
"""PEFT's DoRA magnitude, which always runs along the outputs; the other suffixes are those of `forms`."""


class Name(NamedTuple):
    """`component` is "unet", "te" (the first or only text encoder), "te1" (the first, numbered) or "te2"; `module` is
    the name as it stands, up to the suffix; `spelling` is one of the constants above."""

    component: str
    path: str
    suffix: str
    module: str
    spelling: str

    @property
    def key(self) -> str:
        """The canonical key of the layer, with `component` as it is spelled."""
        return f"{self.component}.{self.path}"


_END = re.compile(
    rf"(?:\.(?P<plain>{ALPHA}|{MAGNITUDE}|hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2|diff|diff_b)"
    r"|\.lora_(?P<kohya>down|up|mid)\.weight"
    r"|\.lora_(?P<peft>[AB])(?:\.(?!weight)[^.]+)?\.weight"  # an adapter's name may stand before weight
    r"|(?P<magnitude>\.lora_magnitude_vector)(?:\.(?!weight)[^.]+)?(?:\.weight)?"
    r"|_lora\.(?P<processor>down|up)\.weight"
    r"|\.lora(?:_linear_layer)?\.(?P<middle>down|up)\.weight"
    r"|_lora_(?P<flat>down|up)\.weight)$"
)
_DIRECTION = {"down": DOWN, "up": UP, "mid": MID, "A": DOWN, "B": UP}

# Starts of names, component, spelling. The first that fits counts; None: the path tells the component.
_STARTS: tuple[tuple[str, str | None, str], ...] = (
    ("lora_unet_unet_", "unet", KOHYA_DOUBLED),
    ("lora_unet_", "unet", KOHYA),
    ("lora_te1_", "te1", KOHYA),
    ("lora_te2_", "te2", KOHYA),
    ("lora_te_", "te", KOHYA),
    ("lycoris_unet_", "unet", LYCORIS),
    ("lycoris_", None, LYCORIS),
    ("base_model.model.unet.", "unet", PEFT),
    ("unet.base_model.model.", "unet", PEFT),
    ("text_encoder.base_model.model.", "te", PEFT),
    ("text_encoder_2.base_model.model.", "te2", PEFT),
    ("base_model.model.", None, PEFT),
    ("unet.", "unet", DIFFUSERS),
    ("text_encoder.", "te", DIFFUSERS),
    ("text_encoder_2.", "te2", DIFFUSERS),
    ("text_encoders.clip_l.transformer.", "te", COMFY),
    ("text_encoders.clip_h.transformer.", "te", COMFY),
    ("text_encoders.clip_g.transformer.", "te2", COMFY),
    ("model.diffusion_model.", "unet", COMFY),
    ("diffusion_model.", "unet", COMFY),
    ("", None, PEFT),
)
_OLD_TEXT_PROJECTIONS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_LAST_OUT = re.compile(r"_to_out$")
_LONGEST, _LONGEST_END = 500, 100


def parse(name: str) -> Name | None:
    """The parts of a tensor's name, or None when it is none that a layer of Stable Diffusion would have."""
    end = _END.search(name, max(0, len(name) - _LONGEST_END)) if len(name) <= _LONGEST else None
    place = _place(name[: end.start()]) if end is not None else None
    if end is None or place is None:
        return None
    component, path, spelling = place
    if end["plain"]:
        suffix = end["plain"]
    else:
        suffix = PEFT_MAGNITUDE if end["magnitude"] else _DIRECTION[end[str(end.lastgroup)]]
    if spelling in (DIFFUSERS, PEFT):
        spelling = {"processor": DIFFUSERS_PROCESSORS, "middle": DIFFUSERS_MIDDLE}.get(str(end.lastgroup), spelling)
    return Name(component, path, suffix, name[: end.start()], spelling)


@lru_cache(maxsize=4096)  # a layer's tensors come together
def _place(module: str) -> tuple[str, str, str] | None:
    """(component, flat path, spelling) of a layer's name; None when its path is not Stable Diffusion's."""
    start, component, spelling = next(known for known in _STARTS if module.startswith(known[0]))
    path = module[len(start) :].replace(".", "_").removeprefix("text_model_")
    if component is None:
        component = "te" if paths.is_text_path(path) else "unet"
    if component != "unet":
        path = _modern_text_path(path)
        return (component, path, spelling) if paths.is_text_path(path) else None
    path = _LAST_OUT.sub("_to_out_0", path.replace("_processor_to_", "_to_"))
    original = paths.from_original(path)
    if original is not None:
        path, spelling = original, KOHYA_ORIGINAL if spelling == KOHYA else spelling
    return (component, path, spelling) if paths.is_unet_path(path) else None


def _modern_text_path(path: str) -> str:
    """Attention processors of text encoders once called their projections as the UNet's do."""
    start, _, last = path.rpartition("self_attn_")
    return f"{start}self_attn_{_OLD_TEXT_PROJECTIONS[last]}" if last in _OLD_TEXT_PROJECTIONS else path
