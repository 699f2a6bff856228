"""The trainings that docs/rank.md rests on: each has a run folder, and goes on where it was stopped.

    ranks     pocket-style at ranks 1 ... 64 with alpha 16, side by side in one pass over the base
    coupled   rank 16 at three alphas times three learning rates, the UNet alone, side by side
    narrow    the attention projections of the UNet alone, those that the full fine-tuning trains, at two ranks
    alone-N   a few steps of rank N by itself, for its time
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.telling import trained
from diffusion_lora.config import TrainConfig, load_train_config, shipped
from diffusion_lora.events import read_events

RANK = 16
LAYERS = "attention"  # those of the full fine-tuning, by the name of their preset


@dataclass(frozen=True)
class Plan:
    """How long and how wide; the defaults are those of the page."""

    ranks: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)
    steps: int = 200
    rates: Sequence[float] = (8e-3, 2e-3, 5e-4)
    alphas: Sequence[float] = (4.0, 16.0, 64.0)
    coupled_steps: int = 120
    timed_steps: int = 14
    narrow_ranks: Sequence[int] = (16, 64)
    drawings: int = 16
    more: Sequence[str] = ()  # settings of every training, for a trial
    prompts: int = 32

    @property
    def settings(self) -> list[str]:
        return [
            "train.batch_size=2", "optimizer.lr=2e-3", "optimizer.text_lr=6e-4", "preview.every=0",
            "validation.pictures=0", *self.more,
        ]  # fmt: skip


def config(*settings: str) -> TrainConfig:
    return load_train_config(shipped("configs", "pocket-style"), settings)


def train_ranks(work: Path, plan: Plan) -> dict[int, dict[str, Any]]:
    """By rank: its row of the run's `sweep` event, and where its file lies. All have the preset's alpha, 16."""
    return _swept(work / "ranks", config(
        *plan.settings, f"train.steps={plan.steps}", f"sweep.lora.rank={list(plan.ranks)}"))  # fmt: skip


def train_narrow(work: Path, plan: Plan) -> dict[int, dict[str, Any]]:
    """By rank, as above: for spectra, beside a full fine-tuning of the same layers, as long as that one."""
    return _swept(work / "narrow", config(
        *plan.settings, f"train.steps={plan.steps}", f"lora.targets={LAYERS}", "lora.text_targets=none",
        f"sweep.lora.rank={list(plan.narrow_ranks)}"))  # fmt: skip


def _swept(folder: Path, settings: TrainConfig) -> dict[int, dict[str, Any]]:
    events = trained(folder, settings)
    steps = [event for event in events if event["kind"] == "step"]
    rows = {}
    for row in next(event for event in reversed(events) if event["kind"] == "sweep")["rows"]:
        course = [step["adapters"][row["name"]]["loss"] for step in steps]
        file = folder / f"adapter-{row['name']}.safetensors"
        rows[int(row["settings"]["lora.rank"])] = {**row, "course": course, "file": file}
    return rows


def ended(folder: Path) -> dict[str, Any]:
    """What a run said at its end: when that was (`time`), and how long it took from its first step (`seconds`)."""
    return next(event for event in reversed(read_events(folder)) if event["kind"] == "end")


def train_coupled(work: Path, plan: Plan) -> dict[tuple[float, float], dict[str, Any]]:
    """By (alpha, learning rate): the row, the file, and the course of the loss."""
    folder = work / "coupled"
    events = trained(folder, config(
        *plan.settings, f"train.steps={plan.coupled_steps}", "lora.text_targets=none", f"lora.rank={RANK}",
        f"sweep.lora.alpha={list(plan.alphas)}", f"sweep.optimizer.lr={list(plan.rates)}"))  # fmt: skip
    steps = [event for event in events if event["kind"] == "step"]
    rows = {}
    for row in next(event for event in reversed(events) if event["kind"] == "sweep")["rows"]:
        key = (float(row["settings"]["lora.alpha"]), float(row["settings"]["optimizer.lr"]))
        course = [step["adapters"][row["name"]]["loss"] for step in steps]
        rows[key] = {**row, "course": course, "file": folder / f"adapter-{row['name']}.safetensors"}
    return rows


def time_alone(work: Path, rank: int, plan: Plan) -> float:
    """The median seconds of a step of this rank by itself, the first two left out."""
    folder = work / f"alone-{rank}"
    trained(folder, config(*plan.settings, f"train.steps={plan.timed_steps}", f"lora.rank={rank}"))
    stamps = [event["time"] for event in read_events(folder) if event["kind"] == "step"]
    return statistics.median(after - before for before, after in pairwise(stamps[2:]))
