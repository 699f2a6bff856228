"""A part of the picture with words and adapters of its own. No torch.

    Region("left", "zib on a beach", box=BOXES["left"])

A box with soft edges, in shares of the picture's width and height, or a grey picture: white is inside. Where regions
overlap they share the place; where none is, the request's own prompt holds.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from diffusion_lora.errors import PromptError

Box = tuple[float, float, float, float]

BOXES: Mapping[str, Box] = {
    "left": (0.0, 0.0, 0.5, 1.0),
    "right": (0.5, 0.0, 1.0, 1.0),
    "top": (0.0, 0.0, 1.0, 0.5),
    "bottom": (0.0, 0.5, 1.0, 1.0),
    "centre": (0.25, 0.25, 0.75, 0.75),
}
"""Boxes by name: (left, top, right, bottom)."""

SOFT = 0.05
MAX_MASK_PX = 512
MAX_MASK_CHARS = 400_000
_NAME = re.compile(r"[\w\- ]{1,60}")


@dataclass(frozen=True)
class Region:
    """Where, by `box` or by `mask` (a PNG in base64, which goes before), and what to show there.

    `prompt` is empty for the request's own. `soft` is the width of the box's edges as a share of the picture's.
    Raises PromptError on construction.
    """

    name: str
    prompt: str = ""
    box: Box = (0.0, 0.0, 1.0, 1.0)
    soft: float = SOFT
    mask: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "box", tuple(float(side) for side in self.box))
        if not _NAME.fullmatch(self.name):
            raise PromptError(f"the name of the region {self.name!r} is not one word of letters and digits")
        if len(self.box) != 4 or not all(math.isfinite(side) for side in self.box):
            raise PromptError(f"the box of the region {self.name} is not left, top, right, bottom, as 0,0,0.5,1 is")
        left, top, right, bottom = self.box
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise PromptError(f"the box of the region {self.name} is not within 0,0,1,1, as 0,0,0.5,1 is")
        if not 0 <= self.soft <= 1:
            raise PromptError(f"the soft edge of the region {self.name} is {self.soft}; give 0 to 1")
        if len(self.mask) > MAX_MASK_CHARS:
            raise PromptError(f"the mask of the region {self.name} is too large; give a smaller picture")
        if self.mask:
            self.mask_image()

    def mask_image(self) -> Image.Image | None:
        """The mask as a grey picture; None when the box holds. Raises PromptError."""
        if not self.mask:
            return None
        try:
            with Image.open(io.BytesIO(base64.b64decode(self.mask, validate=True)), formats=("PNG",)) as image:
                if max(image.size) > 4 * MAX_MASK_PX:
                    raise ValueError("it is too large")
                return image.convert("L")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise PromptError(f"the mask of the region {self.name} is no PNG ({error})") from error


def mask_from_file(path: Path) -> str:
    """A grey picture as `Region.mask` wants it, made smaller where it is larger than needed. Raises PromptError."""
    from diffusion_lora.errors import DatasetError
    from diffusion_lora.images import open_image

    try:
        image = open_image(path).convert("L")
    except DatasetError as error:
        raise PromptError(str(error)) from error
    image.thumbnail((MAX_MASK_PX, MAX_MASK_PX))
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def parse_region_argument(text: str) -> Region:
    """`PLACE=PROMPT` or `NAME:PLACE=PROMPT`; PLACE is left, right, …, four numbers, or a picture (white is inside).

    The prompt may be left out. Raises PromptError.
    """
    place, _, prompt = text.partition("=")
    name, colon, where = place.partition(":")
    where = where.strip() if colon else name.strip()
    name = name.strip()
    if where in BOXES:
        return Region(name, prompt.strip(), BOXES[where])
    sides = where.split(",")
    if len(sides) == 4:
        try:
            left, top, right, bottom = (float(side) for side in sides)
        except ValueError:
            raise PromptError(f"the region {text!r}: {where!r} is not four numbers, as 0,0,0.5,1 is") from None
        return Region(name if colon else "area", prompt.strip(), (left, top, right, bottom))
    if colon and Path(where).expanduser().is_file():
        return Region(name, prompt.strip(), mask=mask_from_file(Path(where).expanduser()))
    raise PromptError(
        f"the region {text!r} is not understood; give {', '.join(BOXES)}, NAME:0,0,0.5,1 or NAME:MASK.png, then =PROMPT"
    )
