"""Sets of pictures with captions, as the Train tab offers and edits them: shipped, the workspace's, any folder.

The files are the truth: a caption is the `.txt` beside its picture and is written there. What the package ships is
never written to: its first edit makes a copy in the workspace. No Gradio; what a set trains is not known here.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from diffusion_lora.config import resolve_path, shipped, shipped_names
from diffusion_lora.data.folder import Item, scan_folder
from diffusion_lora.errors import DatasetError, UserError
from diffusion_lora.images import SUFFIXES, open_image
from diffusion_lora.run import cannot_write, write_atomically
from diffusion_lora.workspace import Workspace, check_name
from webui.words import sentence

FIRST_OWN_SET = "my-pictures"
NEW_SET = "+"
"""The choice that stands for a set that an upload will make."""
_LONGEST_TRIGGER = 4
_LONGEST_CAPTION = 100_000  # bytes
_NEARLY_ALL = 0.8
_SMALL_WORDS = frozenset(("a", "an", "and", "at", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with"))
_NOT_IN_NAMES = re.compile(r"[^\w .()+-]")


_allowed: list[Path] = []


def stay_in(folder: Path) -> None:
    """From now on open no set but those below a folder and the shipped ones: other machines ask for them."""
    _allowed.append(folder.resolve())


@dataclass(frozen=True)
class PictureSet:
    """A folder of pictures with their captions; `problem` says why it cannot be used, and then there are none."""

    folder: Path
    items: tuple[Item, ...] = ()
    problem: str = ""

    @property
    def name(self) -> str:
        return self.folder.name or "New set"

    @property
    def bare(self) -> int:
        """How many pictures have no caption."""
        return sum(not item.caption for item in self.items)

    @property
    def is_shipped(self) -> bool:
        return any(self.folder == shipped("datasets", name).resolve() for name in shipped_names("datasets"))


@dataclass(frozen=True)
class Uploaded:
    """What became of an upload: the set it went to, and a sentence for each file that was left out."""

    folder: Path
    added: int
    left_out: tuple[str, ...]


def choices(workspace: Workspace) -> list[tuple[str, str]]:
    """What to offer: (label, folder): the workspace's own sets, the shipped ones, a new one."""
    own = sorted((entry for entry in workspace.datasets.iterdir() if entry.is_dir()), key=lambda entry: entry.name)
    offered = [(entry.name, str(entry)) for entry in own if not entry.name.startswith(".")]
    shipped_sets = [(name, str(shipped("datasets", name).resolve())) for name in shipped_names("datasets")]
    return [*offered, *((f"{name} (shipped)", folder) for name, folder in shipped_sets), ("New set", NEW_SET)]


def open_set(folder: str, *, masks: bool = False) -> PictureSet:
    """The set in a folder a person chose or typed. Never raises for what is wrong with it: `problem` tells.

    With `masks` its pictures know theirs. That is a look at the disk for each, so not for what is asked every second.
    """
    if folder.strip() in ("", NEW_SET):
        return PictureSet(Path(), problem="Upload pictures, with their captions as .txt files if you have them.")
    path = resolve_path(folder.strip(), None) or Path(folder.strip()).expanduser().absolute()
    if _allowed and not _is_allowed(path):
        return PictureSet(Path(), problem="Folders outside of the workspace are not opened from other machines.")
    if not path.is_dir():
        return PictureSet(path, problem=f"{path} is {'a file' if path.exists() else 'not there'}: give a folder.")
    try:
        return PictureSet(path, tuple(scan_folder(path, captions_required=False, masks=masks)))
    except DatasetError as error:
        return PictureSet(path, problem=sentence(str(error)))
    except OSError as error:
        return PictureSet(path, problem=f"{path} cannot be read: {error.strerror or error}")


def _is_allowed(path: Path) -> bool:
    places = [*_allowed, *(shipped("datasets", name).resolve() for name in shipped_names("datasets"))]
    return any(path.resolve().is_relative_to(place) for place in places)


def save_caption(workspace: Workspace, folder: Path, picture: str, caption: str) -> Path:
    """Write the caption of a picture and return the folder it lies in: a new one, when a shipped set was edited.

    Raises DatasetError for a picture that is not in the set, OutputError.
    """
    found = open_set(str(folder))
    if picture not in {item.name for item in found.items}:
        raise DatasetError(f"{folder} has no picture {picture!r} (any more): choose the set again")
    folder = own_folder(workspace, found)
    text = " ".join(caption.split())
    write_atomically((folder / picture).with_suffix(".txt"), f"{text}\n".encode() if text else b"")
    return folder


def free_folder(workspace: Workspace, name: str) -> Path:
    """A place for a new set under a name, numbered where that is taken. Raises OutputError for what is no name."""
    return _free(workspace, name.strip())


def new_set(workspace: Workspace, name: str) -> Path:
    """An empty folder for a new set. Raises OutputError for a name that cannot be a folder's."""
    folder = _free(workspace, name.strip())
    try:
        folder.mkdir()
    except OSError as error:
        raise cannot_write(folder, error) from error
    return folder


