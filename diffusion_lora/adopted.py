"""Models by name: those of the workspace, and those in folders of other programs, used where they lie.

A folder of AUTOMATIC1111's web UI, Forge or ComfyUI is adopted by noting its place in `WORKSPACE/adopted.json`; nothing
in it is copied or moved. A model is named by its place below its root, without the suffix ("styles/ink"), with the
label of the adopted folder before it where that name is taken ("ComfyUI/styles/ink").

A name is looked up among the files that are there and is never made into a path, so it cannot lead anywhere else; and a
file counts only if it lies, after all links are followed, inside one of the roots. What the files hold is not known
here, nor what is written beside them (`sidecar`). No torch.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Literal

from diffusion_lora.errors import WorkspaceError
from diffusion_lora.run import write_atomically
from diffusion_lora.workspace import Workspace

Kind = Literal["loras", "bases"]

SETTING = "adopted.json"
SUFFIX = ".safetensors"

_PLACES: dict[Kind, tuple[str, ...]] = {
    "loras": ("models/Lora", "models/LyCORIS", "models/loras"),
    "bases": ("models/Stable-diffusion", "models/checkpoints"),
}
"""Where the three programs keep them."""

_MAX_SETTING_BYTES = 1 << 20
_MAX_DEPTH = 16  # folders below a root: a link that leads back up would have no end


@dataclass(frozen=True)
class Root:
    """A folder of models; `label` is "" for the workspace's own, else the adopted folder's name."""

    kind: Kind
    folder: Path
    label: str = ""


@dataclass(frozen=True)
class Model:
    """A file by its name; of a base also a folder in diffusers layout."""

    name: str
    path: Path
    root: Root


def adopt(workspace: Workspace, folder: Path) -> tuple[Root, ...]:
    """Use the models in a folder of another program from now on, and say which roots it has.

    The folder is the program's own (with models/ in it), or one of those that hold models (Lora, checkpoints, ...).
    Raises WorkspaceError when there is nothing of the kind in it, or it is adopted already; OutputError.
    """
    place = Path(folder).expanduser().absolute()
    if not place.is_dir():
        raise WorkspaceError(f"{folder} is no folder: name that of AUTOMATIC1111's web UI, Forge or ComfyUI")
    if place.resolve().is_relative_to(workspace.root.resolve()):
        raise WorkspaceError(f"{folder} lies in the workspace {workspace.root} itself: its models are found already")
    folders = adopted_folders(workspace)
    if any(_same(place, other) for other in folders):
        raise WorkspaceError(f"{folder} is adopted already")
    found = tuple(Root(kind, path, place.name) for kind, path in _model_folders(place))
    if not found:
        looked_for = ", ".join(place for places in _PLACES.values() for place in places)
        raise WorkspaceError(f"{folder} is no folder of AUTOMATIC1111, Forge or ComfyUI: it has none of {looked_for}")
    _save(workspace, [*folders, place])
    return found


def release(workspace: Workspace, folder: Path) -> None:
    """Forget an adopted folder; its files stay as they are. Raises WorkspaceError when it was not adopted."""
    place = Path(folder).expanduser().absolute()
    folders = adopted_folders(workspace)
    left = [other for other in folders if not _same(place, other)]
    if len(left) == len(folders):
        adopted = ", ".join(map(str, folders)) or "none"
        raise WorkspaceError(f"{folder} is not adopted; the adopted folders are: {adopted}")
    _save(workspace, left)


def adopted_folders(workspace: Workspace) -> list[Path]:
    """The adopted folders in their order, whether they are there at the moment or not. Raises WorkspaceError."""
    path = workspace.root / SETTING
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_SETTING_BYTES)
        folders = json.loads(text)["folders"]
        if not isinstance(folders, list) or not all(isinstance(folder, str) for folder in folders):
            raise ValueError("folders is no list of texts")
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise WorkspaceError(f"{path} cannot be read ({error}): mend it, or delete it and adopt anew") from None
    return [Path(folder) for folder in folders]


def roots(workspace: Workspace, kind: Kind) -> tuple[Root, ...]:
    """Where models of a kind lie: the workspace's own folder, then the adopted ones that are there."""
    own = workspace.loras if kind == "loras" else workspace.bases
    found = [Root(kind, own)]
    labels = Counter[str]()
    for folder in adopted_folders(workspace):
        label = folder.name or "root"
        labels[label] += 1
        label = label if labels[label] == 1 else f"{label}-{labels[label]}"
        found += [Root(kind, path, label) for of_kind, path in _model_folders(folder) if of_kind == kind]
    return tuple(found)


def models(workspace: Workspace, kind: Kind) -> list[Model]:
    """All models of a kind, each under a name of its own; the workspace's first, then by root and name."""
    kept = roots(workspace, kind)
    inside = [root.folder.resolve() for other in ("loras", "bases") for root in roots(workspace, other)]
    found: list[Model] = []
    taken: set[str] = set()
    for root in kept:
        places = sorted(_files(root.folder, inside), key=lambda place: (place.as_posix().lower(), place.as_posix()))
        for place in places:
            name = _free(_without_suffix(place.as_posix()), root.label, taken)
            taken.add(name)
            found.append(Model(name, root.folder / place, root))
    return found


