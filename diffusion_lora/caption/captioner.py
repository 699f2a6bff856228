"""What a captioner is: something that describes pictures, several at once, on a device, until it is closed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from PIL import Image

Quantised = Literal["none", "8bit", "4bit"]


class Captioner(Protocol):
    """A loaded model. What it says of a picture does not depend on the company it is in."""

    name: str
    device: str
    kind: str
    """What it is, in words: the class of a model, or a tagger."""

    def describe(self, pictures: Sequence[Image.Image]) -> list[str]:
        """A caption for each picture, on one line; empty where the model said nothing."""

    def close(self) -> None:
        """Give its memory back; it describes nothing any more."""


@dataclass(frozen=True)
class Options:
    """How a captioner is loaded and asked.

    `prompt` is what a model is asked, or the words its caption goes on from; empty: what suits the model. `new_tokens`
    (0: what suits it) limits what it says. The last four are a tagger's: the thresholds of its general tags and its
    characters, tags never to be named, and whether ratings are.
    """

    device: str = "auto"
    quantised: Quantised = "none"
    prompt: str = ""
    new_tokens: int = 0
    revision: str | None = None
    threshold: float = 0.35
    character_threshold: float = 0.85
    blacklist: tuple[str, ...] = ()
    ratings: bool = False
