#!/usr/bin/env python3
"""Disturb trainings, let them go on, and see that nothing of it shows in the adapters. `scripts/soak` runs this.

    caching     kill -9 while pictures and captions are being encoded
    training    kill -9 between two saves
    saving      kill -9 while a checkpoint lies half written beside its place
    disk full   no file may become larger than so many bytes: a limit of the system that stands in for a full disk

A round is a fresh run on pocket with a cache of its own, disturbed once or twice; then it goes on to its end. Its
adapters must be the undisturbed run's bit for bit, its events must tell every step once, and every checkpoint it leaves
must be whole. A run on a full disk must end with one sentence and status 2.
"""

import argparse
import json
import os
import platform
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from diffusion_lora.events import read_events
from diffusion_lora.lora.header import tensor_hash

CHECKOUT = Path(__file__).resolve().parent.parent
# Crops and colourings of each picture, both ways round: encoding takes long enough to be hit.
SETTINGS = (
    "dataset.crop=random", "dataset.colour_jitter=0.1", "dataset.views=8", "dataset.shuffle=true",
    "checkpoint.every=3", "train.batch_size=2", "sweep.lora.rank=[4, 8]", "lora.dropout=0.1", "dataset.flip=true",
    "dataset.caption_dropout=0.1", "optimizer.ema_decay=0.9", "preview.every=0", "train.device=cpu",
)  # fmt: skip
KINDS = ("caching", "training", "saving", "disk full")
FULL_BYTES = (2_000, 20_000, 200_000, 1_000_000)
_USER_ERROR = 2
_PATIENCE_S = 600


class Round:
    """One run in a folder of its own."""

    def __init__(self, work: Path, name: str, steps: int) -> None:
        self.folder, self.cache, self.steps = work / name, work / f"{name}-cache", steps
        self.log = work / f"{name}.log"

    def start(self, largest_bytes: int = 0) -> "subprocess.Popen[bytes]":
        """The command line's own process, going on if there is something to go on with."""
        command = [sys.executable, "-m", "diffusion_lora", "train", str(CHECKOUT / "configs" / "pocket-subject.toml")]
        command += ["--steps", str(self.steps), "--out", str(self.folder), "--resume"]
        command += [part for setting in SETTINGS for part in ("--set", setting)]
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "DIFFUSION_LORA_CACHE": str(self.cache)}

        def limit() -> None:
            if largest_bytes:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest_bytes, largest_bytes))

        with self.log.open("ab") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, preexec_fn=limit)

    def finish(self) -> None:
        """Go on to the end; SystemExit with its words if it does not get there."""
        process = self.start()
        if process.wait(_PATIENCE_S):
            sys.exit(f"{self.folder.name} did not end well:\n{self.log.read_text()[-3000:]}")

    def steps_told(self) -> int:
        """Steps done by now."""
        if not self.folder.is_dir():
            return 0
        return max((event["step"] for event in read_events(self.folder) if event["kind"] == "step"), default=0)

    def reached(self, kind: str, at_step: int) -> bool:
        """Whether the moment of a disturbance has come."""
        if kind == "caching":
            return any(self.cache.rglob("*.tensors"))
        if kind == "saving" and self.steps_told() >= at_step:
            return any((self.folder / "checkpoints").glob(".step-*.tmp"))
        return kind == "training" and self.steps_told() >= at_step

    def adapters(self) -> dict[str, str]:
        """The hash of every adapter's tensors."""
        return {path.name: tensor_hash(path) for path in sorted(self.folder.glob("adapter-*.safetensors"))}

    def check(self, wanted: dict[str, str]) -> None:
        """SystemExit when anything shows."""
        if self.adapters() != wanted:
            sys.exit(f"{self.folder.name}: the adapters differ: {self.adapters()}, not {wanted}")
        told = [event["step"] for event in read_events(self.folder) if event["kind"] == "step"]
        if told != list(range(1, self.steps + 1)):
            sys.exit(f"{self.folder.name}: its events tell of the steps {told}")
        for path in (self.folder / "checkpoints").glob("step-*.pt"):
            torch.load(path, weights_only=True)


def disturb(run: Round, kind: str, chance: random.Random) -> str:
    """Disturb a run once, and say what happened."""
    if kind == "disk full":
        limit = chance.choice(FULL_BYTES)
        process = run.start(limit)
        status = process.wait(_PATIENCE_S)
        words = run.log.read_text().strip().splitlines()[-1]
        if status not in (0, _USER_ERROR) or (status == _USER_ERROR and "cannot write" not in words):
            sys.exit(f"{run.folder.name}: on a disk that is full at {limit} bytes it ended with {status}: {words}")
        return f"disk full at {limit} bytes: " + ("had room" if status == 0 else words[-60:])
    at_step = chance.randint(1, run.steps - 1)
    process = run.start()
    deadline = time.monotonic() + _PATIENCE_S
    while process.poll() is None and not run.reached(kind, at_step):
        if time.monotonic() > deadline:
            process.kill()
            sys.exit(f"{run.folder.name}: nothing happened for {_PATIENCE_S} s")
        time.sleep(0.0005 if kind == "saving" else 0.005)
    time.sleep(chance.random() * 0.05 if kind != "saving" else 0)
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    ended = process.wait()
    return f"{kind}: " + (f"killed at step {run.steps_told()}" if ended < 0 else "was over before")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", type=int, nargs="?", default=20)
    parser.add_argument("steps", type=int, nargs="?", default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="put the result into bench/results")
    args = parser.parse_args()
    chance, told, kinds = random.Random(args.seed), [], Counter[str]()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        whole = Round(Path(folder), "whole", args.steps)
        whole.finish()
        wanted = whole.adapters()
        print(f"undisturbed: {args.steps} steps, {len(wanted)} adapters", flush=True)
        for number in range(args.rounds):
            run = Round(Path(folder), f"round-{number + 1}", args.steps)
            # Every fourth a full disk, so 5 of 20; the others in turn. Now and then a second blow.
            chosen = ["disk full" if number % 4 == 3 else KINDS[number % 4]]
            chosen += [chance.choice(KINDS)] if chance.random() < 0.3 else []
            happened = [disturb(run, kind, chance) for kind in chosen]
            kinds.update(chosen)
            run.finish()
            run.check(wanted)
            told.append(happened)
            print(f"round {number + 1}: {'; '.join(happened)}; same tensors", flush=True)
    facts = {
        "date": date.today().isoformat(),
        "hardware": f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("torch", "bitsandbytes")},
        "seed": args.seed,
        "rounds": args.rounds,
        "steps": args.steps,
        "disturbances": dict(kinds),
        "told": told,
        "adapters_differ": 0,
    }
    print(f"soak passed: {args.rounds} rounds, {sum(kinds.values())} disturbances")
    if args.write:
        path = CHECKOUT / "bench" / "results" / f"soak-{facts['date']}.json"
        path.write_text(json.dumps(facts, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main()
