"""The metadata of an adapter that was computed from others: what still holds is kept, what does not is left out.

Other programs read the family, the base, the trigger words and the tags from it; a resized file is the same LoRA to
them, a merged one a new LoRA with ancestors (modelspec's `merged_from`). Hashes are the writer's. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_OF_THE_BASE = (
    "ss_v2",
    "ss_base_model_version",
    "ss_sd_model_name",
    "ss_sd_model_hash",
    "ss_new_sd_model_hash",
    "ss_clip_skip",
    "ss_resolution",
    "modelspec.architecture",
    "modelspec.implementation",
    "modelspec.resolution",
    "modelspec.prediction_type",
)
_OF_THE_FORM = ("ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args", "lora_adapter_metadata")


def of_resized(metadata: Mapping[str, str], form: Mapping[str, str]) -> dict[str, str]:
    """All that the original says but its ranks and hashes, which are `form`'s and the writer's."""
    kept = {key: value for key, value in metadata.items() if key not in _OF_THE_FORM and not key.startswith("sshs_")}
    return {**kept, **form}


def of_merged(sources: Sequence[tuple[str, Mapping[str, str]]], form: Mapping[str, str], how: str) -> dict[str, str]:
    """What all of (name, metadata) agree on about their base; names, trigger words and tags of all of them."""
    all_metadata = [metadata for _, metadata in sources]
    merged = {
        key: all_metadata[0][key]
        for key in _OF_THE_BASE
        if all(metadata.get(key) == all_metadata[0].get(key) for metadata in all_metadata) and key in all_metadata[0]
    }
    merged |= form
    merged["ss_training_comment"] = f"merged ({how}) from " + ", ".join(name for name, _ in sources)
    merged["modelspec.sai_model_spec"] = "1.0.1"
    merged["modelspec.merged_from"] = ", ".join(name for name, _ in sources)
    if triggers := _unique(metadata.get("modelspec.trigger_phrase", "") for metadata in all_metadata):
        merged["modelspec.trigger_phrase"] = ", ".join(triggers)
    if tags := _tags(all_metadata):
        merged["ss_tag_frequency"] = json.dumps(tags)
    return merged


def of_extracted(tuned: str, base: str, form: Mapping[str, str]) -> dict[str, str]:
    """Of an adapter that is the difference of two checkpoints."""
    return {
        "ss_sd_model_name": base,
        **form,
        "ss_training_comment": f"extracted: {tuned} minus {base}",
        "modelspec.sai_model_spec": "1.0.1",
    }


def of_plain(ranks: Iterable[int], conv_ranks: Iterable[int], alpha: float) -> dict[str, str]:
    """kohya's words for a plain adapter's form; mixed ranks are "Dynamic", as its own resizing says."""
    dims, conv_dims = sorted(set(ranks)), sorted(set(conv_ranks))
    arguments = {"conv_dim": str(conv_dims[-1]), "conv_alpha": f"{alpha:g}"} if conv_dims else {}
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(dims[0]) if len(dims) == 1 else "Dynamic",
        "ss_network_alpha": f"{alpha:g}",
        "ss_network_args": json.dumps(arguments),
    }


def named(metadata: Mapping[str, str], name: str) -> dict[str, str]:
    """With the name that web UIs list it under; two files of one name are one to them."""
    return {**metadata, "ss_output_name": name, "modelspec.title": name}


def base_of(metadata: Mapping[str, str]) -> str:
    """What it was trained on, "" if it does not say."""
    return metadata.get("ss_sd_model_name") or metadata.get("ss_base_model_version") or ""


def _unique(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(text for text in texts if text))


def _tags(all_metadata: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Tag counts by data folder, of all; one that cannot be read is left out."""
    tags: dict[str, Any] = {}
    for metadata in all_metadata:
        try:
            tags |= dict(json.loads(metadata.get("ss_tag_frequency", "{}")))
        except (ValueError, TypeError):
            continue
    return tags
