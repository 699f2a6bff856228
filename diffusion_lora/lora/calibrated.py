"""The strength that suits an adapter, as its file says it: a metadata key of our own, and the note beside the file.

Where the number comes from is `train.calibrate`'s. Only the header is written anew; tensors and their hash stay. What
is computed from a file keeps the key as it keeps its other words, unless it is another adapter. No torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_lora.errors import AdapterFileError
from diffusion_lora.lora.header import read_header, with_metadata
from diffusion_lora.run import write_atomically
from diffusion_lora.sidecar import write_notes

KEY = "diffusion_lora.calibration"


def with_calibration(metadata: Mapping[str, str], facts: Mapping[str, Any]) -> dict[str, str]:
    """The metadata with these facts, of which `strength` is one."""
    return {**metadata, KEY: json.dumps(facts)}


def calibration_facts(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What the metadata says; empty where it says nothing that can be read."""
    try:
        facts = json.loads(metadata.get(KEY, "{}"))
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) and _strength(facts) else {}


def calibrated_strength(metadata: Mapping[str, str]) -> float:
    """The strength that suits; 0 where nothing is said, as in A1111's "preferred weight"."""
    return _strength(calibration_facts(metadata))


def note_calibration(path: Path, facts: Mapping[str, Any]) -> None:
    """Say it in a file's header and in the note beside it. Raises AdapterFileError, WorkspaceError, OutputError."""
    header = read_header(path)
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise AdapterFileError(f"{path} cannot be read: {error.strerror or error}") from error
    write_atomically(path, with_metadata(blob, with_calibration(header.metadata, facts)))
    write_notes(path, {"preferred_weight": float(facts["strength"])})


def _strength(facts: Mapping[str, Any]) -> float:
    value = facts.get("strength", 0.0)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else 0.0
