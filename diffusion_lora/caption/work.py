"""Captioning a folder: which pictures are to be described, in which company, and what becomes of what is said.

Files are the truth: a picture that has a caption is done. Every change is noted first (`data.edits`), so that a process
may die at any moment, the same order goes on where it was, and all of it can be taken back. Several processes share a
folder by shards: a picture belongs to one of them by its name alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from diffusion_lora.caption.captioner import Captioner
from diffusion_lora.data.edits import Change, Edit
from diffusion_lora.data.problems import Problem, Report
from diffusion_lora.data.rewriting import Captioned, captioned
from diffusion_lora.data.rules import Shape
from diffusion_lora.data.sources import Layout
from diffusion_lora.errors import ConfigError, DatasetError, RunInterrupted
from diffusion_lora.events import Progress, ignore
from diffusion_lora.images import open_image

Policy = Literal["missing", "overwrite", "append"]


@dataclass(frozen=True)
class Order:
    """What is asked for: a folder, which pictures of it, and what is made of the captioner's words.

    `shard` is (number, of how many).
    """

    folder: Path
    policy: Policy = "missing"
    shape: Shape = field(default_factory=Shape)
    layout: Layout = "auto"
    batch: int = 8
    shard: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        number, count = self.shard
        if not 0 <= number < count:
            raise ConfigError(f"the shard {number}/{count} is not one of 0/{count} to {count - 1}/{count}")
        if self.batch < 1:
            raise ConfigError(f"--batch {self.batch} is less than one picture")

    def wants(self, found: Captioned) -> bool:
        """Whether a picture is to be described."""
        number, count = self.shard
        mine = count == 1 or zlib.crc32(found.item.name.encode()) % count == number
        return mine and (self.policy != "missing" or not found.text)


@dataclass
class Outcome:
    """How many captions were written, and what went wrong."""

    written: int = 0
    problems: list[Problem] = field(default_factory=list)


def carry_out(
    order: Order,
    captioner: Captioner,
    asked: dict[str, Any],
    progress: Progress = ignore,
    show: Callable[[str, str, str], None] | None = None,
) -> Outcome:
    """Caption a folder. With `show` nothing is written: it is told each picture's name, its caption, and the new one.

    `asked` is what tells this order from another one when it is given again. Events: `start` (captioner, model, device,
    pictures), `captioning` (done, total, written), `problem` (about, picture, text), `end` (written). Raises
    DatasetError, OutputError; RunInterrupted on Ctrl-C, when all that was said is on the disk.
    """
    outcome = Outcome()
    edit = None if show else Edit.of(order.folder, asked, order.shard)

    def report(problem: Problem) -> None:
        outcome.problems.append(problem)
        progress({"kind": "problem", "about": problem.kind, "picture": problem.picture, "text": problem.text})

    total = sum(1 for _ in _wanted(order, edit, lambda problem: None))
    progress({"kind": "start", "captioner": captioner.name, "model": captioner.kind, "device": captioner.device,
              "pictures": total})  # fmt: skip
    done = 0
    try:
        if edit is None:
            for batch in _read_ahead(_wanted(order, None, report), order.batch, report):
                for found, text in _described(batch, captioner, order, report):
                    if show is not None:
                        show(found.item.name, found.text, text)
                done += len(batch)
                progress({"kind": "captioning", "done": done, "total": total, "written": outcome.written})
        else:
            with edit.at_work():
                for batch in _read_ahead(_wanted(order, edit, report), order.batch, report):
                    changes = [_change(found, text) for found, text in _described(batch, captioner, order, report)]
                    outcome.written += edit.write(changes)
                    done += len(batch)
                    progress({"kind": "captioning", "done": done, "total": total, "written": outcome.written})
            edit.finish()
    except KeyboardInterrupt:
        raise RunInterrupted(
            f"stopped after {outcome.written} captions of {total}, all on the disk; the same command goes on"
        ) from None
    progress({"kind": "end", "written": outcome.written})
    return outcome


def _wanted(order: Order, edit: Edit | None, report: Report) -> Iterator[Captioned]:
    for found in captioned(order.folder, order.layout, report):
        if not order.wants(found) or (edit is not None and edit.has_done(found.file)):
            continue
        if order.policy != "overwrite" and found.data and found.data.strip() and not found.text:
            continue  # not UTF-8, and told: these are somebody's words, to which nothing can be added
        yield found


def _described(
    batch: Sequence[tuple[Captioned, Image.Image]], captioner: Captioner, order: Order, report: Report
) -> Iterator[tuple[Captioned, str]]:
    """The pictures of a batch with their new captions."""
    if not batch:
        return
    for (found, _), said in zip(batch, captioner.describe([image for _, image in batch]), strict=True):
        words = order.shape(f"{found.text}, {said}" if order.policy == "append" and found.text else said)
        if not said:
            report(Problem("no caption", found.item.name, f"{captioner.name} said nothing of {found.item.name}"))
        elif words:
            yield found, words


def _change(found: Captioned, text: str) -> Change:
    return Change(found.file, found.data, text.encode())


def _read_ahead(
    wanted: Iterator[Captioned], size: int, report: Report
) -> Iterator[list[tuple[Captioned, Image.Image]]]:
    """Batches of pictures that can be read; the next batch is decoded while one is described."""
    with ThreadPoolExecutor(1) as pool:
        ahead: Future[list[tuple[Captioned, Image.Image | str]]] | None = None
        while chosen := list(islice(wanted, size)):
            following = pool.submit(_decoded, chosen)
            if ahead is not None:
                yield _readable(ahead.result(), report)
            ahead = following
        if ahead is not None:
            yield _readable(ahead.result(), report)


def _decoded(chosen: Sequence[Captioned]) -> list[tuple[Captioned, Image.Image | str]]:
    found: list[tuple[Captioned, Image.Image | str]] = []
    for each in chosen:
        try:
            found.append((each, open_image(each.item.path)))
        except DatasetError as error:
            found.append((each, str(error)))
    return found


def _readable(
    batch: Sequence[tuple[Captioned, Image.Image | str]], report: Report
) -> list[tuple[Captioned, Image.Image]]:
    good = []
    for found, image in batch:
        if isinstance(image, str):
            report(Problem("unreadable", found.item.name, image, left_out=True))
        else:
            good.append((found, image))
    return good
