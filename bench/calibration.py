"""Is the strength that calibration proposes the one a judge finds best? On pocket, over styles that it never saw.

    python -m bench.calibration judged  --work DIR NAME=ADAPTER.safetensors ...    curves by the judge; goes on
    python -m bench.calibration propose --work DIR NAME=ADAPTER.safetensors ...    proposals, kept beside the curves
    python -m bench.calibration write   --work DIR NAME=ADAPTER.safetensors ...    both, into bench/results

NAME is a style of pocket's drawn world, or STYLE@WORD for another adapter of it. The judge is the tests'; calibration
does not know it, and its prompts are others.

What "the one that maximises (style right and object right)" is was settled before any curve was looked at. Of each of
the first 16 prompts of tests/judge/prompts.json the judge gives the probability that the style is the asked one, times
the probability that the asked object is there; R is the mean. Neighbouring strengths are not told apart by so few
pictures, so the best is the middle of a plateau: of the unbroken run of strengths around the highest R whose R is not
below it by more than one standard error of the difference (prompt by prompt: noise and prompts are the same).
Strengths go up from 0.4 in steps of 0.2 until R is below four fifths of the highest; at the plateau's ends in steps
of 0.1. Shares of pictures that are right outright are told beside.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_lora.families.family import load_base
from diffusion_lora.generate.request import LoraUse
from diffusion_lora.lora.adapter import read_adapter
from diffusion_lora.lora.bank import AdapterBank
from diffusion_lora.train.calibrate import calibrate
from recipes.pocket.judge.prompts import read_lora
from recipes.pocket.judge.studio import Studio

PROMPTS = 16
FIRST, LAST = 4, 30  # strengths in tenths
ENOUGH = 0.8
WITHIN = 0.15

Curve = dict[str, dict[str, Any]]
_RESULTS = Path(__file__).parent / "results"


def judged(studio: Studio, name: str, adapter: Path, work: Path) -> Curve:
    """The curve of one adapter, by strength in tenths; kept in `work`, and gone on with from there."""
    file, style = work / f"judged-{name}.json", name.partition("@")[0]
    curve: Curve = json.loads(file.read_text()) if file.exists() else {}

    def look(tenths: int) -> float:
        if str(tenths) not in curve:
            curve[str(tenths)] = _judge(studio, style, adapter, tenths / 10)
            file.write_text(json.dumps(curve))
            print(name, tenths / 10, {k: v for k, v in curve[str(tenths)].items() if k != "right"}, flush=True)
        return mean_right(curve, tenths)

    for tenths in range(FIRST, LAST + 1, 2):
        highest = max((mean_right(curve, known) for known in places(curve)), default=0.0)
        if look(tenths) < ENOUGH * highest and tenths > best(curve)["best"] * 10:
            break
    while missing := [
        place for end, away in (("from", -1), ("to", 1))
        if FIRST <= (place := round(best(curve)[end] * 10) + away) <= LAST and str(place) not in curve
    ]:  # fmt: skip
        look(missing[0])
    return curve


def _judge(studio: Studio, style: str, adapter: Path, strength: float) -> dict[str, Any]:
    prompts = read_lora()[:PROMPTS]
    said, seeds = [prompt.said("style", style=style) for prompt in prompts], [prompt.seed for prompt in prompts]
    seen = studio.judge.look(studio.draw(said, seeds, [LoraUse(style, adapter, strength)]))
    kinds = [prompt.object for prompt in prompts]
    there = seen.objects[np.arange(len(prompts)), [seen.labels.objects.index(kind) for kind in kinds]]
    styled, right = seen.style_is(style), seen.object_is(kinds)
    return {
        "right": [round(float(value), 4) for value in seen.style_probability(style) * there],
        "mean": round(float((seen.style_probability(style) * there).mean()), 4),
        "style": round(float(seen.style_probability(style).mean()), 4),
        "object": round(float(there.mean()), 4),
        "outright": round(float((styled & right).mean()), 4),
        "style_outright": round(float(styled.mean()), 4),
        "object_outright": round(float(right.mean()), 4),
    }


def places(curve: Curve) -> list[int]:
    """The strengths that were judged, in tenths, rising."""
    return sorted(int(tenths) for tenths in curve)


def mean_right(curve: Curve, tenths: int) -> float:
    """R at this strength."""
    return float(np.mean(curve[str(tenths)]["right"]))


def best(curve: Curve) -> dict[str, float]:
    """The judged best strength, and where its plateau begins and ends."""
    known = places(curve)
    top = max(range(len(known)), key=lambda place: mean_right(curve, known[place]))
    at_top = np.array(curve[str(known[top])]["right"])

    def as_good(place: int) -> bool:
        less = at_top - np.array(curve[str(known[place])]["right"])
        return bool(less.mean() <= less.std(ddof=1) / np.sqrt(len(less)))

    low = high = top
    while low > 0 and as_good(low - 1):
        low -= 1
    while high + 1 < len(known) and as_good(high + 1):
        high += 1
    return {"best": (known[low] + known[high]) / 20, "from": known[low] / 10, "to": known[high] / 10,
            "highest": known[top] / 10}  # fmt: skip


def proposed(adapter: Path, base: str = "pocket") -> dict[str, Any]:
    """What calibration says, on a fresh base."""
    model = load_base(base, device="cpu")
    began = time.process_time()
    found = calibrate(model, AdapterBank(model.components, model.layout.title), read_adapter(adapter))
    facts = found.facts(model.weights_hash)
    return {**facts, "strength": round(found.strength, 3), "text": found.sentence,
            "cpu_seconds": round(time.process_time() - began, 1), "prompts": found.prompts}  # fmt: skip


def result(curves: Mapping[str, Curve], proposals: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Everything side by side."""
    rows = []
    for style, curve in curves.items():
        found, proposal = best(curve), proposals[style]
        known = places(curve)
        at = np.interp(proposal["strength"] * 10, known, [mean_right(curve, place) for place in known])
        rows.append(
            {
                "style": style,
                "judged": found,
                "proposed": proposal["strength"],
                "distance": round(abs(proposal["strength"] - found["best"]), 3),
                "within": abs(proposal["strength"] - found["best"]) <= WITHIN,
                "right_at_the_proposal": round(float(at), 4),
                "right_at_the_best": max(mean_right(curve, place) for place in known),
                "curve": {f"{place / 10:.1f}": curve[str(place)] for place in known},
                "calibration": dict(proposal),
            }
        )
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, beside other work",
        "torch": torch.__version__,
        "prompts": PROMPTS,
        "holds": all(row["within"] for row in rows),
        "styles": rows,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("judged", "propose", "write"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("adapters", nargs="+", metavar="NAME=FILE")
    options = parser.parse_args(argv)
    adapters = {name: Path(file) for name, _, file in (given.partition("=") for given in options.adapters)}
    if options.part == "judged":
        studio = Studio.open(device="cpu")
        for style, adapter in adapters.items():
            print(style, best(judged(studio, style, adapter, options.work)), flush=True)
    elif options.part == "propose":
        for style, adapter in adapters.items():
            proposal = proposed(adapter)
            (options.work / f"proposed-{style}.json").write_text(json.dumps(proposal))
            print(style, proposal["text"], flush=True)
    else:
        read = {
            kind: {style: json.loads((options.work / f"{kind}-{style}.json").read_text()) for style in adapters}
            for kind in ("judged", "proposed")
        }
        told = result(read["judged"], read["proposed"])
        path = _RESULTS / f"calibration-{told['date']}.json"
        path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
