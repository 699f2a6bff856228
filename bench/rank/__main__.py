"""docs/rank.md from measured runs on pocket.

    python -m bench.rank make --work DIR [--write]    train what is not there yet, measure; about a quarter of an hour
    python -m bench.rank write                        the page and its plots again, from bench/results/rank.json

Every figure comes from a run folder in DIR; without --write the figures stay there. Run from the checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.rank.held_out import TIMESTEPS, HeldOut
from bench.rank.measures import curve, fine_tuned, judged, likeness, memory, norm
from bench.rank.page import page
from bench.rank.runs import LAYERS, RANK, Plan, ended, time_alone, train_coupled, train_narrow, train_ranks
from diffusion_lora.lora.adapter import read_adapter
from diffusion_lora.run import write_atomically
from recipes.pocket.judge.studio import Studio

CHECKOUT = Path(__file__).resolve().parents[2]
FIGURES = CHECKOUT / "bench" / "results" / "rank.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("make", "write"))
    parser.add_argument("--work", type=Path, metavar="DIR", help="folder of the runs of `make`")
    parser.add_argument("--write", action="store_true", help="`make` writes bench/results/rank.json and docs/")
    args = parser.parse_args()
    if args.part == "make":
        if args.work is None:
            parser.error("`make` needs --work DIR: the runs stay there, and one that was stopped goes on")
        found = figures(args.work.absolute(), Plan())
        place = FIGURES if args.write else args.work / "rank.json"
        write_atomically(place, (json.dumps(found, indent=1) + "\n").encode())
        print(place)
    if args.part == "write" or args.write:
        write_page(json.loads(FIGURES.read_text(encoding="utf-8")), CHECKOUT / "docs")


def write_page(found: dict[str, Any], docs: Path) -> None:
    """The page and its plots below a folder."""
    (docs / "rank").mkdir(parents=True, exist_ok=True)
    for name, text in page(found).items():
        write_atomically(docs / name, text.encode())


def figures(work: Path, plan: Plan) -> dict[str, Any]:
    """All that the page tells, from runs in this folder; those that are not there yet are trained."""
    work.mkdir(parents=True, exist_ok=True)
    rows, coupled, narrow = train_ranks(work, plan), train_coupled(work, plan), train_narrow(work, plan)
    studio, held_out = Studio.open(device="cpu"), HeldOut(plan.drawings)

    def seen(row: dict[str, Any]) -> dict[str, Any]:
        """What is told of every adapter."""
        return {
            **{key: row[key] for key in ("loss", "change", "parameters", "bytes")},
            "held_out": held_out.loss(read_adapter(row["file"]), row["file"]),
        }  # fmt: skip

    ranks = [
        {
            "run": "ranks", "rank": rank, **seen(row), "seconds_a_step": round(time_alone(work, rank, plan), 4),
            "judged": judged(studio, row["file"], plan.prompts),
        }
        for rank, row in rows.items()
    ]  # fmt: skip
    middle = (plan.alphas[1], plan.rates[1])
    product = middle[0] * middle[1]
    pairs = [
        {
            "run": "coupled", "alpha": alpha, "lr": rate, **seen(row), "course": row["course"],
            "on_the_diagonal": abs(alpha * rate / product - 1) < 1e-6,
            "likeness": round(likeness(row["file"], coupled[middle]["file"]), 4),
            "judged": judged(studio, row["file"], plan.prompts),
        }
        for (alpha, rate), row in coupled.items()
    ]  # fmt: skip
    full = fine_tuned(work, plan.steps)
    told = json.loads((work / "full" / "run.json").read_text())
    last = max(1, plan.steps // 4)
    changes = [
        {
            "run": "full", "rank": None, "lr": told["lr"], "loss": statistics.fmean(told["losses"][-last:]),
            "change": norm(full), "held_out": held_out.loss(full, work / "full" / "difference.safetensors"),
            "curve": curve(full),
        },
        *({"run": "narrow", "rank": rank, **seen(row), "curve": curve(read_adapter(row["file"]))}
          for rank, row in narrow.items()),
    ]  # fmt: skip
    return {
        "date": date.fromtimestamp(ended(work / "ranks")["time"]).isoformat(),
        "hardware": f"{_processor()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("torch", "diffusers", "bitsandbytes")},
        "plan": asdict(plan) | {"settings": plan.settings},
        "held_out": {"of the base": held_out.loss(None, work / "base"), "timesteps": TIMESTEPS},
        "ranks": {"seconds": ended(work / "ranks")["seconds"], "rows": ranks},
        "coupled": {"middle": {"alpha": middle[0], "lr": middle[1], "rank": RANK}, "rows": pairs},
        "spectrum": {"layers": LAYERS, "rows": changes},
        "memory": memory(),
    }  # fmt: skip


def _processor() -> str:
    """The processor's own name, where Linux tells it."""
    told = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in told.read_text().splitlines() if line.startswith("model name")] if told.exists() else []  # noqa: E501
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
