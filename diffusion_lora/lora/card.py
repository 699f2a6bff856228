"""What a LoRA file says of itself, from its header alone: for lists of many files. No torch, no tensor is read.

A file that is no LoRA for this program gets a card too, with the sentence that says why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from diffusion_lora.adopted import models, roots
from diffusion_lora.errors import AdapterFileError
from diffusion_lora.layouts.layout import layout_of_width
from diffusion_lora.lora.calibrated import calibrated_strength
from diffusion_lora.lora.formats import foreign
from diffusion_lora.lora.formats.forms import DOWN, Shape
from diffusion_lora.lora.formats.names import parse
from diffusion_lora.lora.header import Header, read_header
from diffusion_lora.sidecar import read_notes
from diffusion_lora.workspace import Workspace

_KINDS = ("style", "subject", "character", "concept")


@dataclass(frozen=True)
class Card:
    """One file of a folder of LoRAs.

    `name` is its place below that folder without the suffix ("mine/robot"); `rank` the one that most layers have and
    `alpha` what the metadata says; `kind` is style, subject, character or concept where the metadata's tags say so;
    `base` is what it was trained on. What is unknown is empty or None. `changed` is in unix seconds. `preferred_weight`
    is what is noted beside the file, else what calibration wrote into it, 0 for none; `preview` a picture beside it.
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
    preferred_weight: float = 0.0
    preview: Path | None = None


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


def workspace_cards(workspace: Workspace) -> list[Card]:
    """The cards of all LoRAs of a workspace, adopted ones too, with what is noted beside them (`sidecar`).

    Raises WorkspaceError when the list of adopted folders cannot be read.
    """
    inside = [root.folder for root in roots(workspace, "loras")]
    cards = []
    for model in models(workspace, "loras"):
        card, notes = read_card(model.path, model.name), read_notes(model.path, inside)
        words = card.trigger_word or " ".join(notes.activation_text.split())
        cards.append(
            replace(
                card,
                trigger_word=words,
                preferred_weight=notes.preferred_weight or card.preferred_weight,
                preview=notes.preview,
            )
        )
    return cards


def read_card(path: Path, name: str) -> Card:
    """The card of one file. Nothing is raised: what is wrong stands in `problem`."""
    try:
        header = read_header(path)
        status = path.stat()
    except AdapterFileError as error:
        return Card(name, path, problem=str(error))
    except OSError as error:
        return Card(name, path, problem=f"{path} cannot be read: {error.strerror}")
    metadata, layers = header.metadata, _layers(header)
    problem = f"{path} is no LoRA: it looks like {foreign.describe(header.tensors) or 'something else'}"
    return Card(
        name=name,
        path=path,
        size_bytes=status.st_size,
        changed=status.st_mtime,
        rank=_rank(layers),
        alpha=_number(metadata.get("ss_network_alpha", "")),
        kind=_kind(metadata),
        trigger_word=metadata.get("modelspec.trigger_phrase", ""),
        base=metadata.get("ss_sd_model_name", "") or _family(layers),
        problem="" if layers else problem,
        preferred_weight=calibrated_strength(metadata),
    )


def _layers(header: Header) -> dict[str, dict[str, Shape]]:
    """The shapes of each layer's tensors by suffix, by the layer's key."""
    layers: dict[str, dict[str, Shape]] = {}
    for tensor, info in header.tensors.items():
        name = parse(tensor)
        if name is not None:
            layers.setdefault(name.key, {})[name.suffix] = info.shape
    return layers


def _rank(layers: Mapping[str, Mapping[str, Shape]]) -> int | None:
    ranks = Counter(shapes[DOWN][0] for shapes in layers.values() if shapes.get(DOWN))
    return ranks.most_common(1)[0][0] if ranks else None


def _family(layers: Mapping[str, Mapping[str, Shape]]) -> str:
    for key, shapes in layers.items():
        if key.startswith("unet.") and key.endswith("attn2_to_k") and len(shapes.get(DOWN, ())) > 1:
            return layout_of_width(shapes[DOWN][1]).title
    return ""


def _kind(metadata: Mapping[str, str]) -> str:
    tags = {tag.strip().lower() for tag in metadata.get("modelspec.tags", "").split(",")}
    return next((kind for kind in _KINDS if kind in tags), "")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
