"""What people note beside a model file, as the web UIs do: read from their files, written so that they read it.

    NAME.json                   AUTOMATIC1111 and Forge: description, activation text, preferred weight, notes, ...
    NAME.civitai.info           Civitai's record of the version, as its helpers save it
    NAME.txt                    a description in plain text
    NAME.png, NAME.preview.png  a picture (jpg, jpeg, webp and gif likewise)

Ours go into NAME.json, in AUTOMATIC1111's fields; what else the file holds stays in it. Nothing in these files is
believed: what is of another type, too long or not JSON is left out, and told in `problem`. No torch.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_lora.errors import WorkspaceError
from diffusion_lora.run import write_atomically

PREVIEW_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif")

_MAX_BYTES = 4 << 20
_FIELDS = {
    "description": "description",
    "sd_version": "sd version",
    "activation_text": "activation text",
    "negative_text": "negative text",
    "notes": "notes",
}
"""AUTOMATIC1111's names of the texts (its user metadata editor); the weight beside them is a number."""

_WEIGHT = "preferred weight"
_BREAK = re.compile(r"<\s*(br|/p|/li|/h\d|/div)\b[^>]*>", re.IGNORECASE)
_MARKUP = re.compile(r"<[^>]*>")


@dataclass(frozen=True)
class Notes:
    """What is noted beside a model; empty where nothing is. `preferred_weight` 0 means none, as in A1111.

    `preview` is a picture beside the file, `problem` a sentence about a sidecar that cannot be read.
    """

    description: str = ""
    sd_version: str = ""
    activation_text: str = ""
    preferred_weight: float = 0.0
    negative_text: str = ""
    notes: str = ""
    preview: Path | None = None
    problem: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON, in A1111's fields."""
        texts = {field: getattr(self, name) for name, field in _FIELDS.items()}
        return {**texts, _WEIGHT: self.preferred_weight, "preview": None if self.preview is None else str(self.preview)}


def read_notes(model: Path, inside: Sequence[Path] = ()) -> Notes:
    """The notes beside a model file. Nothing is raised.

    Sidecars and pictures count only if they lie, after links, inside these folders (by default the model's own).
    """
    allowed = [folder.resolve() for folder in inside] or [model.parent.resolve()]
    own, problem = _object(_beside(model, ".json"), allowed)
    civitai, another = _object(_beside(model, ".civitai.info"), allowed)
    texts = {name: _text(own.get(field)) for name, field in _FIELDS.items()}
    version = civitai.get("model")
    of_model = version if isinstance(version, dict) else {}
    texts["description"] = (
        texts["description"]
        or _plain(_text(civitai.get("description")))
        or _plain(_text(of_model.get("description")))
        or _read_text(_beside(model, ".txt"), allowed)
    )
    texts["sd_version"] = texts["sd_version"] or _text(civitai.get("baseModel"))
    words = civitai.get("trainedWords")
    trained = ", ".join(filter(None, map(_text, words))) if isinstance(words, list) else ""
    texts["activation_text"] = texts["activation_text"] or trained
    return Notes(
        **texts,
        preferred_weight=_number(own.get(_WEIGHT)),
        preview=_preview(model, allowed),
        problem=problem or another,
    )


def write_notes(model: Path, changes: Mapping[str, str | float]) -> Path:
    """Change some of the notes beside a model: texts by the names of `Notes`, and `preferred_weight`.

    The other fields of NAME.json stay. Raises WorkspaceError when that file is there and is no JSON object, or a weight
    is not finite; OutputError.
    """
    path = _beside(model, ".json")
    known, problem = _object(path, [model.parent.resolve()])
    if problem:
        raise WorkspaceError(f"{problem}: mend or remove it, then note it again")
    for name, value in changes.items():
        if name == "preferred_weight":
            if not math.isfinite(float(value)):
                raise WorkspaceError(f"the preferred weight is {value}: give a number such as 0.8")
            known[_WEIGHT] = float(value)
        else:
            known[_FIELDS[name]] = str(value)
    write_atomically(path, json.dumps(known, ensure_ascii=False, indent=4).encode())
    return path


def _beside(model: Path, suffix: str) -> Path:
    """The name with dots in it stays whole: "ink.v2.safetensors" has "ink.v2.json" beside it."""
    return model.with_name(model.name.removesuffix(model.suffix) + suffix)


def _object(path: Path, allowed: Sequence[Path]) -> tuple[dict[str, Any], str]:
    """The JSON object in a file, {} where there is none, and what is wrong with it."""
    try:
        if not _lies_in(path, allowed):
            return {}, ""
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            return {}, f"{path} is not read, for it is longer than {_MAX_BYTES >> 20} MiB"
        value = json.loads(data.decode("utf-8-sig"))
    except OSError as error:
        return {}, f"{path} cannot be read: {error.strerror or error}"
    except (ValueError, RecursionError):
        return {}, f"{path} is no JSON"
    return (value, "") if isinstance(value, dict) else ({}, f"{path} is no JSON object")


def _read_text(path: Path, allowed: Sequence[Path]) -> str:
    try:
        if not _lies_in(path, allowed):
            return ""
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode("utf-8-sig", errors="replace").strip()
    except OSError:
        return ""


def _preview(model: Path, allowed: Sequence[Path]) -> Path | None:
    """A1111's order: every suffix, the bare name before the one with .preview."""
    candidates = (_beside(model, infix + suffix) for suffix in PREVIEW_SUFFIXES for infix in ("", ".preview"))
    return next((path for path in candidates if _lies_in(path, allowed)), None)


def _lies_in(path: Path, allowed: Sequence[Path]) -> bool:
    try:
        resolved = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return False
    return resolved.is_file() and any(resolved.is_relative_to(folder) for folder in allowed)


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return 0.0
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return 0.0
    return number if math.isfinite(number) else 0.0


def _plain(text: str) -> str:
    """Civitai's descriptions are HTML."""
    lines = html.unescape(_MARKUP.sub("", _BREAK.sub("\n", text))).splitlines()
    return "\n".join(filter(None, (" ".join(line.split()) for line in lines)))
