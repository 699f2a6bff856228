"""Does a training tell the truth about itself? The long checks of health, validation and wrong captions, on pocket.

    python -m bench.telling captions [--seeds 3] [--steps 350]    two wrong captions among 24: are both named first?
    python -m bench.telling healthy  [--seeds 10] [--steps 120]   the shipped presets: does any give a warning?
    python -m bench.telling overfit  [--steps 1050]               12 pictures, three times the steps: does it turn?

Each writes bench/results/telling-PART-DATE.json; every figure comes from the events of the runs, and of `overfit` from
the judge as well. With `--work DIR` the runs stay there, and the same command goes on where an earlier one was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from diffusion_lora.config import (
    TrainConfig,
    load_train_config,
    parse_train_config,
    setting_differences,
    shipped,
    to_toml,
)
from diffusion_lora.events import read_events
from diffusion_lora.generate.request import LoraUse
from diffusion_lora.run import Run
from diffusion_lora.train.trainer import train
from recipes.pocket.judge.prompts import read_lora
from recipes.pocket.judge.studio import Studio, judge_style
from recipes.pocket.make_sets import STYLE

_RESULTS = Path(__file__).parent / "results"
_POCKET_PRESETS = ("pocket-style", "pocket-subject")
_FULL_LENGTH = 2  # so many seeds of a healthy preset run to its own end
_PATIENCE, _EVERY = 4, 25  # measurements without a lower loss before a run is stopped; steps between them


def with_settings(config: TrainConfig, *settings: str) -> TrainConfig:
    return parse_train_config(to_toml(config), source="bench", overrides=settings)


def trained(folder: Path, config: TrainConfig) -> list[dict[str, Any]]:
    """Train in a run folder, or go on with the run in it; its events."""
    config = with_settings(config, "checkpoint.every=25")
    if not is_over(folder, config):
        train(Run.resume(folder, config), config, resume=True)
    return read_events(folder)


def circumstances() -> dict[str, Any]:
    return {
        "hardware": f"{platform.machine()} CPU ({torch.backends.cpu.get_cpu_capability()}), {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__},
    }


def is_over(folder: Path, config: TrainConfig) -> bool:
    """Whether a run with these settings has come to its end here, be it an early one."""
    if not (folder / "config.toml").exists() or setting_differences(Run.open(folder).config, config):
        return False
    return any(event["kind"] == "end" for event in read_events(folder))


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
    """The presets that train on pocket, as they are but for seed and length: warnings of each run.

    The first two seeds run to the preset's own end, the others for `steps` steps, with the schedule of that length.
    """
    rows = []
    for seed in [*range(_FULL_LENGTH, seeds), *range(min(seeds, _FULL_LENGTH))]:
        for preset in _POCKET_PRESETS:
            length = [f"train.steps={steps}"] if seed >= _FULL_LENGTH else []
            config = load_train_config(shipped("configs", preset), [f"train.seed={seed}", *length])
            events = trained(work / f"{preset}-{seed}", config)
            told = [event["text"] for event in events if event["kind"] == "warning"]
            rows.append({"preset": preset, "seed": seed, "steps": config.train.steps, "warnings": told})
            print(json.dumps(rows[-1]), flush=True)
    return {"runs": rows, "false_alarms": sum(bool(row["warnings"]) for row in rows)}


def overfitting(work: Path, seeds: int, steps: int) -> dict[str, Any]:
    """The style preset on 12 of its pictures, much too long: the course on held-out pictures, where early stop ends it,
    and what the judge says of the adapter that was chosen and of the last one.

    One training does for both: it is stopped early, and a copy of its folder goes on to the last step, which gives the
    numbers of a run that was never stopped.
    """
    preset = load_train_config(shipped("configs", "pocket-style"))
    pictures = work / "twelve"
    pictures.mkdir(exist_ok=True)
    for path in sorted(Path(preset.dataset.path).glob("*.png"))[::2]:
        for file in (path, path.with_suffix(".txt")):
            shutil.copy(file, pictures)
    rows = []
    for seed in range(seeds):
        stopped, whole = work / f"overfit-{seed}", work / f"overfit-{seed}-whole"
        config = with_settings(
            preset, f"dataset.path={pictures}", f"train.seed={seed}", f"train.steps={steps}",
            "validation.pictures=-1", f"validation.patience={_PATIENCE}", f"validation.every={_EVERY}",
        )  # fmt: skip
        ended = trained(stopped, config)[-1]
        if not whole.exists():
            half = work / "half-copied"
            shutil.rmtree(half, ignore_errors=True)
            shutil.copytree(stopped, half)
            half.rename(whole)
        events = trained(whole, with_settings(config, "validation.patience=0"))
        course = [(event["step"], event["loss"]) for event in events if event["kind"] == "validation"]
        before = [pair for pair in course if pair[0] <= ended["step"]]
        best, chosen = (min(pairs, key=lambda pair: pair[1]) for pairs in (course, before))
        row = {
            "seed": seed, "held out": next(e["pictures"] for e in events if e["kind"] == "validation"),
            "course": course, "lowest": best, "last": course[-1],
            "stopped early at": ended["step"], "chosen": chosen,
            "turned": course[-1][1] > best[1], "chosen above lowest, %": round(100 * (chosen[1] / best[1] - 1), 3),
        }  # fmt: skip
        print(json.dumps(row), flush=True)
        rows.append(row | {"judged": _judged(stopped, whole)})
        print(json.dumps(rows[-1]["judged"]), flush=True)
    return {"steps": steps, "patience": _PATIENCE, "runs": rows}


def _judged(stopped: Path, whole: Path) -> dict[str, Any]:
    """Style and object of the prompts outside the set, at strength 1, in percent, for the adapters of an overfit."""
    studio = Studio.open(device="cpu")
    files = {
        "chosen by early stop": stopped / "adapter.safetensors",
        "lowest of the whole run": whole / "best.safetensors",
        "last of the whole run": whole / "adapter.safetensors",
    }
    report: dict[str, Any] = {}
    for name, file in files.items():
        adapter = LoraUse(name.replace(" ", "-"), file)
        report[name] = judge_style(studio, read_lora(), STYLE, adapter, (1.0,))[0][1.0]
    return report


_PARTS = {"captions": (wrong_captions, 3, 350), "healthy": (false_alarms, 10, 120), "overfit": (overfitting, 1, 1050)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=_PARTS)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--work", type=Path, metavar="DIR", help="folder of the runs; by default a temporary one")
    options = parser.parse_args()
    check, seeds, steps = _PARTS[options.part]
    with ExitStack() as kept:
        work = options.work or Path(kept.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        result = check(work.absolute(), options.seeds or seeds, options.steps or steps)
    result = {"date": time.strftime("%Y-%m-%d"), **circumstances(), **result}
    path = _RESULTS / f"telling-{options.part}-{result['date']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
