"""Captions of a folder, file by file: where each lies, what it becomes, which bytes change. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from diffusion_lora.data.edits import Change, Edit
from diffusion_lora.data.problems import Problem, Report
from diffusion_lora.data.sources import Item, Layout, Looking, Source, expand, walk
from diffusion_lora.errors import DatasetError

SUFFIXES = (".txt", ".caption")
_AT_ONCE = 64  # files between two writes of the history


@dataclass(frozen=True, slots=True)
class Captioned:
    """A picture, the file its caption is in or shall be in, the bytes that are there (None: no file), their text."""

    item: Item
    file: Path
    data: bytes | None
    text: str


def captioned(root: Path, layout: Layout, report: Report) -> Iterator[Captioned]:
    """The pictures of a folder with their captions, one after the other.

    A caption that is not UTF-8 is reported and has no text. Raises DatasetError: no such folder, or its captions stand
    in a metadata list, which is not written to.
    """
    for source in expand(Source(root, layout)):
        if source.layout == "metadata":
            raise DatasetError(
                f"the captions of {root} stand in a metadata list, which is not written to: "
                "make files of them with `dataset export --to kohya`"
            )
        for item in walk(source, Looking(headers=False), _unless("caption encoding", report)):
            yield _with_caption(item, report)


def rewrite(
    found: Iterator[Captioned], become: Callable[[str], str], edit: Edit | None
) -> Iterator[tuple[Captioned, str]]:
    """Every caption that becomes another one, with its new text; it is written if there is an edit to write it by.

    Lines are rewritten each by itself, line ends and the byte order mark kept. Raises OutputError.
    """
    waiting: list[Change] = []
    for each in found:
        if not each.data or not each.text or (edit is not None and edit.has_done(each.file)):
            continue
        mark = b"\xef\xbb\xbf" if each.data.startswith(b"\xef\xbb\xbf") else b""
        lines = each.data[len(mark) :].decode("utf-8").splitlines(keepends=True)
        after = "".join(become(body) + line[len(body) :] if (body := line.rstrip("\r\n")).strip() else line
                        for line in lines)
        data = mark + after.encode()
        if data == each.data:
            continue
        waiting.append(Change(each.file, each.data, data))
        if edit is not None and len(waiting) >= _AT_ONCE:
            edit.write(waiting)
            waiting = []
        yield each, " ".join(after.split())
    if edit is not None:
        edit.write(waiting)


def _with_caption(item: Item, report: Report) -> Captioned:
    for suffix in SUFFIXES:
        file = item.path.with_suffix(suffix)
        try:
            data = file.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise DatasetError(f"the caption {file} cannot be read ({error.strerror or error})") from error
        try:
            return Captioned(item, file, data, " ".join(data.decode("utf-8-sig").split()))
        except UnicodeDecodeError as error:
            told = f"the caption {file.name} is not UTF-8 ({error.reason} at byte {error.start})"
            report(Problem("caption encoding", item.name, told))
            return Captioned(item, file, data, "")
    return Captioned(item, item.path.with_suffix(SUFFIXES[0]), None, "")


def _unless(kind: str, report: Report) -> Report:
    return lambda problem: None if problem.kind == kind else report(problem)

