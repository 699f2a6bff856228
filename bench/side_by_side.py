"""Four adapters in one pass over the base, against the same four trained one after the other, and against one.

Ranks 4, 8, 16 and 32 as a [sweep], and each alone; whole commands, start included, and the median step of each apart.
pocket with its own settings at batch 1, or random weights in the shapes of SD 1.5 at 256 px in bf16. Run from the
checkout:

    python bench/side_by_side.py pocket|sd15 [--rounds 3] [--steps 40] [--base-folder DIR] [--write]
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from random_bases import base

from diffusion_lora.events import read_events

CHECKOUT = Path(__file__).resolve().parent.parent
RANKS = (4, 8, 16, 32)
GOALS = {"pocket": 0.6, "sd15": 0.95}  # of the time of the four alone
GOAL_MEMORY = 1.3  # times that of one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", choices=sorted(GOALS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=0, help="by default 100 for pocket, 10 for sd15")
    parser.add_argument("--base-folder", type=Path, help="where the random base lies, or is made (4 GB)")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    steps = args.steps or {"pocket": 100, "sd15": 10}[args.base]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        settings = _settings(args.base, work, args.base_folder or work)
        rounds = [_round(work / str(number), settings, steps) for number in range(args.rounds)]
    time_ratio = statistics.median(one["time_ratio"] for one in rounds)
    step_ratio = statistics.median(one["step_ratio"] for one in rounds)
    memory_ratio = statistics.median(one["memory_ratio"] for one in rounds)
    facts = {
        "date": date.today().isoformat(),
        "hardware": f"{platform.machine()} CPU ({torch.backends.cpu.get_cpu_capability()}), {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("torch", "diffusers")},
        "base": args.base,
        "ranks": RANKS,
        "steps": steps,
        "rounds": rounds,
        "time_ratio": time_ratio,
        "step_ratio": step_ratio,
        "goal_time": GOALS[args.base],
        "memory_ratio": memory_ratio,
        "goal_memory": GOAL_MEMORY,
        "reached": time_ratio <= GOALS[args.base] and memory_ratio <= GOAL_MEMORY,
    }
    print(json.dumps(facts, indent=1))
    if args.write:
        path = CHECKOUT / "bench" / "results" / f"side-by-side-{facts['date']}-{args.base}.json"
        path.write_text(json.dumps(facts, indent=1) + "\n")
        print(path)


def _settings(kind: str, work: Path, base_folder: Path) -> list[str]:
    common = ["train.batch_size=1", "train.device=cpu", "preview.every=0", "checkpoint.every=0", "dataset.cache=ram"]
    if kind == "pocket":
        return common
    pictures = work / "pictures"
    pictures.mkdir()
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 255, (256, 256, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text("a red thing")
    return [
        *common, f'model.base="{base("sd15", base_folder)}"', "model.dtype=bf16", f'dataset.path="{pictures}"',
        "dataset.size_px=256", "lora.targets=attention", "lora.text_targets=none", "optimizer.name=adamw",
        "train.precision=bf16",
    ]  # fmt: skip


def _round(work: Path, settings: list[str], steps: int) -> dict[str, Any]:
    together = _train(work / "together", [*settings, f"sweep.lora.rank={list(RANKS)}"], steps)
    alone = [_train(work / f"rank{rank}", [*settings, f"lora.rank={rank}"], steps) for rank in RANKS]
    return {
        "together": together,
        "alone": alone,
        "time_ratio": round(together["seconds"] / sum(one["seconds"] for one in alone), 3),
        "step_ratio": round(together["s_per_step"] / sum(one["s_per_step"] for one in alone), 3),
        "memory_ratio": round(together["peak_mib"] / max(one["peak_mib"] for one in alone), 3),
    }


def _train(folder: Path, settings: list[str], steps: int) -> dict[str, float]:
    command = [sys.executable, "-m", "diffusion_lora", "train", "pocket-style", "--steps", str(steps)]
    command += ["--out", str(folder), *(part for setting in settings for part in ("--set", setting))]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "HF_HUB_OFFLINE": "1"}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        begun = read_clock()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = read_clock() - begun
    if status:
        sys.exit(f"{' '.join(command)} ended with {status}:\n{Path(log.name).read_text()[-3000:]}")
    stamps = [event["time"] for event in read_events(folder) if event["kind"] == "step"]
    between = [after - before for before, after in pairwise(stamps[1:])]
    return {
        "seconds": round(seconds, 2),
        "s_per_step": round(statistics.median(between), 4),
        "peak_mib": usage.ru_maxrss // 1024,
    }


def read_clock() -> float:
    """Seconds, of a clock that nobody sets."""
    return os.times().elapsed


if __name__ == "__main__":
    main()
