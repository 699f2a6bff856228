"""Does a training tell the truth about itself? The long checks of health, validation and wrong captions, on pocket.

    python -m bench.telling captions [--seeds 3] [--steps 350]    two wrong captions among 24: are both named first?
    python -m bench.telling healthy  [--seeds 10] [--steps 60]    the shipped presets: does any give a warning?
    python -m bench.telling overfit  [--steps 1050]               12 pictures, three times the steps: does it turn?

Each writes bench/results/telling-PART-DATE.json; every figure comes from the events of the runs.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from diffusion_lora.config import TrainConfig, load_train_config, parse_train_config, shipped, to_toml
from diffusion_lora.events import read_events
from diffusion_lora.run import Run
from diffusion_lora.train.trainer import train

_RESULTS = Path(__file__).parent / "results"
_POCKET_PRESETS = ("pocket-style", "pocket-subject")


def with_settings(config: TrainConfig, *settings: str) -> TrainConfig:
    return parse_train_config(to_toml(config), source="bench", overrides=settings)


def trained(folder: Path, config: TrainConfig) -> list[dict[str, Any]]:
    """Train in a new run folder; its events."""
    train(Run.create(folder, config), config)
    return read_events(folder)


def wrong_captions(work: Path, seeds: int, steps: int) -> dict[str, Any]:
    """The style preset on its 24 pictures, the captions of two exchanged: places of these two in the list."""
    preset = load_train_config(shipped("configs", "pocket-style"))
    rows = []
    for seed in range(seeds):
        pictures = work / f"pictures-{seed}"
        shutil.copytree(preset.dataset.path, pictures)
        one, other = random.Random(seed).sample(sorted(pictures.glob("*.png")), 2)
        texts = [path.with_suffix(".txt").read_text(encoding="utf-8") for path in (one, other)]
        for path, text in zip((other, one), texts, strict=True):
            path.with_suffix(".txt").write_text(text, encoding="utf-8")
        config = with_settings(
            preset, f"dataset.path={pictures}", f"train.seed={seed}", f"train.steps={steps}",
            "validation.picture_looks=3",
        )  # fmt: skip
        events = trained(work / f"captions-{seed}", config)
        looks = [event for event in events if event["kind"] == "pictures"]
        first = [entry["picture"] for entry in looks[-1]["first"]]
        rows.append(
            {
                "seed": seed,
                "wrong": [one.name, other.name],
                "first": looks[-1]["first"],
                "both_in_the_first_three": {one.name, other.name} <= set(first),
                "told": [event["text"] for event in events if event["kind"] == "note" and "fight" in event["text"]],
                "warnings": [event["text"] for event in events if event["kind"] == "warning"],
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return {"steps": steps, "runs": rows}


def false_alarms(work: Path, seeds: int, steps: int) -> dict[str, Any]:
    """The presets that train on pocket, as they are but for seed and length: warnings of each run."""
    rows = []
    for preset in _POCKET_PRESETS:
        for seed in range(seeds):
            config = load_train_config(shipped("configs", preset), [f"train.seed={seed}", f"train.steps={steps}"])
            events = trained(work / f"{preset}-{seed}", config)
            told = [event["text"] for event in events if event["kind"] == "warning"]
            rows.append({"preset": preset, "seed": seed, "warnings": told})
            print(json.dumps(rows[-1]), flush=True)
    return {"steps": steps, "runs": rows, "false_alarms": sum(bool(row["warnings"]) for row in rows)}


def overfitting(work: Path, seeds: int, steps: int) -> dict[str, Any]:
    """The style preset on 12 of its pictures, much too long: the course on held-out pictures, and where it stops."""
    preset = load_train_config(shipped("configs", "pocket-style"))
    pictures = work / "twelve"
    pictures.mkdir()
    for path in sorted(Path(preset.dataset.path).glob("*.png"))[::2]:
        for file in (path, path.with_suffix(".txt")):
            shutil.copy(file, pictures)
    rows = []
    for seed in range(seeds):
        config = with_settings(
            preset, f"dataset.path={pictures}", f"train.seed={seed}", f"train.steps={steps}",
            "validation.pictures=-1", "validation.patience=4", "validation.every=25",
        )  # fmt: skip
        events = trained(work / f"overfit-{seed}", config)
        course = [(event["step"], event["loss"]) for event in events if event["kind"] == "validation"]
        best = min(course, key=lambda pair: pair[1])
        end = next(event["step"] for event in events if event["kind"] == "end")
        rows.append({"seed": seed, "course": course, "best": best, "ended": end, "turned": end < steps})
        print(json.dumps(rows[-1]), flush=True)
    return {"steps": steps, "runs": rows}


_PARTS = {"captions": (wrong_captions, 3, 350), "healthy": (false_alarms, 10, 60), "overfit": (overfitting, 1, 1050)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=_PARTS)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    check, seeds, steps = _PARTS[options.part]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        result = check(Path(work), options.seeds or seeds, options.steps or steps)
    result |= {"date": time.strftime("%Y-%m-%d"), "seconds": round(time.monotonic() - began)}
    path = _RESULTS / f"telling-{options.part}-{result['date']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
