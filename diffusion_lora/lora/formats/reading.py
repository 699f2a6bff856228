"""What a whole file is, told from its header: layers by canonical key, and what is left out, by name. No torch.

Canonical keys are `component.path` with `unet`, `te` (SD 1 and 2), `te1` and `te2` (SDXL). Which text encoder the first
one is depends on the rest of the file: diffusers writes the single one of SD 1 as `lora_te1_`, and says `text_encoder`
for the first of SDXL too.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from diffusion_lora.errors import AdapterFileError
from diffusion_lora.layouts.layout import SDXL, Layout, layout_of_width
from diffusion_lora.lora.formats import foreign, peft
from diffusion_lora.lora.formats.forms import ALPHA, DOWN, MAGNITUDE, Form, form_of, kind_of
from diffusion_lora.lora.formats.names import PEFT_MAGNITUDE, Name, parse
from diffusion_lora.lora.formats.words import read_bundle
from diffusion_lora.lora.header import Header, shown

_BIG_TRANSFORMER = re.compile(r"_transformer_blocks_([2-9]|\d\d)_")

MAX_ADAPTER_TENSORS = 30_000
"""A file of more is no adapter: SDXL with every layer in five factors has some 9 000."""


@dataclass(frozen=True)
class LayerNames:
    """A layer in a file: its tensors by suffix (`forms`), its form, its name as it stands there.

    `alpha` and `rs` are what PEFT's settings say; None and False where the tensors say all. `magnitude_of_rows` tells
    that a magnitude of any shape runs along the outputs.
    """

    tensors: Mapping[str, str]
    form: Form
    module: str
    alpha: float | None = None
    rs: bool = False
    magnitude_of_rows: bool = False


@dataclass(frozen=True)
class Reading:
    """`format` is the spelling that most names have; `unread` holds the tensors left out, each with the reason.

    `words` are the learned words bundled with the layers: word -> component -> tensor.
    """

    format: str
    layers: Mapping[str, LayerNames]
    unread: Mapping[str, str] = field(default_factory=dict)
    words: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def matched(self) -> int:
        """Tensors that belong to a layer or a word."""
        return sum(map(len, (*(layer.tensors for layer in self.layers.values()), *self.words.values())))

    @property
    def layout(self) -> Layout | None:
        """The family of models it was made for; None if it does not tell."""
        return layout_of({key: layer.form.shape for key, layer in self.layers.items()})


def read_names(header: Header, config: peft.Settings | None = None) -> Reading:
    """What the tensors of a file are; `config` is the adapter_config.json beside a file of PEFT's.

    AdapterFileError, one sentence, when nothing in it is a layer that can be read, or a layer is incomplete, doubled or
    of shapes that do not belong together.
    """
    path, tensors = header.path, header.tensors
    if len(tensors) > MAX_ADAPTER_TENSORS:
        raise AdapterFileError(f"{path} holds {len(tensors):,} tensors, more than any LoRA: it is something else")
    known = {tensor: name for tensor in tensors if (name := parse(tensor)) is not None}
    first = "te1" if _is_xl(header, known) else "te"
    grouped: dict[str, dict[str, str]] = {}
    modules: dict[str, Name] = {}
    for tensor, name in known.items():
        key = f"{first if name.component in ('te', 'te1') else name.component}.{name.path}"
        if (other := grouped.setdefault(key, {}).setdefault(name.suffix, tensor)) != tensor:
            raise AdapterFileError(f"{path} is ambiguous: {shown(other)} and {shown(tensor)} are the same tensor")
        modules.setdefault(key, name)
    try:
        settings = peft.settings_in(header.metadata)
    except ValueError as error:
        raise AdapterFileError(f"{path} is not read: {error}") from None
    layers: dict[str, LayerNames] = {}
    for key, parts in grouped.items():
        layer = _layer(header, key, parts, modules[key])
        if layer is not None:
            layers[key] = _with_settings(layer, modules[key], settings, config)
    read = {name for layer in layers.values() for name in layer.tensors.values()}
    words = read_bundle(tensors) if layers else {}
    read |= {name for parts in words.values() for name in parts.values()}
    unread = [name for name in tensors if name not in read]
    if not layers or foreign.of_a_transformer(unread):  # Flux files have the text encoder of SD 1 too
        _refuse(header.path, unread)
    spellings = Counter(name.spelling for key, name in modules.items() if key in layers)
    return Reading(
        format=spellings.most_common(1)[0][0],
        layers=layers,
        unread={name: foreign.reason(name) for name in unread},
        words=words,
    )


def cross_attention_width(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Width of the text that a UNet's cross-attention reads, from shapes by layer key; None if none is there."""
    for key, shape in shapes.items():
        if key.startswith("unet.") and key.endswith(("attn2_to_k", "attn2_to_v")):
            return shape[1]
    return None


