"""What a run was started on, kept in its folder: a resume over other pictures or captions is noticed. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_lora.data.dataset import Dataset
from diffusion_lora.errors import RunError
from diffusion_lora.run import write_atomically

NAME = "dataset.json"
_FORMAT = 1
_SHOWN = 3


def fingerprint(dataset: Dataset) -> dict[str, dict[str, Any]]:
    """Of each picture what training sees of it: the hash of its pixels, its captions, the hash of its mask."""
    rows = zip(dataset.items, dataset.seen, dataset.masks, strict=True)
    return {
        f"{item.source}/{item.name}": {"pixels": seen.pixels, "captions": list(item.captions), "mask": mask}
        for item, seen, mask in rows
    }


def changes(before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """How a set differs from what it was, a phrase for each kind of change; none if it does not."""
    both = [name for name in now if name in before]
    kinds = {
        "added": [name for name in now if name not in before],
        "gone": [name for name in before if name not in now],
        "with other pixels": [name for name in both if now[name]["pixels"] != before[name]["pixels"]],
        "with another caption": [name for name in both if now[name]["captions"] != before[name]["captions"]],
        "with another mask": [name for name in both if now[name]["mask"] != before[name]["mask"]],
    }
    return [f"{len(names)} {kind} ({_shown(names)})" for kind, names in kinds.items() if names]


def check_fingerprint(folder: Path, dataset: Dataset, *, began: bool, accept: bool) -> str | None:
    """Compare a set with what the run in a folder began with, and keep it there.

    Returns a sentence to tell when a run that `began` goes on over changes. Raises RunError for changes that were not
    accepted, OutputError.
    """
    path, now = folder / NAME, fingerprint(dataset)
    before = _read(path) if began else None
    differing = changes(before, now) if before is not None else []
    if differing and not accept:
        raise RunError(
            f"the data set has changed since the run in {folder} began: {'; '.join(differing)}: put it back, add "
            "--accept-changed-data (dataset.accept_changes = true) to go on with what is there now, or start a new run"
        )
    if before is None or differing:
        write_atomically(path, json.dumps({"format": _FORMAT, "pictures": now}, ensure_ascii=False, indent=0).encode())
    return f"going on with a changed data set: {'; '.join(differing)}" if differing else None


def _read(path: Path) -> dict[str, dict[str, Any]] | None:
    """The pictures a fingerprint names; None where there is none: the run is older than fingerprints."""
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}): remove it to go on without comparing the data set") from error
    return dict(written["pictures"])


def _shown(names: Sequence[str]) -> str:
    told = ", ".join(name.partition("/")[2] for name in names[:_SHOWN])
    return told + (", ..." if len(names) > _SHOWN else "")
