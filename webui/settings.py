"""All settings of a training as the page offers them: made from their declarations in `config`, help texts included.

The form's own fields have the few that matter; these are the others. Only what a person changes is kept, as the texts
that were typed, and settles into a configuration the way `--set` does. No Gradio.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from diffusion_lora.config import TrainConfig, allowed_values, setting_differences

_OF_THE_FORM = frozenset((
    "model.base", "dataset.path", "dataset.sources", "lora.rank", "train.steps", "train.batch_size", "train.seed",
    "train.device", "optimizer.lr", "checkpoint.every", "preview.every", "output.name", "output.trigger_word",
    "output.kind",
))  # fmt: skip
"""What has a field of its own, and would be said twice."""


def declared() -> list[dict[str, Any]]:
    """Every setting beyond the form's: key, kind (yes, choice, text), choices, help, what is allowed."""
    found = []
    for key, annotation, help_text in _fields():
        choices = _choices(annotation)
        kind = "yes" if annotation is bool else "choice" if choices else "text"
        found.append({"key": key, "kind": kind, "choices": choices, "help": help_text, "allowed": allowed_values(key)})
    return found


def values_of(config: TrainConfig) -> dict[str, str]:
    """What a configuration says for each of them, as one would type it."""
    return {key: _written(getattr(getattr(config, table), leaf)) for key, table, leaf in _keys()}


def changes(old: TrainConfig, new: TrainConfig) -> dict[str, str]:
    """In which of them two configurations differ, as one would type the new values."""
    differing = setting_differences(old, new)
    return {key: _written(differing[key][1]) for key, _, _ in _keys() if key in differing}


def overrides(changed: Mapping[str, Any] | None) -> list[str]:
    """What was changed as `--set` takes it. Keys that are none of these say nothing."""
    known = {key for key, _, _ in _keys()}
    return [f"{key}={value}" for key, value in (changed or {}).items() if key in known and str(value).strip()]


def _fields() -> Iterator[tuple[str, Any, str]]:
    for key, table, leaf in _keys():
        field = getattr(TrainConfig.model_fields[table].annotation, "model_fields", {})[leaf]
        yield key, field.annotation, field.description or ""


def _keys() -> Iterator[tuple[str, str, str]]:
    for table, field in TrainConfig.model_fields.items():
        leaves = getattr(field.annotation, "model_fields", {})
        for leaf in leaves:
            key = f"{table}.{leaf}"
            if key not in _OF_THE_FORM:
                yield key, table, leaf


def _choices(annotation: Any) -> list[str]:
    """The words that a setting may be, where it may be nothing else."""
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return []


def _written(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_written(item)}" for key, item in value.items()) + " }"
    if isinstance(value, tuple):
        return json.dumps(value, default=str)
    return f"{value:g}" if isinstance(value, float) else str(value)
