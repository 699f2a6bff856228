"""The `dataset` commands that change or copy a set: captions rewritten and taken back, pictures compared, exported.

Thin, as `cli` is. No base is loaded, only its tokenizer.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from diffusion_lora.caption_commands import (
    CountBase,
    DryRun,
    Folder,
    Form,
    MaxTokens,
    Prefix,
    RuleFile,
    Rules,
    Subfolders,
    TheForm,
    asked_of,
    shape_of,
    show_change,
)
from diffusion_lora.errors import DatasetError

_Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]


class To(StrEnum):
    """What a set is exported as."""

    KOHYA = "kohya"
    IMAGEFOLDER = "imagefolder"
    ZIP = "zip"


class Pictures(StrEnum):
    """The format that pictures are written in."""

    AS_IS = "as is"
    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"


def add_to(app: typer.Typer) -> None:
    """Add these commands to the `dataset` ones."""
    for command, name in ((edit, "edit"), (undo, "undo"), (stats, "stats"), (dedupe, "dedupe"), (export, "export"),
                          (import_, "import"), (masks, "masks")):  # fmt: skip
        app.command(name)(command)


def edit(
    folder: Folder,
    rule: Rules = None,
    rules: RuleFile = None,
    prefix: Prefix = "",
    form: TheForm = Form.AS_IS,
    max_tokens: MaxTokens = 0,
    base: CountBase = "pocket",
    subfolders: Subfolders = False,
    dry_run: DryRun = False,
) -> None:
    """Rewrite the captions of a folder by rules."""
    from diffusion_lora.data.edits import Edit
    from diffusion_lora.data.problems import Problem
    from diffusion_lora.data.rewriting import captioned, rewrite

    root = folder.absolute()
    shape = shape_of(prefix, rule, rules, form, max_tokens, base)
    if asked_of(shape, base) == asked_of(type(shape)(), base):
        raise DatasetError("nothing is asked for: give --rule, --rules, --prefix, --form or --max-tokens")
    problems: list[Problem] = []
    found = captioned(root, "subfolders" if subfolders else "auto", problems.append)
    if dry_run:
        changed = 0
        for each, after in rewrite(found, shape, None):
            show_change(each.item.name, each.text, after)
            changed += 1
        print(f"{changed} captions would change")
    else:
        order = Edit.of(root, {"what": "edit", **asked_of(shape, base)})
        with order.at_work():
            changed = sum(1 for _ in rewrite(found, shape, order))
        order.finish()
        print(f"{changed} captions changed" + ("; `dataset undo` takes it back" if changed else ""))
    for problem in problems:
        print(f"left as it is: {problem.text}")


def undo(
    folder: Folder,
    force: Annotated[bool, typer.Option("--force", help="Captions that were changed since, too.")] = False,
) -> None:
    """Take the newest edit back, byte for byte: a captioning, a `dataset edit`, or a mask painted on the page."""
    from diffusion_lora.data.edits import undo as take_back

    done = take_back(folder.absolute(), force=force)
    kind = "masks" if done.asked.get("what") == "mask" else "captions"
    print(f"{done.restored} {kind} are as they were before: {done.asked.get('what', 'an edit')}")
    if done.kept:
        shown = ", ".join(done.kept[:5]) + (", ..." if len(done.kept) > 5 else "")
        print(f"{len(done.kept)} were changed since and are left alone: {shown} (--force takes them back too)")


def stats(
    folder: Folder,
    base: CountBase = "pocket",
    subfolders: Subfolders = False,
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Words and tags shown.")] = 20,
    look: Annotated[bool, typer.Option("--look", help="Look at the pixels too: sharpness and exposure.")] = False,
    as_json: _Json = False,
) -> None:
    """Words, tags, lengths and shapes of a set; with --look blurred, dark and bright pictures."""
    from diffusion_lora.data.stats import describe
    from diffusion_lora.families.reading import base_size, chunk_size, load_base_tokenizer

    tokenizer = load_base_tokenizer(base)
    size_px, factor = base_size(base)
    found = describe(
        folder.absolute(),
        "subfolders" if subfolders else "auto",
        count=lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids),
        room=chunk_size(tokenizer, 75),
        size_px=size_px,
        factor=factor,
        look=look,
    )
    if as_json:
        print(json.dumps(found.as_json(), ensure_ascii=False, indent=2))
        return
    from diffusion_lora.faces.dataset_stats import show_stats

    show_stats(found, top)


def dedupe(
    folder: Folder,
    subfolders: Subfolders = False,
    move: Annotated[Path | None, typer.Option(metavar="DIR", help="All but the best of a group go there.")] = None,
    as_json: _Json = False,
) -> None:
    """Groups of pictures that look the same, the best of each first; with --move the others leave the set."""
    from diffusion_lora.data.dedupe import groups, move_away
    from diffusion_lora.data.store import cache_folder

    found = groups(folder.absolute(), "subfolders" if subfolders else "auto", cache_folder() / "pictures")
    if as_json:
        print(json.dumps([[item.name for item in group] for group in found], ensure_ascii=False, indent=2))
    else:
        for group in found:
            best, *others = group
            print(f"keep {best.name} ({best.size[0]} x {best.size[1]}): like it "
                  + ", ".join(f"{item.name} ({item.size[0]} x {item.size[1]})" for item in others))  # fmt: skip
        extra = sum(len(group) - 1 for group in found)
        print(f"{len(found)} groups, {extra} pictures more than needed")
    if move is not None:
        moved = move_away(folder.absolute(), found, move.absolute())
        print(f"{moved} pictures moved to {move}")


def export(
    folder: Folder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder, or a .zip file.")],
    to: Annotated[To, typer.Option(help="kohya's folder, Hugging Face's imagefolder, or a zip.")] = To.KOHYA,
    name: Annotated[str, typer.Option(metavar="NAME", help="Of the concept, in kohya's folder name.")] = "",
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="In kohya's folder name.")] = 1,
    longest: Annotated[int, typer.Option("--longest", min=0, metavar="PX", help="Larger pictures shrink.")] = 0,
    crop: Annotated[str, typer.Option(metavar="WxH", help="All pictures cut and scaled to one size.")] = "",
    pictures: Annotated[Pictures, typer.Option(help="The format of the copies.")] = Pictures.AS_IS,
    subfolders: Subfolders = False,
) -> None:
    """Copy a set with its captions into the form other programs read."""
    from diffusion_lora.data.exports import Copying, export_set

    copying = Copying(longest_px=longest, crop=_size(crop), pictures=pictures.value)
    count = export_set(folder.absolute(), out.absolute(), to.value, "subfolders" if subfolders else "auto",
                       name or folder.absolute().name, repeats, copying)  # fmt: skip
    print(f"{count} pictures exported to {out}")


def import_(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A zip, a folder, or a hub id of a data set.")],
    folder: Folder,
    revision: Annotated[str | None, typer.Option(metavar="NAME", help="Of a hub id.")] = None,
) -> None:
    """Copy pictures and captions of a zip, a folder or a data set of the hub into a new folder."""
    from diffusion_lora.data.imports import import_folder, import_zip
    from diffusion_lora.families.hub import dataset_folder, is_hub_id

    path = Path(source).expanduser()
    if path.is_file():
        count = import_zip(path, folder.absolute())
    elif path.is_dir():
        count = import_folder(path.absolute(), folder.absolute())
    elif is_hub_id(source):
        count = import_folder(dataset_folder(source, revision), folder.absolute())
    else:
        raise DatasetError(f"there is no {source!r}: name a zip, a folder, or a hub id such as owner/name")
    print(f"{count} files imported into {folder}")


def masks(folder: Folder, subfolders: Subfolders = False) -> None:
    """Masks of what stands before the background: NAME.mask.png beside each picture that has none. Needs rembg."""
    from diffusion_lora.data.masks import make_masks

    print(f"{make_masks(folder.absolute(), 'subfolders' if subfolders else 'auto')} masks made")


def _size(text: str) -> tuple[int, int] | None:
    width, cross, height = text.partition("x")
    if not text:
        return None
    if not (cross and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise DatasetError(f"--crop {text!r} is not a size such as 512x768")
    return int(width), int(height)
