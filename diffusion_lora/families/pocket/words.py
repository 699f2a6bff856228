"""The words pocket knows, read from the list its recipe writes into the model folder. No torch."""

import json
from dataclasses import dataclass, fields
from pathlib import Path

from diffusion_lora.errors import BaseModelError

BASE_FOLDER = Path(__file__).parent / "base"


@dataclass(frozen=True)
class Words:
    """What may stand in a prompt for pocket; any other word is spelled letter by letter and means nothing to it yet."""

    objects: tuple[str, ...]
    colours: tuple[str, ...]
    backgrounds: tuple[str, ...]
    styles: tuple[str, ...]


def pocket_words(folder: Path = BASE_FOLDER) -> Words:
    """Read `words.json`. Raises BaseModelError when the list is absent or is not four lists of words."""
    path = folder / "words.json"
    try:
        lists = json.loads(path.read_text(encoding="utf-8"))
        return Words(**{field.name: tuple(str(word) for word in lists[field.name]) for field in fields(Words)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BaseModelError(
            f"{path}: pocket's list of words cannot be read ({error!r}); reinstall the package"
        ) from error
