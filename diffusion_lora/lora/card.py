"""What a LoRA file says of itself, from its header alone: for lists of many files. No torch, no tensor is read.

A file that is no LoRA for this program gets a card too, with the sentence that says why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from diffusion_lora.errors import AdapterFileError
from diffusion_lora.layouts.layout import layout_of_width
from diffusion_lora.lora.formats import foreign, kohya
from diffusion_lora.lora.header import Header, read_header

_KINDS = ("style", "subject", "character", "concept")


@dataclass(frozen=True)
class Card:
    """One file of a folder of LoRAs.

    `name` is its place below that folder without the suffix ("mine/robot"); `rank` the one that most layers have and
    `alpha` what the metadata says; `kind` is style, subject, character or concept where the metadata's tags say so;
    `base` is what it was trained on. What is unknown is empty or None. `changed` is in unix seconds.
    """

    name: str
    path: Path
    size_bytes: int = 0
    changed: float = 0.0
    rank: int | None = None
    alpha: float | None = None
    kind: str = ""
    trigger_word: str = ""
    base: str = ""
    problem: str = ""


def read_cards(folder: Path) -> list[Card]:
    """The cards of all .safetensors files in a folder and its subfolders, by name; none if there is no such folder.

    Hidden files are left out: among them are those that are being written.
    """
    paths = sorted(folder.rglob("*.safetensors"), key=lambda path: path.relative_to(folder).as_posix().lower())
    parts = ((path, path.relative_to(folder)) for path in paths)
    return [
        read_card(path, place.with_suffix("").as_posix())
        for path, place in parts
        if not any(part.startswith(".") for part in place.parts)
    ]


def read_card(path: Path, name: str) -> Card:
    """The card of one file. Nothing is raised: what is wrong stands in `problem`."""
    try:
        status = path.stat()
        header = read_header(path)
    except AdapterFileError as error:
        return Card(name, path, problem=str(error))
    except OSError as error:
        return Card(name, path, problem=f"{path} cannot be read: {error.strerror}")
    metadata = header.metadata
    return Card(
        name=name,
        path=path,
        size_bytes=status.st_size,
        changed=status.st_mtime,
        rank=_rank(header),
        alpha=_number(metadata.get("ss_network_alpha", "")),
        kind=_kind(metadata),
        trigger_word=metadata.get("modelspec.trigger_phrase", ""),
        base=metadata.get("ss_sd_model_name", "") or _family(header),
        problem=_problem(path, header),
    )


def _layers(header: Header) -> dict[str, dict[str, str]]:
    return kohya.group(header.tensors)[0]


def _rank(header: Header) -> int | None:
    shapes = [header.tensors[parts["down"]].shape for parts in _layers(header).values() if "down" in parts]
    ranks = Counter(shape[0] for shape in shapes if shape)
    return ranks.most_common(1)[0][0] if ranks else None


def _family(header: Header) -> str:
    for key, parts in _layers(header).items():
        if key.startswith("unet.") and key.endswith("attn2_to_k") and "down" in parts:
            shape = header.tensors[parts["down"]].shape
            return layout_of_width(shape[1]).title if len(shape) > 1 else ""
    return ""


def _kind(metadata: Mapping[str, str]) -> str:
    tags = {tag.strip().lower() for tag in metadata.get("modelspec.tags", "").split(",")}
    return next((kind for kind in _KINDS if kind in tags), "")


def _problem(path: Path, header: Header) -> str:
    if _layers(header):
        return ""
    return f"{path} is no LoRA in kohya's names: it looks like {foreign.describe(header.tensors) or 'something else'}"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
