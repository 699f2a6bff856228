"""What is known of each family of base models: names other programs use, widths, default size.

A family is recognised by the width of its cross-attention (what `attn2.to_k` reads), which is also the shape by which
a LoRA file shows where it belongs: 768 is Stable Diffusion 1, 1024 is 2, 2048 is XL. A base of the same architecture
with another width is served too, under the name `sd-<width>`.

Not here: code that loads or runs a model (`families/`), and key names of LoRA files (`lora/formats/`).
"""

from dataclasses import dataclass, replace
from typing import Literal

Architecture = Literal["sd", "sdxl"]


@dataclass(frozen=True)
class Layout:
    """The facts of one family.

    `architecture` says which parts it has: one text encoder, or two with a pooled output, sizes and
    crops. `modelspec` is the architecture id of modelspec 1.0.1 (a LoRA's own is this plus `/lora`); `kohya_base` and
    `kohya_v2` are what sd-scripts writes as `ss_base_model_version` and `ss_v2`.
    """

    name: str
    title: str
    cross_attention_width: int
    modelspec: str
    kohya_base: str
    kohya_v2: bool = False
    size_px: int = 512
    guidance_scale: float = 7.0
    architecture: Architecture = "sd"


POCKET = Layout(
    name="pocket",
    title="pocket",
    cross_attention_width=128,
    modelspec="diffusion-lora-pocket",
    kohya_base="pocket",
    size_px=128,
    guidance_scale=4.0,
)
SD15 = Layout(
    name="sd15",
    title="Stable Diffusion 1",
    cross_attention_width=768,
    modelspec="stable-diffusion-v1",
    kohya_base="sd_v1",
)
SD2 = Layout(
    name="sd2",
    title="Stable Diffusion 2",
    cross_attention_width=1024,
    modelspec="stable-diffusion-v2-512",
    kohya_base="sd_v2",
    kohya_v2=True,
)
SDXL = Layout(
    name="sdxl",
    title="Stable Diffusion XL",
    cross_attention_width=2048,
    modelspec="stable-diffusion-xl-v1-base",
    kohya_base="sdxl_base_v1-0",
    size_px=1024,
    guidance_scale=5.0,
    architecture="sdxl",
)
LAYOUTS = (POCKET, SD15, SD2, SDXL)


def layout_of_width(cross_attention_width: int) -> Layout:
    """The family whose cross-attention has this width; a width nobody has gets a layout of its own."""
    for layout in LAYOUTS:
        if layout.cross_attention_width == cross_attention_width:
            return layout
    return Layout(
        name=f"sd-{cross_attention_width}",
        title=f"a Stable Diffusion of width {cross_attention_width}",
        cross_attention_width=cross_attention_width,
        modelspec=f"stable-diffusion-{cross_attention_width}",
        kohya_base=f"sd_{cross_attention_width}",
    )


def layout_of_base(architecture: Architecture, cross_attention_width: int, prediction: str = "epsilon") -> Layout:
    """The family of a base: as `layout_of_width`, but what has XL's parts is an XL of whatever width.

    A base that predicts velocity gets the ids that sd-scripts gives what is trained on one.
    """
    layout = layout_of_width(cross_attention_width)
    if layout.architecture != architecture:
        like = SDXL if architecture == "sdxl" else SD15
        layout = replace(
            like,
            name=f"{architecture}-{cross_attention_width}",
            title=f"a {like.title.removesuffix(' 1')} of width {cross_attention_width}",
            cross_attention_width=cross_attention_width,
        )
    if prediction == "v_prediction" and architecture == "sd":
        v_modelspec = "stable-diffusion-v2-768-v" if layout is SD2 else layout.modelspec
        return replace(layout, modelspec=v_modelspec, kohya_base=f"{layout.kohya_base}_v")
    return layout


def layout_named(name: str) -> Layout | None:
    """The family of this name (`sd15`, `sd-32`), or None."""
    for layout in LAYOUTS:
        if layout.name == name:
            return layout
    width = name.removeprefix("sd-")
    return layout_of_width(int(width)) if name != width and width.isdecimal() else None
