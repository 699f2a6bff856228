"""What the Dataset tab does with a set: what is in it, what is wrong with it, captions edited, described, taken back.

A set is opened by the folder that the page shows (`sets`); what is changed are `.txt` files beside pictures, and their
masks (`masks`). Every bulk change is noted first, so that it can be taken back. What needs a model is a command of the
program in a process of its own: captioning goes on when the page is closed, and is found again by the lock in the set's
history. No Gradio, no torch.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from diffusion_lora.data.buckets import bucket_sizes, place
from diffusion_lora.data.edits import HISTORY, Edit, history, undo
from diffusion_lora.data.problems import Problem
from diffusion_lora.data.rewriting import captioned, rewrite
from diffusion_lora.data.rules import Shape, parse_rule
from diffusion_lora.errors import ConfigError, DatasetError, ServiceError
from diffusion_lora.families.pocket.words import BASE_FOLDER
from diffusion_lora.images import image_size
from diffusion_lora.jobs.launch import Child, answer_of, end_process, last_line, start_captioning
from diffusion_lora.layouts.layout import layout_named
from diffusion_lora.processes import Process, owner
from diffusion_lora.workspace import Workspace
from webui import masks, sets
from webui.sets import PictureSet
from webui.words import count, sentence

_PREVIEWED = 6
_CHUNK_TOKENS = 75
_LOG = "caption.log"
_POLICIES = ("missing", "overwrite", "append")
SmallCopy = Callable[[Path], str]


@dataclass(frozen=True)
class _Work:
    """Captioning that this page started: how many pictures it had to describe, and its process."""

    child: Child
    total: int


class Datasets:
    """The sets of a workspace, for all browsers."""

    def __init__(self, workspace: Workspace, small: SmallCopy) -> None:
        self.workspace = workspace
        self._small = small
        self._works: dict[Path, _Work] = {}

    # --- looking ------------------------------------------------------------------------------------------------------

    def open(self, folder: str) -> dict[str, Any]:
        """The pictures of a set with their captions; `problem` where it cannot be used."""
        found = sets.open_set(folder, masks=True)
        return {
            "folder": str(found.folder) if found.folder != Path() else "",
            "name": found.name,
            "there": found.folder == Path() or found.folder.is_dir(),
            "shipped": found.is_shipped,
            "empty": found.problem,
            "items": [
                {"name": item.name, "caption": item.caption, "src": self._small(item.path), "mask": bool(item.mask)}
                for item in found.items
            ],
            "undo": _told_edit(found.folder),
            "work": self._work_of(found),
        }

    def captions(self, folder: str) -> dict[str, Any]:
        """The captions by picture, what can be taken back, and how far a captioning is: asked for each second."""
        found = sets.open_set(folder)
        captions = {item.name: item.caption for item in found.items}
        return {"captions": captions, "undo": _told_edit(found.folder), "work": self._work_of(found)}

    def check(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """What is wrong with a set before it is trained on: {folder, base}. Takes seconds. Raises UserErrors."""
        found = _opened(asked)
        base = str(asked.get("base") or "pocket")
        told = json.loads(self._command("dataset", "check", str(found.folder), f"--base={base}", "--json"))
        problems = [
            {"kind": problem["kind"], "picture": problem["picture"], "text": sentence(problem["text"]),
             "other": _other(problem, found), "left_out": problem["left_out"]}
            for problem in told["problems"]
        ]  # fmt: skip
        return {"problems": problems, "pictures": told["pictures"]}

    def shapes(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """How each picture will be cropped for a base: {folder, base} -> by picture [width, height, bucket's width and
        height, share cut off], and how many pictures each bucket holds."""
        found = _opened(asked)
        layout = layout_named(str(asked.get("base") or "pocket"))
        size_px = layout.size_px if layout else 512
        buckets = bucket_sizes(size_px, min(64, size_px // 8))
        by_picture: dict[str, list[float]] = {}
        held: dict[str, int] = {}
        for item in found.items:
            try:
                size = image_size(item.path)
            except DatasetError:
                continue  # the check tells what is wrong with it
            where = place(size, buckets)
            by_picture[item.name] = [*size, *where.bucket, round(where.cropped, 4)]
            name = f"{where.bucket[0]}×{where.bucket[1]}"
            held[name] = held.get(name, 0) + 1
        return {"pictures": by_picture, "buckets": sorted(held.items(), key=lambda pair: -pair[1]), "size": size_px}

    def tokens(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """How many tokens captions have and what is cut off: {base, captions} -> [[tokens, cut], ...]; nothing for a
        base whose tokenizer is not at hand."""
        reader = _tokenizer(str(asked.get("base") or "pocket"))
        if reader is None:
            return {"tokens": [], "room": 0}
        return {"tokens": [_counted(reader, str(text)) for text in asked.get("captions") or ()], "room": _CHUNK_TOKENS}

    # --- changing -----------------------------------------------------------------------------------------------------

    def save(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Write one caption: {folder, picture, caption} -> the folder it went to. Raises UserErrors."""
        folder = Path(str(asked.get("folder")))
        saved = sets.save_caption(self.workspace, folder, str(asked.get("picture")), str(asked.get("caption") or ""))
        return {"folder": str(saved)}

    def edit(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Rewrite all captions by one rule: {folder, kind, find, put, dry}. Raises UserErrors.

        With `dry` nothing is written; the answer then has the first changes, before and after.
        """
        found, shape, words = _opened(asked), *_shape(asked)
        problems: list[Problem] = []
        if asked.get("dry"):
            changes = list(rewrite(captioned(found.folder, "auto", problems.append), shape, None))
            shown = [[each.item.name, each.text, after] for each, after in changes[:_PREVIEWED]]
            return {"changed": len(changes), "shown": shown}
        folder = sets.own_folder(self.workspace, found)
        order = Edit.of(folder, {"what": "edit", "told": words})
        with order.at_work():
            changed = sum(1 for _ in rewrite(captioned(folder, "auto", problems.append), shape, order))
        order.finish()
        return {"changed": changed, "folder": str(folder), "problems": [sentence(each.text) for each in problems]}

    def undo(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Take the newest bulk edit of a set, or of a mask, back: {folder}. Raises UserErrors."""
        folder = _opened(asked).folder
        done = undo(folder)
        if done.asked.get("what") == masks.EDIT:
            return {"told": masks.tell_undone(self.workspace, folder, done)}
        kept = f"; {count(len(done.kept), 'caption')} that were changed since stay" if done.kept else ""
        return {"told": f"{count(done.restored, 'caption')} as before{kept}."}

    def remove(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Move a picture, with its caption and mask, into the trash: {folder, picture}. Raises UserErrors."""
        found = _opened(asked, masks=True)
        item = next((item for item in found.items if item.name == asked.get("picture")), None)
        if item is None:
            raise DatasetError(f"{found.name} has no picture {asked.get('picture')!r} (any more): open the set again")
        folder = sets.own_folder(self.workspace, found)
        picture = folder / item.name
        shared = sum(other.mask == item.mask for other in found.items) > 1  # by a.png and a.jpg
        mask = None if item.mask is None or shared else folder / item.mask.relative_to(found.folder)
        for file in (picture, picture.with_suffix(".txt"), mask):
            if file is not None and file.is_file():
                self.workspace.throw_away(file)
        return {"folder": str(folder)}

    def create(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Make an empty set: {name}. Raises UserErrors."""
        return {"folder": str(sets.new_set(self.workspace, str(asked.get("name") or "")))}

    # --- masks --------------------------------------------------------------------------------------------------------

    def mask(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """A picture to paint on, and its mask: {folder, picture} -> {src, size, mask}. Raises UserErrors."""
        return masks.look(_opened(asked, masks=True), str(asked.get("picture")))

    def save_mask(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Write the mask of a picture: {folder, picture, painted}. Raises UserErrors."""
        found = self._not_captioned(asked)
        return _masked(masks.save(self.workspace, found, str(asked.get("picture")), asked.get("painted")))

    def remove_mask(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Take the mask of a picture away; Undo brings it back: {folder, picture}. Raises UserErrors."""
        return _masked(masks.remove(self.workspace, self._not_captioned(asked), str(asked.get("picture"))))

    def _not_captioned(self, asked: Mapping[str, Any]) -> PictureSet:
        """The set, for an edit that is noted. Captioning is found again by the newest edit: none may come after it."""
        found = _opened(asked, masks=True)
        if self._is_captioned(found.folder):
            raise DatasetError(f"{found.name} is being captioned: masks can be changed when that has ended")
        return found

    # --- describing ---------------------------------------------------------------------------------------------------

    def caption(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Have a set captioned: {folder, policy, captioner, prefix}. It goes on by itself. Raises UserErrors."""
        found = _opened(asked)
        if self._work_of(found):
            raise DatasetError(f"{found.name} is being captioned already")
        folder = sets.own_folder(self.workspace, found)
        policy, options = _caption_options(asked)
        total = found.bare if policy == "missing" else len(found.items)
        if not total:
            raise DatasetError("every picture has a caption already: choose to write all anew")
        child = start_captioning([*options, str(folder)], folder / HISTORY / _LOG)
        self._works[folder] = _Work(child, total)
        return {"folder": str(folder)}

    def preview(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """What the captioner would say of a few pictures; nothing is written. Takes seconds. Raises UserErrors."""
        found = _opened(asked)
        policy, options = _caption_options(asked)
        wanted = [item for item in found.items if policy != "missing" or not item.caption][:_PREVIEWED]
        if not wanted:
            raise DatasetError("every picture has a caption already: choose to write all anew")
        with tempfile.TemporaryDirectory(prefix="preview-", dir=self.workspace.state) as temporary:
            for number, item in enumerate(wanted):
                copy = Path(temporary) / f"{number}{item.path.suffix}"
                shutil.copyfile(item.path, copy)
                if item.caption:
                    copy.with_suffix(".txt").write_text(item.caption, encoding="utf-8")
            told = self._command("caption", *options, "--dry-run", temporary)
        after = [line[4:] for line in told.splitlines() if line.startswith("  + ")]
        rows = [[item.name, item.caption, said] for item, said in zip(wanted, after, strict=False)]
        return {"shown": rows, "changed": len(rows)}

    def stop(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """End a captioning; what it wrote stays, and the same order goes on later: {folder}."""
        folder = _opened(asked).folder
        process = _at_work(folder) or (work.child.process if (work := self._works.get(folder)) else None)
        if process is not None:
            end_process(process)
        return {}

    def _work_of(self, found: PictureSet) -> dict[str, Any] | None:
        """How far a captioning is: {done, total, told}; None when there is none. One that this page started and that
        ended since is told once more, with what it said."""
        work = self._works.get(found.folder)
        if not self._is_captioned(found.folder):
            if work is None:
                return None
            del self._works[found.folder]
            told = sentence(last_line(found.folder / HISTORY / _LOG).removeprefix("error: "))
            stopped = (work.child.status or 0) < 0
            return {"ended": True, "told": "Stopped; what was written stays." if stopped else told,
                    "wrong": bool(work.child.status) and not stopped}  # fmt: skip
        written = _written(found.folder)
        total = work.total if work else written + found.bare
        return {"done": min(written, total), "total": total}

    def _is_captioned(self, folder: Path) -> bool:
        work = self._works.get(folder)
        return (work is not None and work.child.status is None) or _at_work(folder) is not None

    def _command(self, *arguments: str) -> str:
        try:
            return answer_of(arguments, self.workspace.root)
        except ServiceError as error:
            raise ServiceError(str(error).replace(f"{self.workspace.datasets}/", "")) from None


def _opened(asked: Mapping[str, Any], *, masks: bool = False) -> PictureSet:
    """The set that a browser names. Raises DatasetError when there is nothing to work on."""
    found = sets.open_set(str(asked.get("folder") or ""), masks=masks)
    if found.problem:
        raise DatasetError(found.problem.rstrip("."))
    return found


def _masked(folder: Path) -> dict[str, Any]:
    """What the page shows anew when a mask has changed: pictures of one name, as in a.png and a.jpg, share theirs."""
    return {
        "folder": str(folder),
        "masked": masks.masked(sets.open_set(str(folder), masks=True)),
        "undo": _told_edit(folder),
    }


def _caption_options(asked: Mapping[str, Any]) -> tuple[str, list[str]]:
    policy = str(asked.get("policy") or "missing")
    if policy not in _POLICIES:
        raise ConfigError(f"{policy!r} is none of {', '.join(_POLICIES)}")
    captioner, prefix = str(asked.get("captioner") or "embedded").strip(), str(asked.get("prefix") or "")
    options = [f"--captioner={captioner}", f"--policy={policy}", *([f"--prefix={prefix}"] if prefix.strip() else [])]
    return policy, options


def _shape(asked: Mapping[str, Any]) -> tuple[Shape, str]:
    """What becomes of captions, and the same in words."""
    kind, find, put = (str(asked.get(key) or "").strip() for key in ("kind", "find", "put"))
    match kind:
        case "prefix":
            if not find:
                raise ConfigError("no word is given to put in front")
            return Shape(prefix=f"{find.rstrip(' ,')}, "), f"{find} in front"
        case "tags":
            return Shape(form="tags"), "tags, each once"
        case "remove":
            return Shape((parse_rule(f"remove: {find}"),)), f"without {find}"
        case "replace" | "regex":
            return Shape((parse_rule(f"{kind}: {find} => {put}"),)), f"{find} became {put}"
    raise ConfigError("this is no edit: reload the page")


def _told_edit(folder: Path) -> str:
    """What the newest edit was, in a word or two; "" when there is none."""
    try:
        edits = history(folder)
    except DatasetError:
        return ""
    if not edits:
        return ""
    newest = edits[-1]
    return str(newest.get("told") or {"caption": "captioning"}.get(str(newest.get("what")), "the last edit"))


def _other(problem: Mapping[str, Any], found: PictureSet) -> str:
    """The picture that a duplicate is like: the last name in the sentence that is one."""
    if "duplicate" not in problem["kind"]:
        return ""
    names = [item.name for item in found.items if problem["text"].endswith(item.name)]
    return max(names, key=len, default="")


def _newest_edit(folder: Path) -> Path | None:
    edits = sorted(entry for entry in (folder / HISTORY).glob("[0-9]*") if entry.is_dir())
    return edits[-1] if edits else None


def _at_work(folder: Path) -> Process | None:
    newest = _newest_edit(folder)
    locks = newest.glob("*.lock") if newest else ()
    return next((process for lock in locks if (process := owner(lock)) is not None), None)


def _written(folder: Path) -> int:
    """The captions that the newest edit has noted."""
    newest = _newest_edit(folder)
    if newest is None or (newest / "part-0of1.done").exists():
        return 0
    files = set()
    for part in newest.glob("*.jsonl"):
        for line in part.read_bytes().splitlines():
            files.add(line.partition(b'"before"')[0])
    return len(files)


@lru_cache(maxsize=4)
def _tokenizer(base: str) -> Any:
    """The fast tokenizer of a base in a folder; None where it has none such."""
    folder = BASE_FOLDER if base == "pocket" else Path(base)
    file = folder / "tokenizer" / "tokenizer.json"
    if not file.is_file():
        return None
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(file))


def _counted(reader: Any, text: str) -> list[Any]:
    """How many tokens a caption has, and the words of it that no text encoder reads any more."""
    encoded = reader.encode(text, add_special_tokens=False)
    if len(encoded.ids) <= _CHUNK_TOKENS:
        return [len(encoded.ids), ""]
    return [len(encoded.ids), text[encoded.offsets[_CHUNK_TOKENS][0] :]]
