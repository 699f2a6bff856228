"""Choosing the layers a LoRA is trained on: presets and regular expressions over the model's own dotted paths.

A component is a part of the model that adapters touch: "unet" and "te" (its text encoder; SDXL: "te1", "te2"). The key
of a layer is its component and its path with underscores for dots, `unet.mid_block_attentions_0_proj_in`: dotted to
flat is unique, flat to dotted is not, so the flat form is the one everything agrees on. Wrapping and freezing is the
bank's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from diffusion_lora.errors import ConfigError
from diffusion_lora.lora.layer import LoraLayer, can_wrap
from diffusion_lora.lora.unet_blocks import BASE, block_names, chosen_blocks

_ATTENTION = (r"\.attn[12]\.to_(q|k|v|out\.0)$",)
_FEED_FORWARD = (r"\.ff\.net\.(0\.proj|2)$",)
# Of XL's add_embedding diffusers loses what is in kohya's names, with no more than a line in its log.
_ALL = r"^(?!add_embedding\.)"
PRESETS: Mapping[str, tuple[str, ...]] = {
    "attention": _ATTENTION,
    "attention+mlp": (*_ATTENTION, *_FEED_FORWARD),
    "linear": (_ALL,),
    "wide": (
        *_ATTENTION,
        *_FEED_FORWARD,
        r"\.proj_(in|out)$",
        r"\.resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)$",
        r"\.(down|up)samplers\.\d+\.conv$",
        r"^time_embedding\.linear_[12]$",
    ),
    "everything": (_ALL,),
    "qv": (r"\.attn[12]\.to_[qv]$",),
}
"""Named targets in the UNet, as patterns searched for in a layer's dotted path. `linear` leaves out what is no matrix:
convolutions larger than 1 x 1. `wide` is everything but the first and the last convolution."""

_TEXT_ATTENTION = (r"\.self_attn\.(q|k|v|out)_proj$",)
TEXT_PRESETS: Mapping[str, tuple[str, ...]] = {
    "attention": _TEXT_ATTENTION,
    "attention+mlp": (*_TEXT_ATTENTION, r"\.mlp\.fc[12]$"),
    "none": (),
}
"""Named targets in the text encoder. All four projections or none: other programs recognise a text encoder's LoRA by
`out_proj`."""


class Site(NamedTuple):
    """Where a layer lives: `path` is its dotted name inside the component."""

    component: str
    path: str
    module: nn.Module

    @property
    def weight(self) -> Tensor:
        """The layer's weight, ``[out, in(, k, k)]``."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight


def find_sites(components: Mapping[str, nn.Module]) -> dict[str, Site]:
    """Every layer that can carry an adapter, by key, in the model's own order; of a wrapped layer, the plain one."""
    sites = {}
    for component, root in components.items():
        plain = {id(module.base): path for path, module in root.named_modules() if isinstance(module, LoraLayer)}
        for path, module in root.named_modules():
            if can_wrap(module):
                path = plain.get(id(module), path)
                sites[layer_key(component, path)] = Site(component, path, module)
    return sites


def layer_key(component: str, path: str) -> str:
    """`unet`, `mid_block.attentions.0.proj_in` -> `unet.mid_block_attentions_0_proj_in`.

    Some versions of transformers nest the CLIP text encoder in a `text_model` and some do not: the key leaves it out.
    """
    return f"{component}.{path.removeprefix('text_model.').replace('.', '_')}"


def select_layers(
    components: Mapping[str, nn.Module],
    targets: str | Sequence[str] = "attention",
    text_targets: str = "attention",
    blocks: Sequence[str] | Sequence[int] = (),
) -> dict[str, Site]:
    """The layers to train: `targets` in the UNet, `text_targets` in the text encoder, both only in these `blocks`.

    `targets` is a preset's name or a list of regular expressions, each searched for in the dotted paths of the UNet's
    linear and convolution layers. `blocks` are names or a list of zeros and ones (`unet_blocks`); none means all.
    ConfigError when a name is unknown, an expression is broken or matches nothing, or nothing is left.
    """
    return select_sites(find_sites(components), targets, text_targets, blocks)


def select_sites(
    sites: Mapping[str, Site],
    targets: str | Sequence[str],
    text_targets: str,
    blocks: Sequence[str] | Sequence[int] = (),
) -> dict[str, Site]:
    """`select_layers` for sites already found."""
    unet = [site for site in sites.values() if site.component == "unet"]
    if isinstance(targets, str):
        if targets not in PRESETS:
            raise ConfigError(f'lora.targets = "{targets}" is unknown: use {_quoted(PRESETS)}, or a list of patterns')
        patterns: Sequence[str] = PRESETS[targets]
        if not any(_matches(patterns, site) for site in unet):
            raise ConfigError(f'lora.targets = "{targets}" matches no layer of this base: give a list of patterns')
    else:
        patterns = targets
        _check_patterns(patterns, unet)
    if text_targets not in TEXT_PRESETS:
        raise ConfigError(f'lora.text_targets = "{text_targets}" is unknown: use {_quoted(TEXT_PRESETS)}')
    text_patterns = TEXT_PRESETS[text_targets]
    selected = {
        key: site
        for key, site in sites.items()
        if _matches(patterns if site.component == "unet" else text_patterns, site)
        and not (targets == "linear" and site.component == "unet" and any(n != 1 for n in site.weight.shape[2:]))
    }
    return _in_blocks(selected, sites, blocks) if blocks else selected


def _in_blocks(
    selected: Mapping[str, Site], sites: Mapping[str, Site], blocks: Sequence[str] | Sequence[int]
) -> dict[str, Site]:
    names = block_names(site.path for site in sites.values() if site.component == "unet")
    chosen = chosen_blocks(names, blocks)
    left = {
        key: site
        for key, site in selected.items()
        if (names.get(site.path) if site.component == "unet" else BASE) in chosen
    }
    if not left:
        raise ConfigError(f"lora.blocks = {list(blocks)} leaves none of the {len(selected)} layers that targets choose")
    return left


def _matches(patterns: Iterable[str], site: Site) -> bool:
    return any(re.search(pattern, site.path) for pattern in patterns)


def _check_patterns(patterns: Sequence[str], sites: Sequence[Site]) -> None:
    if not patterns:
        raise ConfigError(f"lora.targets is an empty list: use {_quoted(PRESETS)}, or a list of patterns")
    for pattern in patterns:
        try:
            found = any(re.search(pattern, site.path) for site in sites)
        except re.error as error:
            raise ConfigError(f'lora.targets: "{pattern}" is not a regular expression: {error}') from None
        if not found:
            example = sites[len(sites) // 2].path if sites else "nothing"
            raise ConfigError(f'lora.targets: "{pattern}" matches no layer of this base, whose layers read "{example}"')


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
