"""Masks of a set's pictures, as the page paints them: NAME.mask.png beside the picture, white counts in the loss.

What is painted comes as a grey PNG in base64 and is written at the picture's own size. Whatever is written or taken
away is noted as an edit of the set, so that its Undo brings back what was there. No Gradio.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

from diffusion_lora.data.edits import Change, Edit, Undone
from diffusion_lora.data.folder import Item
from diffusion_lora.errors import DatasetError
from diffusion_lora.images import open_image
from diffusion_lora.workspace import Workspace
from webui import sets
from webui.sets import PictureSet
from webui.words import sentence

EDIT = "mask"
"""What such an edit is called among those of the set."""
MOST_PX = 1024
"""The longer side of a picture as it is painted on: the latents of larger ones are smaller still."""
_MAX_CHARS = 3_000_000


def look(found: PictureSet, picture: str) -> dict[str, Any]:
    """A picture to paint on and its mask, as the page holds them; `mask` is "" where there is none.

    `size` is that of both. Raises DatasetError for a picture that is not in the set, or that cannot be read.
    """
    item = _item(found, picture)
    image = open_image(item.path)
    image.thumbnail((MOST_PX, MOST_PX))
    there = open_image(item.mask).convert("L").resize(image.size) if item.mask else None
    return {
        "src": f"data:image/webp;base64,{_coded(image, 'WEBP')}",
        "size": image.size,
        "mask": _coded(there, "PNG") if there else "",
    }


def save(workspace: Workspace, found: PictureSet, picture: str, painted: Any) -> Path:
    """Write what is painted as the mask of a picture and return the folder of the set: a new one for a shipped set.

    Raises DatasetError: a picture that is not in the set, what is no mask, one that nothing is painted on; OutputError.
    """
    item = _item(found, picture)
    mask = _painted(painted).resize(open_image(item.path).size, Image.Resampling.BILINEAR)
    found, item = _own(workspace, found, item)
    place = item.path.with_suffix(".mask.png")
    changes = [Change(place, _read(place), base64.b64decode(_coded(mask, "PNG")))]
    if item.mask is not None and item.mask != place and item.mask.parent == place.parent:
        changes.append(Change(item.mask, _read(item.mask), None))  # of two beside a picture only one is looked at
    order = Edit.of(found.folder, _asked(found, item, f"the mask of {picture}"))
    with order.at_work():
        order.write(changes)
    order.finish()
    return found.folder


def remove(workspace: Workspace, found: PictureSet, picture: str) -> Path:
    """Take the mask of a picture away and return the folder of the set. Raises DatasetError, OutputError."""
    item = _item(found, picture)
    if item.mask is None:
        raise DatasetError(f"{picture} has no mask (any more): open the set again")
    found, item = _own(workspace, found, item)
    order = Edit.of(found.folder, _asked(found, item, f"removing the mask of {picture}"))
    with order.at_work():
        # One beside the picture hides one in masks/, which would come to light.
        while item.mask is not None and order.write([Change(item.mask, _read(item.mask), None)]):
            item = _item(sets.open_set(str(found.folder), masks=True), picture)
    order.finish()
    return found.folder


def tell_undone(workspace: Workspace, folder: Path, done: Undone) -> str:
    """What became of an edit of a mask that was taken back. Raises OutputError."""
    what, picture = str(done.asked.get("told")), folder / str(done.asked.get("picture"))
    mask = picture.with_suffix(".mask.png")
    if not picture.exists() and mask.exists():
        workspace.throw_away(mask)  # without its picture it would be one to train on
        return f"{picture.name} is no longer in the set: its mask lies in the trash."
    if done.kept:
        return "The mask has been changed by other hands since and stays as it is."
    return sentence(f"{what} is taken back")


def masked(found: PictureSet) -> list[str]:
    """The pictures of a set that have a mask."""
    return [item.name for item in found.items if item.mask is not None]


def _item(found: PictureSet, picture: str) -> Item:
    """A picture of the set by its name. Raises DatasetError where there is none, or where it lies elsewhere."""
    item = next((item for item in found.items if item.name == picture), None)
    if item is None:
        raise DatasetError(f"{found.name} has no picture {picture!r} (any more): open the set again")
    # A folder below may be a link: what lies behind it is not the set's.
    for path in (item.path, item.mask):
        if path is not None and not path.parent.resolve().is_relative_to(found.folder.resolve()):
            raise DatasetError(f"{path} does not lie in {found.name}: masks are painted in the folder of the set alone")
    return item


def _own(workspace: Workspace, found: PictureSet, item: Item) -> tuple[PictureSet, Item]:
    """The set and its picture where they may be changed. Raises OutputError."""
    folder = sets.own_folder(workspace, found)
    if folder == found.folder:
        return found, item
    copied = sets.open_set(str(folder), masks=True)
    return copied, _item(copied, item.name)


def _asked(found: PictureSet, item: Item, told: str) -> dict[str, str]:
    return {"what": EDIT, "told": told, "picture": item.path.relative_to(found.folder).as_posix()}


def _painted(painted: Any) -> Image.Image:
    """What the browser sent as a mask. Raises DatasetError."""
    text, nothing = str(painted or ""), "nothing is painted: paint what counts, or remove the mask"
    if not text:
        raise DatasetError(nothing)
    if len(text) > _MAX_CHARS:
        raise DatasetError("the mask is too large: paint it on this page, or put it beside the picture as a file")
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",)) as image:
            if max(image.size) > 2 * MOST_PX:
                raise ValueError("it is too large")
            mask = image.convert("L")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DatasetError(f"the mask is no PNG that can be read ({error}): paint it again") from None
    if mask.getbbox() is None:
        raise DatasetError(nothing)
    return mask


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror or error})") from error


def _coded(image: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    image.save(file, format=kind)
    return base64.b64encode(file.getvalue()).decode()