def layout_of(shapes: Mapping[str, tuple[int, ...]]) -> Layout | None:
    """The family of models that layers of these shapes by key belong to; None if they do not tell."""
    width = cross_attention_width(shapes)
    if width is not None:
        return layout_of_width(width)
    return SDXL if any(key.startswith(("te1.", "te2.")) for key in shapes) else None


def _layer(header: Header, key: str, parts: Mapping[str, str], name: Name) -> LayerNames | None:
    """The layer, or None when there is nothing of one but, say, the alpha of a form that is not read."""
    parts = dict(parts)
    of_rows = PEFT_MAGNITUDE in parts
    if of_rows:
        parts[MAGNITUDE] = parts.pop(PEFT_MAGNITUDE)
    try:
        if "diff" not in parts:
            parts.pop("diff_b", None)
        if kind_of(parts) is None:
            return None
        shapes = {suffix: header.tensors[tensor].shape for suffix, tensor in parts.items() if suffix != ALPHA}
        if of_rows:  # PEFT stores [out], and [1, out, 1, 1] for convolutions
            shapes[MAGNITUDE] = tuple(n for n in shapes[MAGNITUDE] if n != 1) or (1,)
        form = form_of(shapes)
        if ALPHA in parts and math.prod(header.tensors[parts[ALPHA]].shape) != 1:
            raise ValueError("its alpha is not a single number")
    except ValueError as error:
        raise AdapterFileError(f"{header.path} is damaged or incomplete: {key}: {error}") from None
    return LayerNames(parts, form, name.module, magnitude_of_rows=of_rows)


def _with_settings(
    layer: LayerNames, name: Name, settings: Mapping[str, peft.Settings], config: peft.Settings | None
) -> LayerNames:
    """The layer with what PEFT's settings say of its scale, unless an alpha tensor says it."""
    mine = config or settings.get(peft.COMPONENTS[name.component])
    if mine is None or ALPHA in layer.tensors or layer.form.kind != "LoRA":
        return layer
    return replace(layer, alpha=mine.alpha_of(name.module), rs=mine.rs)


def _is_xl(header: Header, names: Mapping[str, Name]) -> bool:
    """Whether the first text encoder of this file is SDXL's first of two.

    Proofs are a second encoder and, in the UNet, cross-attention to its width or transformers of three and more blocks;
    without a UNet the metadata may say it, and at last the spelling.
    """
    if any(name.component == "te2" for name in names.values()):
        return True
    unet = [name for name in names.values() if name.component == "unet"]
    if any(_BIG_TRANSFORMER.search(name.path) for name in unet):
        return True
    widths = {
        header.tensors[tensor].shape[-1:]
        for tensor, name in names.items()
        if name.suffix in (DOWN, "hada_w1_b", "diff") and name.path.endswith(("attn2_to_k", "attn2_to_v"))
    }
    if widths:
        return widths == {(SDXL.cross_attention_width,)}
    base = header.metadata.get("ss_base_model_version", "") + header.metadata.get("modelspec.architecture", "")
    if "sdxl" in base or "stable-diffusion-xl" in base:
        return True
    return not unet and any(name.component == "te1" for name in names.values())


def _refuse(path: Path, names: list[str]) -> NoReturn:
    kind = foreign.describe(names)
    if kind is not None:
        raise AdapterFileError(f"{path} is {kind}: it is not read (its first tensor is {shown(names[0])})")
    if not names:
        raise AdapterFileError(f"{path} holds no tensors: download or export it again")
    raise AdapterFileError(
        f"{path} is not a LoRA: none of its {len(names)} tensors has a name that is known, "
        f"the first is {shown(names[0])}"
    )
