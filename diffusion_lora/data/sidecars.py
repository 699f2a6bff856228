"""Text that belongs to pictures: files beside them (`cat.txt`, `cat.caption`) and lists (`metadata.jsonl`, `.csv`).

What a caption means is not known here (see `captions`). No torch.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from diffusion_lora.errors import DatasetError

Lines = Literal["joined", "variants"]

METADATA = ("metadata.jsonl", "metadata.csv")
"""The lists that Hugging Face's imagefolder knows, in the order in which they are looked for."""

_FILE_NAME = "file_name"
_COLUMNS = ("text", "caption", "captions", "prompt")


def read_caption_file(path: Path, lines: Lines = "joined") -> tuple[str, ...]:
    """The captions in a text file: all lines as one, or each line that is not empty as one of several.

    Raises DatasetError if it is not UTF-8, FileNotFoundError.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"the caption {path} cannot be read as UTF-8 text ({error}); save it as UTF-8") from error
    return _captions([text] if lines == "joined" else text.splitlines())


def read_metadata(path: Path) -> dict[str, tuple[str, ...]]:
    """The captions that a metadata list gives to files, by their names relative to the list.

    A row has `file_name` and one of text, caption, captions, prompt: a text, or (in .jsonl) a list of several.
    Raises DatasetError with the number of the line that is not understood.
    """
    captions: dict[str, tuple[str, ...]] = {}
    for number, row in _rows(path):
        name = row.get(_FILE_NAME)
        if not isinstance(name, str) or not name:
            raise DatasetError(f"{path}, line {number}: there is no {_FILE_NAME}; each row names its picture there")
        parts = name.replace("\\", "/").split("/")
        if ".." in parts or parts[0] == "" or ":" in parts[0]:
            raise DatasetError(f"{path}, line {number}: {name!r} does not lie below the folder of the list")
        said = next((row[column] for column in _COLUMNS if row.get(column)), "")
        texts = said if isinstance(said, list) else [said]
        if not all(isinstance(text, str) for text in texts):
            raise DatasetError(f"{path}, line {number}: the caption of {name} is not text but {said!r}")
        captions["/".join(part for part in parts if part != ".")] = _captions(texts)
    return captions


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                reader = csv.DictReader(file)
                yield from ((reader.line_num, row) for row in reader)
                return
            for number, line in enumerate(file, start=1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise DatasetError(f"{path}, line {number}: {line.strip()[:60]!r} is not an object in braces")
                    yield number, row
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}, line {number}: this is not JSON ({error.msg})") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} cannot be read ({error}); save it as UTF-8") from error


def _captions(texts: list[str]) -> tuple[str, ...]:
    return tuple(squeezed for text in texts if (squeezed := " ".join(text.split())))
