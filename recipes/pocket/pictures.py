"""Drawings on disk: a folder with one uint8 array of pictures and one JSON line of scene and caption for each.

Drawn once, read by memory map; the same (count, seed, which) always gives the same folder.
"""

import argparse
import json
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from recipes.pocket.world import CHARACTERS, HELD_STYLES, STYLES, caption, draw, sample_scene

Which = Literal["everything", "base"]
CHUNK = 250


def one(seed: int, which: Which) -> tuple[np.ndarray, dict[str, Any]]:
    """Picture [128, 128, 3] uint8 with its scene. "base" is what the UNet may see: no held style, character or pair."""
    rng = random.Random(seed)
    if which == "base":
        style = "plain" if rng.random() < 0.45 else rng.choice(STYLES)
        scene = sample_scene(rng, styles=(style,), pairs="seen")
    else:
        style = rng.choice(("plain", *STYLES, *HELD_STYLES))
        character = rng.choice(CHARACTERS) if rng.random() < 0.2 else None
        scene = sample_scene(rng, styles=(style,), pairs="any", character=character)
    picture = np.asarray(draw(scene), dtype=np.uint8)
    return picture, {"caption": caption(scene, rng), **asdict(scene)}


def _chunk(job: tuple[int, int, Which]) -> tuple[np.ndarray, list[str]]:
    first, count, which = job
    drawn = [one(first + i, which) for i in range(count)]
    return np.stack([picture for picture, _ in drawn]), [json.dumps(facts) for _, facts in drawn]


def draw_set(folder: Path, count: int, seed: int, which: Which, processes: int = 2) -> None:
    """Draw into FOLDER/pictures.npy [count, 128, 128, 3] and FOLDER/scenes.jsonl; a finished folder is kept."""
    if (folder / "scenes.jsonl").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(seed + first, min(CHUNK, count - first), which) for first in range(0, count, CHUNK)]
    out = np.lib.format.open_memmap(folder / "pictures.npy", mode="w+", dtype=np.uint8, shape=(count, 128, 128, 3))
    lines: list[str] = []
    with ProcessPoolExecutor(processes) as pool:
        for pictures, facts in pool.map(_chunk, jobs):
            out[len(lines) : len(lines) + len(pictures)] = pictures
            lines += facts
    out.flush()
    (folder / "scenes.jsonl.part").write_text("\n".join(lines) + "\n")
    (folder / "scenes.jsonl.part").rename(folder / "scenes.jsonl")


def load_set(folder: Path) -> tuple[np.ndarray, list[dict[str, Any]]]:
    scenes = [json.loads(line) for line in (folder / "scenes.jsonl").read_text().splitlines()]
    return np.load(folder / "pictures.npy", mmap_mode="r"), scenes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True, help="pictures use seed, seed + 1, …: keep sets apart")
    parser.add_argument("--which", choices=("everything", "base"), required=True)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    draw_set(args.folder, args.count, args.seed, args.which, args.processes)


if __name__ == "__main__":
    main()
