#!/usr/bin/env python3
"""Kill page, engine, worker and training in every order, and see that nothing is lost and nothing done twice.

`scripts/soak page [KILLS] [--runs N] [--seed N] [--write]`

A page over a fresh workspace, its engine and its worker, and a queue of short trainings on pocket. All four are killed
(`kill -9`) in random orders, 0 to 3 s apart, so that one dies while another still recovers. After each four the page
is started again, as a person would, and within a while

    page and engine      answer again; a picture that is asked for is drawn
    worker               one is at work, not two
    a killed training    is told to have failed, with the step it can go on from, and goes on when it is retried
    a living training    has not noticed: the same process, the same attempt

In the end every run is done, has told every step once, has one adapter in the library, and its adapter is bit for bit
that of the same training by the command line alone.
"""

import argparse
import itertools
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from diffusion_lora.events import read_events
from diffusion_lora.generate.request import Request
from diffusion_lora.generate.wire import End
from diffusion_lora.jobs.store import Job, Queue
from diffusion_lora.lora.header import tensor_hash
from diffusion_lora.workspace import Workspace
from tests.ui.process import DeskProcess, wait_for
from webui.engine import EngineClient

CHECKOUT = Path(__file__).resolve().parent.parent
WHO = ("page", "engine", "worker", "training")
STEPS = 60
SETTINGS = (
    f"train.steps={STEPS}", "train.batch_size=2", "lora.rank=4", "lora.targets=qv", "lora.text_targets=none",
    "checkpoint.every=5", "preview.every=0", "dataset.caption_dropout=0.1", "dataset.flip=true", "train.device=cpu",
)  # fmt: skip


