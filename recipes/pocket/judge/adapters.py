"""Adapters for judging: the shipped presets, trained by the real command line on sets drawn for other styles too.

Nothing of a preset is changed but the pictures, the seed and the names, and previews are left out.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from diffusion_lora.generate.request import LoraUse
from recipes.pocket.make_sets import write_character_set, write_concept_set, write_style_set, write_subject_set

Preset = Literal["style", "subject", "character", "concept"]
_WRITE: dict[Preset, Callable[[Path, str], None]] = {
    "style": write_style_set,
    "subject": write_subject_set,
    "character": write_character_set,
    "concept": write_concept_set,
}
_ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Trained:
    """An adapter with what its training took: wall-clock seconds (imports included) and peak resident memory."""

    path: Path
    name: str
    seconds: float
    peak_mib: float

    def at(self, strength: float) -> LoraUse:
        return LoraUse(self.name, self.path, strength)


def trained(
    work: Path,
    preset: Preset,
    name: str,
    seed: int,
    device: str,
    tell: Callable[[str], None],
    threads: int = 0,
    captioned: bool = False,
    more_settings: Sequence[str] = (),
) -> Trained:
    """The adapter for the style, character or concept `name`; trained in `work`, or found there from an earlier call.

    `threads` as `train.threads`: 0 leaves it to torch. `captioned`, of a style: its pictures have the captions that the
    embedded captioner gives them, the style named by a rule. `more_settings` are KEY=VALUE, for a machine on which the
    preset as it is takes too long. RuntimeError with the end of its output when the command fails.
    """
    kind = f"{preset}-captioned" if captioned else preset
    run = work / f"{kind}-{name}-{seed}"
    taken = work / f"{run.name}.json"
    adapter = run / "adapter.safetensors"
    if not (taken.exists() and adapter.exists()):
        pictures = work / f"set-{kind}-{name}"
        _WRITE[preset](pictures, name)
        if captioned:
            _described(pictures, name, work)
        settings = {
            "dataset.path": str(pictures),
            "output.name": f"{name}-{seed}",
            "output.trigger_word": f"{name} style" if preset == "style" else name,
        }
        command = [sys.executable, "-m", "diffusion_lora", "train", f"pocket-{preset}", "--device", device]
        for key, value in settings.items():
            command += ["--set", f"{key}={json.dumps(value)}"]
        command += ["--set", f"train.seed={seed}", "--set", f"train.threads={threads}", "--set", "preview.every=0"]
        command += [word for setting in more_settings for word in ("--set", setting)]
        command += ["--out", str(run)]
        shutil.rmtree(run, ignore_errors=True)  # an earlier training that was cut off would spoil the clock
        tell(f"training {run.name}")
        seconds, peak_mib = _executed(command, work / f"{run.name}.log")
        taken.write_text(json.dumps({"seconds": seconds, "peak_mib": peak_mib}))
    return Trained(adapter, f"{name}-{seed}", **json.loads(taken.read_text()))


def _described(pictures: Path, style: str, work: Path) -> None:
    """Captions of the embedded captioner in place of those that were there."""
    rule = rf"regex: ^(.*?)(?:, \w+ style)?$ => \1, {style} style"
    caption = ["caption", str(pictures), "--policy", "overwrite", "--rule", rule]
    _executed([sys.executable, "-m", "diffusion_lora", *caption], work / f"{pictures.name}.log")


def _executed(command: list[str], log: Path) -> tuple[float, float]:
    """Run to the end; wall-clock seconds and the peak resident memory of this one process in MiB."""
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=_ROOT, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{log.read_text()[-2000:]}")
    return time.monotonic() - started, usage.ru_maxrss / 1024


def as_fact(adapter: Trained) -> dict[str, object]:
    """For the results file."""
    return {**asdict(adapter), "path": adapter.path.name, "bytes": adapter.path.stat().st_size}