def find_model(workspace: Workspace, kind: Kind, name: str) -> Model:
    """The model of a name: as listed, else whatever its case, else by its last part alone, where that is plain.

    Raises WorkspaceError when there is none, or the name fits several.
    """
    listed = models(workspace, kind)
    wanted = name.replace("\\", "/").removesuffix(SUFFIX)
    for fits in (
        [model for model in listed if model.name == wanted],
        [model for model in listed if model.name.casefold() == wanted.casefold()],
        [model for model in listed if model.name.rpartition("/")[2] == wanted],
        [model for model in listed if model.name.rpartition("/")[2].casefold() == wanted.casefold()],
    ):
        if len(fits) == 1:
            return fits[0]
        if fits:
            several = ", ".join(model.name for model in fits[:4])
            raise WorkspaceError(f"{name!r} may be {several}: name the one that is meant as it is written")
    noun = "LoRA" if kind == "loras" else "base"
    near = difflib.get_close_matches(wanted, [model.name for model in listed], n=1)
    hint = f"did you mean {near[0]}?" if near else f"put its file into {roots(workspace, kind)[0].folder}"
    raise WorkspaceError(f"there is no {noun} {name!r} in the workspace {workspace.root} or what it adopted: {hint}")


def model_named(workspace: Workspace, kind: Kind, name: str) -> Model | None:
    """The model that is listed under exactly this name. Raises WorkspaceError when the setting is damaged."""
    return next((model for model in models(workspace, kind) if model.name == name), None)


def lora_path(workspace: Workspace, path: Path, beside: Path | None = None) -> Path:
    """The file (or folder) at a path, relative ones taken from `beside` or the workspace's root; else that of the LoRA
    of this name, if the workspace is there.

    A path that ends in .safetensors stays a path, for whoever opens it to say that it is not there. Raises
    WorkspaceError when there is no LoRA of the name, or several.
    """
    place = (workspace.root if beside is None else beside) / path
    if place.suffix == SUFFIX or place.exists() or not workspace.root.is_dir():
        return place
    return find_model(workspace, "loras", path.as_posix()).path


def _model_folders(folder: Path) -> Iterator[tuple[Kind, Path]]:
    """The folders of models in an adopted one, each once: on some systems Lora and lora are the same."""
    seen: set[Path] = set()
    for kind, places in _PLACES.items():
        own = folder.name.lower() in {place.rpartition("/")[2].lower() for place in places}
        for path in [*(folder / place for place in places), *([folder] if own else [])]:
            if path.is_dir() and path.resolve() not in seen:
                seen.add(path.resolve())
                yield kind, path


def _files(root: Path, inside: Sequence[Path]) -> Iterator[Path]:
    """Places below a root of the models that lie inside the roots after links are followed; hidden ones left out."""
    waiting, seen = [(Path(), 0)], set[Path]()
    while waiting:
        place, depth = waiting.pop()
        resolved = _resolved(root / place)
        if resolved is None or resolved in seen or depth > _MAX_DEPTH or not _within(resolved, inside):
            continue
        seen.add(resolved)
        try:
            names = [entry.name for entry in (root / place).iterdir()]
        except OSError:  # a folder without permission, or one that has just gone, holds nothing for us
            continue
        for name in names:
            target = None if name.startswith(".") else _resolved(root / place / name)
            if target is None or not _within(target, inside):
                continue
            if (target / "model_index.json").is_file():
                yield place / name  # a base in diffusers layout is one model, whatever lies in it
            elif target.is_dir():
                waiting.append((place / name, depth + 1))
            elif name.lower().endswith(SUFFIX) and target.is_file():
                yield place / name


def _without_suffix(place: str) -> str:
    """A folder in diffusers layout has none, whatever dots are in its name."""
    return place[: -len(SUFFIX)] if place.lower().endswith(SUFFIX) else place


def _resolved(path: Path) -> Path | None:
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError):  # a link to nothing, or in a circle
        return None


def _within(path: Path, inside: Sequence[Path]) -> bool:
    return any(path.is_relative_to(root) for root in inside)


def _free(name: str, label: str, taken: set[str]) -> str:
    if name not in taken:
        return name
    labelled = f"{label}/{name}"
    numbered = (f"{labelled}-{number}" for number in count(2))
    return labelled if labelled not in taken else next(free for free in numbered if free not in taken)


def _same(one: Path, other: Path) -> bool:
    return one == other or (other.exists() and one.exists() and one.samefile(other))


def _save(workspace: Workspace, folders: Sequence[Path]) -> None:
    text = json.dumps({"folders": [str(folder) for folder in folders]}, ensure_ascii=False, indent=4)
    write_atomically(workspace.root / SETTING, text.encode())
