"""PEFT's side of a file: what its settings say of the scale, and names and settings for writing. No torch.

diffusers puts the settings into the header as JSON under `lora_adapter_metadata`, each field behind its component
("unet.lora_alpha"); PEFT itself writes `adapter_config.json` beside `adapter_model.safetensors`. Files of either kind
without settings have a scale of 1 (alpha = rank), as diffusers has it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusion_lora.lora.formats import paths

METADATA_KEY = "lora_adapter_metadata"
CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
COMPONENTS: Mapping[str, str] = {
    "unet": "unet",
    "te": "text_encoder",
    "te1": "text_encoder",
    "te2": "text_encoder_2",
}
"""Our components in diffusers' words."""

MAX_SETTINGS_BYTES = 2 << 20
"""Settings of more are refused unparsed: those of SDXL with a pattern for every layer have 0.2 MB."""

_PLAIN_PATTERN = re.compile(r"\^?((?:\w|\\?\.)+)\$?", re.ASCII)


@dataclass(frozen=True)
class Settings:
    """What a `LoraConfig` says of the scale: alpha, other alphas by the end of a path, whether rank-stabilised."""

    alpha: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)
    rs: bool = False

    def alpha_of(self, path: str) -> float | None:
        """The alpha of a layer by its dotted path; None when the settings have none."""
        for start in _starts_of_ends(path):
            if (alpha := self.alphas.get(path[start:])) is not None:
                return alpha
        return self.alpha


def settings_of(config: Mapping[str, Any]) -> Settings:
    """From the fields of a LoraConfig. ValueError, a clause for a sentence, when they say what is not read here."""
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise ValueError(f"it is a PEFT adapter of type {kind}, and only LORA is read")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        raise ValueError("it trains biases too, which are not read")
    if config.get("modules_to_save"):
        raise ValueError("it holds whole layers beside the LoRA (modules_to_save), which are not read")
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, Mapping):
        raise ValueError("its alpha_pattern is not a table")
    alphas = {}
    for pattern, alpha in patterns.items():
        plain = _PLAIN_PATTERN.fullmatch(pattern)
        if plain is None:
            raise ValueError(f"its alpha_pattern has the expression {pattern[:80]!r}, and only plain paths are read")
        alphas[plain[1].replace("\\.", ".")] = _number(alpha)
    alpha = config.get("lora_alpha")
    return Settings(None if alpha is None else _number(alpha), alphas, bool(config.get("use_rslora", False)))


def settings_in(metadata: Mapping[str, str]) -> dict[str, Settings]:
    """Settings by diffusers' component from a header's metadata; ValueError when they are broken or not read here."""
    text = metadata.get(METADATA_KEY)
    if text is None:
        return {}
    fields = parse_settings(text)
    by_component: dict[str, dict[str, Any]] = {}
    for name, value in fields.items():
        component, _, key = name.partition(".")
        by_component.setdefault(component, {})[key] = value
    return {component: settings_of(config) for component, config in by_component.items()}


def parse_settings(text: str) -> dict[str, Any]:
    """The JSON object in `text`; ValueError when it is anything else, or longer than any settings are."""
    try:
        fields = json.loads(text) if len(text) <= MAX_SETTINGS_BYTES else None
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise ValueError("its PEFT settings are not JSON that can be read")
    return fields


def module_name(layer_key: str) -> str:
    """`te.encoder_layers_0_mlp_fc1` -> `text_encoder.text_model.encoder.layers.0.mlp.fc1`; ValueError for a layer
    that Stable Diffusion does not have."""
    component, path = layer_key.split(".", 1)
    if component not in COMPONENTS:
        raise ValueError(f"PEFT's format has no name for the component {component!r} of {layer_key!r}")
    nested = "" if component == "unet" or path == "text_projection" else "text_model."
    return f"{COMPONENTS[component]}.{nested}{paths.dotted(path, text=component != 'unet')}"


def metadata_of(ranks: Mapping[str, int], dora: Mapping[str, bool]) -> str:
    """`lora_adapter_metadata` for layers of these ranks by key, at alpha = rank (the scale lies in the tensors).

    `dora` tells by component whether its layers have magnitudes.

    With it diffusers makes its layers by these settings and not by guessing; without it they would come out the same.
    """
    fields: dict[str, Any] = {}
    for component, name in COMPONENTS.items():
        mine = {
            paths.dotted(key.split(".", 1)[1], text=component != "unet"): rank
            for key, rank in ranks.items()
            if key.startswith(component + ".")
        }
        if not mine:
            continue
        usual = Counter(mine.values()).most_common(1)[0][0]
        others = {path: rank for path, rank in sorted(mine.items()) if rank != usual}
        fields |= {
            f"{name}.{key}": value
            for key, value in {
                "peft_type": "LORA",
                "r": usual,
                "lora_alpha": usual,
                "rank_pattern": others,
                "alpha_pattern": others,
                "target_modules": sorted(mine),
                "use_rslora": False,
                "use_dora": dora.get(component, False),
                "lora_dropout": 0.0,
                "bias": "none",
                "lora_bias": False,
            }.items()
        }
    return json.dumps(fields, sort_keys=True)


def _starts_of_ends(path: str) -> list[int]:
    """Where the ends of a dotted path begin, the whole path first: PEFT's patterns match any of them."""
    return [0, *(match.end() for match in re.finditer(r"\.", path))]


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"its PEFT settings have an alpha of {str(value)[:40]!r}, which is not a number")
    return float(value)
