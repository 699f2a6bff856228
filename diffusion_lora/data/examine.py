"""The second look at pictures: each is decoded once, hashed, and never again until its file changes. No torch.

What was seen is appended to the index of the folder, one line a picture, as soon as it is known: an interrupted pass
goes on where it was. A line that a crash has cut is read over.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import imagehash
from PIL import Image

from diffusion_lora.errors import DatasetError
from diffusion_lora.images import open_alpha, open_image
from diffusion_lora.run import cannot_write

_AT_ONCE = 64  # pictures between two writes of the index
_THREADS = 4  # decoding lets other threads run
_NEAR_BITS = 4  # of 64: hashes that differ in no more belong to pictures that look the same
_BANDS = [(64 * band // 5, 64 * (band + 1) // 5) for band in range(_NEAR_BITS + 1)]
_NEAR_COLOUR = 12  # of 255: the mean difference of the miniatures of pictures that look the same


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a picture's pixels.

    `pixels` is the SHA-256 of size, RGB and opacity; `look` the perceptual hash (pHash, 64 bits, hex) and `colours` the
    RGB bytes (hex) of its 4 x 4 miniature, for pHash is blind to colour; `problem` says why it cannot be read, and then
    the others are empty.
    """

    pixels: str = ""
    look: str = ""
    colours: str = ""
    problem: str = ""


def examine(
    paths: Iterable[Path], indices: Path | None, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[Path, Seen]:
    """What is known of each picture, from the index of its folder where the file is as it was, else by decoding it.

    `indices` is the folder the indices are kept in. `progress(done, total)` counts the pictures that had to be decoded.
    Raises OutputError if an index cannot be written.
    """
    found: dict[Path, Seen] = {}
    wanted: list[tuple[Path, str]] = []
    known_of: dict[Path, dict[str, Seen]] = {}
    for path in dict.fromkeys(paths):
        if indices is not None and path.parent not in known_of:
            known_of[path.parent] = _read(_index_of(indices, path.parent))
        stamp = _stamp(path)
        known = known_of.get(path.parent, {}).get(stamp)
        if known is not None:
            found[path] = known
        else:
            wanted.append((path, stamp))
    del known_of
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        for done, batch in _batches(wanted, _AT_ONCE):
            seen = list(zip(batch, pool.map(_look_at, [path for path, _ in batch]), strict=True))
            if indices is not None:
                for folder, group in groupby(seen, lambda pair: pair[0][0].parent):
                    _append(_index_of(indices, folder), [(stamp, what) for (_, stamp), what in group])
            found |= {path: what for (path, _), what in seen}
            progress(done, len(wanted))
    return found


def duplicates(seen: Sequence[Seen]) -> Iterator[tuple[int, int, bool]]:
    """(index, index of an earlier one, whether the pixels are the same) of pictures that look like an earlier one.

    Hashes that differ in at most four bits agree in one of five bands: only those are compared.
    """
    pixels: dict[str, int] = {}
    bands: dict[tuple[int, int], list[int]] = {}
    for index, each in enumerate(seen):
        if each.problem:
            continue
        if each.pixels in pixels:
            yield index, pixels[each.pixels], True
            continue
        pixels[each.pixels] = index
        look = int(each.look, 16)
        keys = [(start, (look >> start) & ((1 << (end - start)) - 1)) for start, end in _BANDS]
        near = sorted({other for key in keys for other in bands.get(key, ())})
        like = next((other for other in near if _alike(each, seen[other])), None)
        if like is not None:
            yield index, like, False
        for key in keys:
            bands.setdefault(key, []).append(index)


def _alike(one: Seen, other: Seen) -> bool:
    if (int(one.look, 16) ^ int(other.look, 16)).bit_count() > _NEAR_BITS:
        return False
    colours = zip(bytes.fromhex(one.colours), bytes.fromhex(other.colours), strict=True)
    return sum(abs(ours - theirs) for ours, theirs in colours) <= _NEAR_COLOUR * len(one.colours) // 2


def pixels_hash(image: Image.Image, alpha: Image.Image | None) -> str:
    """SHA-256 of a picture's size, RGB bytes and opacity, in hex."""
    digest = hashlib.sha256(f"{image.size}".encode())
    digest.update(image.tobytes())
    if alpha is not None:
        digest.update(alpha.tobytes())
    return digest.hexdigest()


def _look_at(path: Path) -> Seen:
    try:
        image = open_image(path)
        miniature = image.resize((4, 4), Image.Resampling.BOX).tobytes().hex()
        return Seen(pixels_hash(image, open_alpha(path)), str(imagehash.phash(image)), miniature)
    except DatasetError as error:
        return Seen(problem=str(error))


def _stamp(path: Path) -> str:
    """The file as it is now: the same stamp, the same pixels. A file that is gone has a stamp of its own."""
    try:
        status = path.stat()
    except OSError:
        return f"{path.name}|gone"
    return f"{path.name}|{status.st_size}|{status.st_mtime_ns}"


def _read(index: Path) -> dict[str, Seen]:
    known = {}
    try:
        lines = index.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    for line in lines:
        try:
            fields = json.loads(line)
            file = fields.pop("file")
            known[file] = Seen(**fields)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # cut by a crash: the picture is looked at again
    return known


def _append(index: Path, seen: Iterable[tuple[str, Seen]]) -> None:
    lines = "".join(json.dumps({"file": key, **asdict(what)}, ensure_ascii=False) + "\n" for key, what in seen)
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
        with index.open("ab+", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            torn = file.read(1) not in (b"", b"\n")
            file.write((b"\n" if torn else b"") + lines.encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise cannot_write(index, error) from error


def _index_of(indices: Path, folder: Path) -> Path:
    return (
        indices / f"{hashlib.sha256(str(folder.absolute()).encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.jsonl"
    )


def _batches(wanted: Sequence[tuple[Path, str]], size: int) -> Iterator[tuple[int, Sequence[tuple[Path, str]]]]:
    """(how many will be done then, the next of them)."""
    for start in range(0, len(wanted), size):
        batch = wanted[start : start + size]
        yield start + len(batch), batch
