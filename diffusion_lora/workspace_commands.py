"""The `workspace` commands: folders of other programs used in place, the models of all, and the notes beside them.

Thin, as `cli` is. No torch is imported by any of them.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from diffusion_lora.workspace import Workspace

app = typer.Typer(help="Models by name: the workspace's, and those of folders it adopted.", no_args_is_help=True)


class _Kind(StrEnum):
    LORAS = "loras"
    BASES = "bases"


_Workspace = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Where all is kept; by default $DIFFUSION_LORA_WORKSPACE or ~/diffusion-lora."),
]
_Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Of AUTOMATIC1111's web UI, Forge or ComfyUI.")]
_Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]


@app.command()
def adopt(folder: _Folder, workspace: _Workspace = None) -> None:
    """Use the models of another program's folder where they lie: nothing is copied."""
    from diffusion_lora.adopted import adopt as adopt_folder
    from diffusion_lora.adopted import models

    place = _open(workspace)
    for root in adopt_folder(place, folder):
        found = sum(model.root.folder == root.folder for model in models(place, root.kind))
        print(f"{root.kind}: {root.folder} ({found} files)")


@app.command()
def release(folder: _Folder, workspace: _Workspace = None) -> None:
    """Forget an adopted folder; its files stay as they are."""
    from diffusion_lora.adopted import release as release_folder

    release_folder(_open(workspace), folder)
    print(f"{folder} is no longer used; nothing in it was changed")


@app.command("list")
def list_models(
    kind: Annotated[_Kind, typer.Argument(help="loras or bases.")] = _Kind.LORAS,
    workspace: _Workspace = None,
    as_json: _Json = False,
) -> None:
    """All models by name, with what is noted beside them."""
    from diffusion_lora.adopted import adopted_folders, models, roots
    from diffusion_lora.sidecar import read_notes

    place = _open(workspace)
    inside = [root.folder for root in roots(place, kind.value)]
    noted = [(model, read_notes(model.path, inside)) for model in models(place, kind.value)]
    gone = [str(folder) for folder in adopted_folders(place) if not folder.is_dir()]
    if as_json:
        told = [{"name": model.name, "path": str(model.path), **notes.as_dict()} for model, notes in noted]
        print(json.dumps({kind.value: told, "not_there": gone}, ensure_ascii=False))
        return
    for model, notes in noted:
        weight = f"{notes.preferred_weight:g}" if notes.preferred_weight else ""
        print("  ".join(filter(None, (model.name, weight, notes.activation_text.replace("\n", " ")))))
        if notes.problem:
            print(f"  note: {notes.problem}")
    if not noted:
        print(f"none: put .safetensors files into {inside[0]}, or adopt a folder with `workspace adopt FOLDER`")
    for folder in gone:
        print(f"note: the adopted folder {folder} is not there")


@app.command()
def notes(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A LoRA's, as `workspace list` tells it.")],
    description: Annotated[str | None, typer.Option(metavar="TEXT", help="What it is.")] = None,
    activation: Annotated[str | None, typer.Option(metavar="TEXT", help="Words that call it up.")] = None,
    weight: Annotated[float | None, typer.Option(metavar="STRENGTH", help="The strength that suits it.")] = None,
    negative: Annotated[str | None, typer.Option(metavar="TEXT", help="For the negative prompt.")] = None,
    text: Annotated[str | None, typer.Option("--notes", metavar="TEXT", help="Anything else.")] = None,
    workspace: _Workspace = None,
    as_json: _Json = False,
) -> None:
    """What is noted beside a LoRA; with options, note it: in NAME.json, as AUTOMATIC1111 does."""
    from diffusion_lora.adopted import find_model, roots
    from diffusion_lora.sidecar import read_notes, write_notes

    place = _open(workspace)
    model = find_model(place, "loras", name)
    given: dict[str, str | float | None] = {
        "description": description,
        "activation_text": activation,
        "preferred_weight": weight,
        "negative_text": negative,
        "notes": text,
    }
    changes = {field: value for field, value in given.items() if value is not None}
    if changes:
        write_notes(model.path, changes)
    found = read_notes(model.path, [root.folder for root in roots(place, "loras")])
    if as_json:
        print(json.dumps({"name": model.name, "path": str(model.path), **found.as_dict()}, ensure_ascii=False))
        return
    print(model.path)
    for field, value in found.as_dict().items():
        if value:
            print(f"{field}: {value}")
    if found.problem:
        print(f"note: {found.problem}")


def _open(workspace: Path | None) -> Workspace:
    from diffusion_lora.workspace import Workspace

    return Workspace.open(workspace)
