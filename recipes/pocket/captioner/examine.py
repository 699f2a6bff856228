"""Count what the captioner says rightly of fresh drawings.

`python -m recipes.pocket.captioner.examine FOLDER [--vae DIR]`

A caption is right when it names exactly the things that are there, each in its colour, and the background. Drawings of
base styles and of held ones, drawn and (with --vae) as the autoencoder gives them back, are counted apart.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion_lora.caption.captioner import Options
from diffusion_lora.caption.find import open_captioner
from recipes.pocket.captioner.words import CHARACTER, Said, caption_of, said
from recipes.pocket.judge.drawings import Autoencoder, decoded, drawings, scenes
from recipes.pocket.judge.train import FRESH_SEED
from recipes.pocket.world import STYLES, Scene

FRESH = 2000
"""The judge's own fresh drawings: nothing has learned from them."""
_AT_ONCE = 32


def captions(folder: Path, pixels: np.ndarray, device: str = "cpu") -> list[str]:
    """What the captioner in a folder says of pictures [N, 128, 128, 3]."""
    captioner = open_captioner(str(folder), Options(device=device))
    portions = (pixels[first : first + _AT_ONCE] for first in range(0, len(pixels), _AT_ONCE))
    return [text for portion in portions for text in captioner.describe([Image.fromarray(x) for x in portion])]


def shares(told: Sequence[str], shown: Sequence[Scene]) -> dict[str, float]:
    """In percent: objects right, each in its colour, background, all three; style; the caption word by word."""
    rows = []
    for text, scene in zip(told, shown, strict=True):
        heard, truth = said(text), _truth(scene)
        things = sorted(kind for _, kind in heard.things) == sorted(kind for _, kind in truth.things)
        rows.append((things, heard.things == truth.things, heard.background == truth.background,
                     heard.things == truth.things and heard.background == truth.background,
                     heard.style == truth.style, text == caption_of(scene)))
    names = ("objects", "objects and colours", "background", "all three", "style", "every word")
    return {name: 100 * float(np.mean([row[i] for row in rows])) for i, name in enumerate(names)}


def _truth(scene: Scene) -> Said:
    things = frozenset((t.colour, t.kind if t.colour else CHARACTER) for t in scene.things)
    style = scene.style if scene.style in STYLES and scene.style != "plain" else None
    return Said(things, scene.background, style)


def examine(folder: Path, cache: Path, autoencoder: Autoencoder | None, count: int = 512,
            device: str = "cpu") -> None:
    """Print the shares on fresh drawings of base and of held styles, drawn and decoded, and the time a picture."""
    drawn, every = drawings(cache, FRESH, FRESH_SEED, print), list(scenes(FRESH, FRESH_SEED))
    again = decoded(cache, drawn, autoencoder, FRESH_SEED, 0.2, print) if autoencoder else None
    objects = [i for i, s in enumerate(every) if s.things and all(thing.colour for thing in s.things)]
    sets = {"base styles": [i for i in objects if every[i].style in STYLES],
            "held styles": [i for i in objects if every[i].style not in STYLES],
            "characters": [i for i, s in enumerate(every) if any(thing.colour is None for thing in s.things)]}
    for name, chosen in sets.items():
        for how, pixels in (("drawn", drawn.pictures), ("decoded", again)):
            if pixels is not None:
                some = chosen[:count]
                started = time.monotonic()
                found = shares(captions(folder, pixels[some], device), [every[i] for i in some])
                pace = (time.monotonic() - started) / len(some)
                print(f"{name}, {how:8} ({len(some)})", "  ".join(f"{k} {v:.1f} %" for k, v in found.items()),
                      f" {1000 * pace:.0f} ms a picture", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    from recipes.pocket.judge.train import cache_folder

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vae", type=Path)
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    autoencoder = Autoencoder.load(args.vae, args.device) if args.vae else None
    examine(args.folder, cache_folder(), autoencoder, args.count, args.device)


if __name__ == "__main__":
    main()
