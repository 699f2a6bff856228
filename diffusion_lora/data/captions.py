"""What a picture is called in a step: its captions, varied by rules, as functions of a seed and a number. No torch.

    trigger word . the kept tags . the others, shuffled and thinned

The strings that come out are what is trained with; how they become tokens is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from diffusion_lora.prompt.wildcards import expand

_WORDS = 6  # a stream of random numbers, apart from those of `batches` and `views`


@dataclass(frozen=True)
class CaptionRules:
    """How captions are varied.

    Tags are what stands between `separator`s. The first `keep_first` of them, or those before the first
    `keep_separator` (and after a second one), stay where they are. `variants` is how many different captions a picture
    has at most, 0 for a new one every time. `trigger` is put in front of a caption that lacks it.
    """

    trigger: str = ""
    shuffle: bool = False
    separator: str = ","
    keep_first: int = 0
    keep_separator: str = ""
    tag_dropout: float = 0.0
    wildcards: bool = False
    variants: int = 16

    def without_trigger(self) -> CaptionRules:
        """The same, but for the trigger word."""
        return replace(self, trigger="")

    def varies(self, captions: Sequence[str]) -> bool:
        """Whether a picture with these captions is called different things at different times."""
        tags = (self.shuffle or self.tag_dropout > 0) and any(self.separator in caption for caption in captions)
        return len(captions) > 1 or tags or (self.wildcards and any("{" in caption for caption in captions))

    def variant(self, captions: Sequence[str], seed: int, picture: int, number: int) -> str:
        """The caption of a picture that has these, in its variant of a number: a function of its arguments."""
        rng = np.random.default_rng((_WORDS, seed, picture, number))
        text = captions[int(rng.integers(len(captions)))] if len(captions) > 1 else captions[0]
        if self.wildcards:
            text = expand(text, int(rng.integers(2**31)))
        return self._with_trigger(self._arranged(text, rng))

    def every_variant(self, captions: Sequence[str], seed: int, picture: int) -> list[str]:
        """The different captions a picture has, in the order of their numbers; with 0 variants, the first sixteen."""
        numbers = range(self.variants or 16) if self.varies(captions) else range(1)
        return list(dict.fromkeys(self.variant(captions, seed, picture, number) for number in numbers))

    def _arranged(self, text: str, rng: np.random.Generator) -> str:
        first, last = "", ""
        if self.keep_separator and self.keep_separator in text:
            first, text, *rest = (part.strip() for part in text.split(self.keep_separator, 2))
            last = rest[0] if rest else ""
        elif not (self.shuffle or self.tag_dropout):
            return text
        tags = self._tags(text)
        kept, loose = (tags[: self.keep_first], tags[self.keep_first :]) if not first else ([], tags)
        if self.tag_dropout:
            loose = [
                tag for tag, chance in zip(loose, rng.random(len(loose)), strict=True) if chance >= self.tag_dropout
            ]
        if self.shuffle:
            loose = [loose[index] for index in rng.permutation(len(loose))]
        joint = f"{self.separator.strip()} " if self.separator.strip() else self.separator
        return joint.join([*self._tags(first), *kept, *loose, *self._tags(last)])

    def _tags(self, text: str) -> list[str]:
        return [tag for part in text.split(self.separator) if (tag := part.strip())]

    def _with_trigger(self, text: str) -> str:
        if not self.trigger or re.search(rf"(?<!\w){re.escape(self.trigger)}(?!\w)", text):
            return text
        joint = f"{self.separator.strip()} " if self.separator.strip() and self.separator in text else " "
        return f"{self.trigger}{joint}{text}" if text else self.trigger
