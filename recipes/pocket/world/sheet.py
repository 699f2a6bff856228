"""Contact sheets of the drawn world, for looking at: `python -m recipes.pocket.world.sheet OUT.png`.

Writes OUT.png with every object in every colour, and beside it OUT-styles.png, OUT-characters.png and
OUT-random.png.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from recipes.pocket.world import (
    BACKGROUNDS,
    CHARACTERS,
    COLOURS,
    HELD_STYLES,
    OBJECTS,
    STYLES,
    Scene,
    Thing,
    draw,
    sample_scene,
)


def grid(rows: Sequence[Sequence[Scene]], size_px: int = 128) -> Image.Image:
    """The scenes' pictures in rows."""
    sheet = Image.new("RGB", (max(map(len, rows)) * (size_px + 4), len(rows) * (size_px + 4)), "white")
    for j, row in enumerate(rows):
        for i, scene in enumerate(row):
            sheet.paste(draw(scene, size_px), (i * (size_px + 4) + 2, j * (size_px + 4) + 2))
    return sheet


def single(kind: str, colour: str | None, background: str, style: str = "plain", size: str = "medium",
           jitter: int = 0) -> Scene:
    """A scene of one thing in the middle."""
    return Scene(background, (Thing(kind, colour, size, 0.5, 0.52),), style, jitter)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args(argv).out
    colours = list(COLOURS)
    every = (*STYLES, *HELD_STYLES)
    rng = random.Random(5)
    sheets = {
        "": [[single(kind, c, BACKGROUNDS[(i + j) % 8], jitter=i * 31 + j) for i, c in enumerate(colours)]
             for j, kind in enumerate(OBJECTS)],
        "-styles": [[single(OBJECTS[(5 * i + 3 * j) % 24], colours[(3 * i + j) % 10], b, style, jitter=i)
                     for i, b in enumerate(BACKGROUNDS)] for j, style in enumerate(every)],
        "-characters": [[single(c, None, BACKGROUNDS[(i + j) % 8], s, "big" if i == 0 else "medium", i)
                         for i, s in enumerate(every)] for j, c in enumerate(CHARACTERS)],
        "-random": [[sample_scene(rng, styles=every) for _ in range(12)] for _ in range(8)],
    }
    for suffix, rows in sheets.items():
        grid(rows).save(out.with_name(out.stem + suffix + out.suffix))


if __name__ == "__main__":
    main()
