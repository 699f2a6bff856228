"""A configuration from another program's settings: a LoRA's header, a kohya_ss JSON, a OneTrainer preset.

What has an equal here is taken over, everything else that bears on what is learned is listed. No torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_lora.config import TrainConfig, parse_train_config, to_toml
from diffusion_lora.errors import ConfigError
from diffusion_lora.lora.header import read_header
from diffusion_lora.train.foreign import Translation
from diffusion_lora.train.foreign_kohya import from_form, from_metadata
from diffusion_lora.train.foreign_onetrainer import from_preset

_MOST_BYTES = 16 << 20
_NOWHERE = "pictures"  # until somebody says where they are


@dataclass(frozen=True)
class Foreign:
    """The configuration, which program it is from, what has no equal here, and what is left to do."""

    config: TrainConfig
    program: str
    lost: tuple[str, ...]
    notes: tuple[str, ...]


def read_foreign(path: Path, *, dataset: str | None = None, base: str | None = None) -> Foreign:
    """The configuration in a foreign file; `dataset` and `base` stand in for what the file names, or does not.

    Raises ConfigError for a file of none of these kinds; AdapterFileError for a LoRA that cannot be read.
    """
    program, told = _translated(path)
    notes = list(told.notes)
    settings = dict(told.settings)
    settings["dataset.path"] = dataset or settings.get("dataset.path") or _NOWHERE
    if settings["dataset.path"] == _NOWHERE and not dataset:
        notes.append("it does not say where pictures are: set dataset.path")
    if base or "model.base" not in settings:
        settings["model.base"] = base or "pocket"
        if not base:
            notes.append("it does not say on which base: set model.base")
    tree: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        table, leaf = key.split(".")
        tree.setdefault(table, {})[leaf] = value
    config = parse_train_config(_as_toml(tree), source=str(path))
    return Foreign(config, program, tuple(told.lost), tuple(notes))


def foreign_toml(foreign: Foreign, path: Path) -> str:
    """The configuration as TOML, with what has no equal, and what is left to do, as comments on top."""
    head = [f"# from {path.name} ({foreign.program})"]
    for title, lines in (("what has no equal here", foreign.lost), ("what is left to do", foreign.notes)):
        head += [f"# {title}:", *(f"#   {' '.join(line.split())}" for line in lines)] if lines else []
    return "\n".join(head) + "\n\n" + to_toml(foreign.config)


def _translated(path: Path) -> tuple[str, Translation]:
    if path.suffix == ".safetensors":
        metadata = read_header(path).metadata
        if not any(key.startswith("ss_") for key in metadata):
            raise ConfigError(f"{path} says nothing of its training (no ss_ metadata): name another file")
        return "kohya's metadata", from_metadata(metadata)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"{path} is too large for settings: name a LoRA, a kohya_ss JSON or a OneTrainer preset")
        given = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{path} is neither a LoRA (.safetensors) nor JSON: name one of these") from None
    if isinstance(given, dict) and ("training_method" in given or "learning_rate_scheduler" in given):
        if given.get("training_method") not in (None, "LORA"):
            raise ConfigError(f"{path} is a OneTrainer preset for {given['training_method']}, and not for a LoRA")
        return "OneTrainer", from_preset(given)
    if isinstance(given, dict) and ("network_dim" in given or "LoRA_type" in given):
        return "kohya_ss", from_form(given)
    if isinstance(given, dict) and any(key.startswith("ss_") for key in given):
        return "kohya's metadata", from_metadata({key: str(value) for key, value in given.items()})
    raise ConfigError(f"{path} holds no settings of kohya_ss (network_dim) or OneTrainer (training_method)")


def _as_toml(tree: dict[str, dict[str, Any]]) -> str:
    lines = []
    for table, leaves in tree.items():
        lines.append(f"[{table}]")
        # JSON's texts, numbers, switches and lists are TOML's too.
        lines += [f"{leaf} = {json.dumps(list(v) if isinstance(v, tuple) else v)}" for leaf, v in leaves.items()]
    return "\n".join(lines)