class Story:
    """The workspace with everything that lives in it."""

    def __init__(self, folder: Path, runs: int, chance: random.Random) -> None:
        self.desk = DeskProcess(folder / "ws")
        self.workspace = Workspace.open(folder / "ws")
        self.queue = Queue(self.workspace)
        self.chance = chance
        self.names = [f"run{number}" for number in range(1, runs + 1)]
        self.attempts: Counter[str] = Counter()
        self.killed: Counter[str] = Counter()

    def begin(self) -> None:
        for name in self.names:
            _command("queue", "add", "pocket-style", *_sets(f"output.name={name}"), "--workspace", self.workspace.root)
            self.attempts[name] = 1
        self.desk.start()

    def kill(self, who: str) -> None:
        """`kill -9` of one of the four, if it lives; a training that is not there yet is waited for."""
        if who == "page":
            self.desk.kill()
        elif who == "training":
            job = self._living_training()
            if job is None:
                return
            psutil.Process(job.pid).kill()
        else:
            told = self.desk.presence(who)
            if told is None:
                return  # it died with its page a moment ago, and another is on its way
            psutil.Process(told["pid"]).kill()
        self.killed[who] += 1

    def recover(self) -> None:
        """What a person does, and what must then be true."""
        living = self._living_training()
        self.desk.start()
        self.desk.wait_for_presence("engine")
        self.desk.wait_for_presence("worker")
        wait_for("the queue to tell the dead from the living", self._settled)
        if living is not None:
            now = self.queue.job(living.run)
            same = now is not None and (now.pid == living.pid or now.state == "done")
            check(same, f"{living.run} was disturbed: {now}")
        for name in self.names:
            job = self.queue.job(name)
            check(job is not None, f"{name} is lost")
            if job is not None and job.state == "failed":
                saved = [event["step"] for event in self._events(name) if event["kind"] == "checkpoint"]
                told = not saved or f"step {saved[-1]}" in job.text
                check(told, f"{name} does not tell step {saved[-1:]}: {job.text}")
                _command("queue", "retry", name, "--workspace", self.workspace.root)
                self.attempts[name] += 1
        workers = [one for one in self.desk.processes("\0worker\0") if one.is_running()]
        check(len(workers) == 1, f"{len(workers)} workers")

    def draw(self) -> None:
        """A picture from whichever engine there is, once no training has the device."""
        client = EngineClient(self.workspace)
        self.desk.wait_for_engine()
        *_, last = client.generate([Request("a red cat", steps=2)], previews=False)
        check(isinstance(last, End), f"no picture came: {last}")

    def finish(self) -> None:
        """Wait until every run is done, going on with those that fail no more."""
        wait_for("the runs to end", lambda: all(job.state == "done" for job in self._jobs()), timeout_s=1800)

    def check_all(self, wanted: str) -> None:
        """Every step once, one end, one adapter, and that adapter the undisturbed one."""
        for name in self.names:
            steps = [event["step"] for event in read_events(self._folder(name)) if event["kind"] == "step"]
            check(steps == list(range(1, STEPS + 1)), f"{name} tells of the steps {steps}")
            every = self._events(name)
            counted = Counter(event["kind"] for event in every)
            check(counted["end"] == 1, f"{name} ended {counted['end']} times")
            check(counted["start"] <= self.attempts[name], f"{name} began {counted['start']} times")
            check(tensor_hash(self._folder(name) / "adapter.safetensors") == wanted, f"{name} learned something else")
        found = sorted(path.name for path in self.workspace.loras.glob("*.safetensors"))
        check(found == sorted(f"{name}.safetensors" for name in self.names), f"the library holds {found}")

    def _living_training(self) -> Job | None:
        return next((job for job in self._jobs() if job.state == "running" and job.pid and _lives(job.pid)), None)

    def _jobs(self) -> list[Job]:
        return [job for name in self.names if (job := self.queue.job(name)) is not None]

    def _settled(self) -> bool:
        return all(job.state != "running" or (job.pid and _lives(job.pid)) for job in self._jobs())

    def _folder(self, name: str) -> Path:
        return self.workspace.run_folder(name)

    def _events(self, name: str) -> list[dict[str, Any]]:
        folder = self._folder(name)
        return read_events(folder, current=False) if (folder / "events.jsonl").exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", nargs="?", type=int, default=20)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="put the result into bench/results")
    args = parser.parse_args()
    chance = random.Random(args.seed)
    orders = list(itertools.permutations(WHO))
    chance.shuffle(orders)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        _command("train", "pocket-style", *_sets("output.name=alone"), "--out", Path(folder) / "alone")
        wanted = tensor_hash(Path(folder) / "alone" / "adapter.safetensors")
        print(f"undisturbed: {STEPS} steps", flush=True)
        story = Story(Path(folder), args.runs, chance)
        told = []
        try:
            story.begin()
            for order in itertools.cycle(orders):
                if sum(story.killed.values()) >= args.kills:
                    break
                _until_at_work(story)
                gaps = [round(3 * chance.random(), 2) for _ in order]
                for who, gap in zip(order, gaps, strict=True):
                    time.sleep(gap)
                    story.kill(who)
                story.recover()
                told.append(", ".join(f"{who} after {gap} s" for who, gap in zip(order, gaps, strict=True)))
                print(told[-1], dict(story.killed), flush=True)
            story.finish()
            story.draw()
            story.check_all(wanted)
        finally:
            story.desk.close()
    facts = {
        "date": date.today().isoformat(),
        "hardware": f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("torch", "diffusers", "gradio")},
        "seed": args.seed,
        "kills": dict(story.killed),
        "orders": told,
        "runs": {name: {"attempts": story.attempts[name]} for name in story.names},
        "seconds": round(time.monotonic() - began),
        "holds": True,
    }
    print(json.dumps(facts, indent=1))
    if args.write:
        path = CHECKOUT / "bench" / "results" / f"soak-page-{facts['date']}.json"
        path.write_text(json.dumps(facts, indent=1) + "\n")
        print(path)


def check(holds: bool, otherwise: str) -> None:
    """SystemExit with these words unless it holds."""
    if not holds:
        sys.exit(otherwise)


def _until_at_work(story: Story) -> None:
    """Wait until a training is at work, and queue one more when all are done."""

    def at_work() -> bool:
        return story._living_training() is not None or all(job.state == "done" for job in story._jobs())

    wait_for("a training to be at work", at_work)
    if story._living_training() is None:
        name = f"run{len(story.names) + 1}"
        _command("queue", "add", "pocket-style", *_sets(f"output.name={name}"), "--workspace", story.workspace.root)
        story.names.append(name)
        story.attempts[name] = 1
        wait_for("a training to be at work", at_work)


def _sets(*more: str) -> list[str]:
    return [part for setting in (*SETTINGS, *more) for part in ("--set", setting)]


def _command(*arguments: object) -> None:
    command = [sys.executable, "-m", "diffusion_lora", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    check(done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    main()