def take_picture(folder: Path, file: Path, name: str) -> str:
    """Put one uploaded file into a set under its own name, as far as that is free, and say which it has.

    A picture is opened before it is taken; a text becomes the caption of the picture of its name. Raises DatasetError
    for anything else, OutputError.
    """
    suffix = Path(name).suffix.lower()
    try:
        if suffix == ".txt":
            place = folder / f"{_free_file(folder, name, taken=False).stem}.txt"
            text = file.read_bytes()[:_LONGEST_CAPTION]
            text.decode("utf-8")
            write_atomically(place, text)
            return place.name
        picture = file.with_suffix(suffix)
        file.rename(picture)
        try:
            open_image(picture)
            place = _free_file(folder, name)
            shutil.move(picture, place)
            place.chmod(0o644)
        finally:
            picture.unlink(missing_ok=True)
    except UnicodeDecodeError:
        raise DatasetError(f"the caption {Path(name).name} is not UTF-8 text: save it as UTF-8") from None
    except DatasetError as error:
        raise DatasetError(str(error).replace(str(file.with_suffix(suffix)), Path(name).name)) from None
    except OSError as error:
        raise cannot_write(folder, error) from error
    return place.name


def take_upload(workspace: Workspace, files: Sequence[Path], folder: Path | None) -> Uploaded:
    """Put uploaded pictures, and the `.txt` captions that came with them, into a set of the workspace.

    Into `folder` if that is one of the workspace's sets, else into a new one. A file that is no picture is left out and
    told. Raises DatasetError when nothing is left, OutputError.
    """
    own = folder is not None and folder.parent == workspace.datasets and folder.is_dir()
    target = folder if own and folder is not None else _free(workspace, FIRST_OWN_SET)
    left_out = []
    pictures = []
    for file in files:
        if file.suffix.lower() in SUFFIXES:
            try:
                open_image(file)
            except DatasetError as error:
                left_out.append(str(error).replace(str(file), file.name))
            else:
                pictures.append(file)
        elif file.suffix.lower() != ".txt":
            left_out.append(f"{file.name} is no picture")
    if not pictures:
        raise DatasetError(
            f"nothing was added: {'; '.join(left_out)}" if left_out else "nothing was added: there was no picture in it"
        )
    captions = {file.stem: file for file in files if file.suffix.lower() == ".txt"}
    try:
        target.mkdir(exist_ok=True)
        for file in pictures:
            place = _free_file(target, file.name)
            shutil.copyfile(file, place)
            if file.stem in captions:
                shutil.copyfile(captions[file.stem], place.with_suffix(".txt"))
    except OSError as error:
        raise cannot_write(target, error) from error
    return Uploaded(target, len(pictures), tuple(left_out))


def common_words(items: Sequence[Item]) -> str:
    """The longest run of words that nearly all captions share: likely what is to call it up. Else nothing."""
    captions = [re.findall(r"[\w'-]+", item.caption.lower()) for item in items if item.caption]
    if len(captions) < 2:
        return ""
    for length in range(_LONGEST_TRIGGER, 0, -1):
        counted: Counter[tuple[str, ...]] = Counter()
        for words in captions:
            runs = (tuple(words[start : start + length]) for start in range(len(words) - length + 1))
            counted.update({run for run in runs if not {run[0], run[-1]} & _SMALL_WORDS})
        # Of several that are as frequent, the one that comes first in a caption: that is where trigger words stand.
        best = max(counted, key=lambda run: (counted[run], -_place(captions[0], run)), default=None)
        if best and counted[best] >= _NEARLY_ALL * len(captions):
            return " ".join(best)
    return ""


def _place(words: Sequence[str], run: tuple[str, ...]) -> int:
    starts = (start for start in range(len(words)) if tuple(words[start : start + len(run)]) == run)
    return next(starts, len(words))


def own_folder(workspace: Workspace, found: PictureSet) -> Path:
    """The folder in which a set may be changed: its own, or that of a copy if it is shipped. Raises OutputError."""
    if not found.is_shipped:
        return found.folder
    target = _free(workspace, found.name)
    temporary = workspace.datasets / f".{target.name}.tmp"
    try:
        shutil.copytree(found.folder, temporary, dirs_exist_ok=True)
        temporary.rename(target)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise cannot_write(target, error) from error
    return target


def _free(workspace: Workspace, name: str) -> Path:
    check_name(name)
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return next(place for free in names if not (place := workspace.datasets / free).exists())


def _free_file(folder: Path, name: str, *, taken: bool = True) -> Path:
    """A place for a file under its own name as far as that is one for a file, numbered where it is `taken`."""
    clean = _NOT_IN_NAMES.sub("_", Path(name).name).lstrip(". ") or "picture"
    stem, suffix = Path(clean).stem[:80].rstrip(". "), Path(clean).suffix.lower()
    try:
        check_name(f"{stem}{suffix}"[-80:])
    except UserError:
        stem = "picture"
    if not taken:
        return folder / f"{stem}{suffix}"
    places = (folder / f"{stem}{'' if number == 1 else f'-{number}'}{suffix}" for number in count(1))
    # A caption may have come before its picture; one that belongs to another picture takes the name.
    beside = {path.stem for path in folder.iterdir() if path.suffix.lower() in SUFFIXES}
    return next(place for place in places if not place.exists() and place.stem not in beside)
