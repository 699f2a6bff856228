"""What is learned in equal time: ours beside diffusers' script, on pocket's sample sets, as the judge sees it.

Both train a LoRA of rank 16 on pocket at batch 8 for 60 and for 150 s of steps, on the same pictures and captions:
ours by its preset, theirs with the preset's schedule, warm-up and loss weighting, and each at the learning rate that
did best for it of those tried for 60 s. Steps are what fits into the time at the pace measured before, so that each has
its whole schedule; starting up counts for neither, and what ours spends on its cache is taken off its time. The pace is
that of both cores at rest; once the steps are known, no clock decides what is learned. The judge and its 32 prompts,
all outside the sets, are those of `scripts/judge`.

    python bench/equal_time.py make  DIR --diffusers REPO    # once: a venv, their script, the sets as they want them
    python bench/equal_time.py pace  DIR                     # seconds a step of each, on a machine at rest
    python bench/equal_time.py rates DIR                     # which learning rate is best for each
    python bench/equal_time.py train DIR                     # what is not there yet
    python bench/equal_time.py judge DIR [--write]           # what is not judged yet; the table

REPO is a git clone of huggingface/diffusers whose commit fits the installed one. torchvision's stand-in is that of
`peers.py`.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peers import CHECKOUT, DIFFUSERS_SCRIPT, PACKAGES, TRANSFORMS, WATCH

from diffusion_lora.config import load_train_config, shipped
from diffusion_lora.events import read_events
from diffusion_lora.generate.request import LoraUse
from recipes.pocket.judge.prompts import read_lora
from recipes.pocket.judge.studio import Studio, judge_style, judge_subject
from recipes.pocket.make_sets import CHARACTER, STYLE

SETS, SECONDS = ("style", "subject"), (60, 150)
RATES = {  # theirs: doubled until it got worse
    ("style", "ours"): (2e-3, 4e-3),
    ("style", "theirs"): (1e-3, 2e-3, 4e-3, 8e-3),
    ("subject", "ours"): (2e-3, 4e-3, 8e-3, 16e-3),
    ("subject", "theirs"): (1e-3, 2e-3, 4e-3, 8e-3, 16e-3),
}
WHO = ("ours", "theirs")
RANK, BATCH, SIZE_PX, WARMUP = 16, 8, 128, 20
TRIAL_PROMPTS = 12
PACE_STEPS, BF16_STEPS = 22, 3
BASE = CHECKOUT / "diffusion_lora" / "families" / "pocket" / "base"


class Plan(NamedTuple):
    """One training; ours learns the text encoder's part at the share of the rate that its preset has."""

    who: str
    kind: str
    seconds: int
    rate: float

    @property
    def name(self) -> str:
        return f"{self.who}-{self.kind}-{self.seconds}-{1000 * self.rate:g}e-3"

    def file(self, folder: Path) -> Path:
        """The adapter."""
        own = "adapter.safetensors" if self.who == "ours" else "pytorch_lora_weights.safetensors"
        return folder / "runs" / self.name / own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("make", "pace", "rates", "train", "judge"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--diffusers", help="a clone of huggingface/diffusers")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    folder: Path = args.folder.resolve()
    if args.command == "make":
        make(folder, args.diffusers)
    elif args.command == "pace":
        measure_pace(folder)
    elif args.command == "rates":
        try_rates(folder)
    elif args.command == "train":
        train_all(folder, plans(folder))
    else:
        judge(folder)
        report(folder, args.write)


# --- what is needed ---------------------------------------------------------------------------------------------------


def make(folder: Path, diffusers: str) -> None:
    """Everything under `folder`; a venv that is there already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "watch.py").write_text(WATCH)
    stand_in = folder / "stand-in" / "torchvision"
    stand_in.mkdir(parents=True, exist_ok=True)
    (stand_in / "__init__.py").write_text('__version__ = "0.0"\nfrom torchvision import transforms\n')
    (stand_in / "transforms.py").write_text(TRANSFORMS)
    show = ["git", "-C", diffusers, "show", f"HEAD:{DIFFUSERS_SCRIPT}"]
    (folder / "train_text_to_image_lora.py").write_bytes(subprocess.run(show, check=True, capture_output=True).stdout)
    for kind in SETS:
        place = folder / f"set-{kind}"
        place.mkdir(exist_ok=True)
        rows = []
        for picture in sorted((CHECKOUT / "datasets" / f"pocket-{kind}").glob("*.png")):
            shutil.copy(picture, place)
            text = picture.with_suffix(".txt").read_text(encoding="utf-8").strip()
            rows.append(json.dumps({"file_name": picture.name, "text": text}))
        (place / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    venv = folder / "venv-diffusers"
    if not venv.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        site = next((venv / "lib").glob("python*/site-packages"))
        ours = next(path for path in sys.path if path.endswith("site-packages"))
        (site / "shared.pth").write_text(ours + "\n")
        install = [str(venv / "bin" / "python"), "-m", "pip", "install", "-q", *PACKAGES["diffusers"]]
        subprocess.run(install, check=True)


# --- training ---------------------------------------------------------------------------------------------------------


def command_of(folder: Path, plan: Plan, steps: int, out: Path, precision: str = "bf16") -> list[str]:
    """The training of a plan, as a command line."""
    if plan.who == "ours":
        preset = load_train_config(shipped("configs", f"pocket-{plan.kind}")).optimizer
        return [
            sys.executable, "-m", "diffusion_lora", "train", f"pocket-{plan.kind}", "--steps", str(steps),
            "--set", f'dataset.path="{CHECKOUT / "datasets" / f"pocket-{plan.kind}"}"',
            "--set", f"train.precision={'fp32' if precision == 'no' else precision}",
            "--set", f"optimizer.lr={plan.rate:g}",
            "--set", f"optimizer.text_lr={plan.rate * preset.text_lr / preset.lr:g}", "--out", str(out),
        ]  # fmt: skip
    return [
        str(folder / "venv-diffusers" / "bin" / "python"), str(folder / "watch.py"), str(out / "figures.json"),
        str(folder / "train_text_to_image_lora.py"), f"--pretrained_model_name_or_path={BASE}",
        f"--train_data_dir={folder / f'set-{plan.kind}'}", "--caption_column=text", f"--resolution={SIZE_PX}",
        f"--train_batch_size={BATCH}", f"--rank={RANK}", f"--mixed_precision={precision}", f"--max_train_steps={steps}",
        f"--learning_rate={plan.rate:g}", "--lr_scheduler=cosine",
        f"--lr_warmup_steps={WARMUP}", "--snr_gamma=5", "--seed=0", "--checkpointing_steps=100000",
        f"--output_dir={out}",
    ]  # fmt: skip


def plans(folder: Path) -> list[Plan]:
    """What is compared, each at the rate that `rates` found best for it."""
    found = json.loads((folder / "rates.json").read_text())
    return [
        Plan(who, kind, seconds, found[kind][who]["best"]) for seconds in SECONDS for kind in SETS for who in WHO
    ]


def executed(
    folder: Path, plan: Plan, steps: int, precision: str = "bf16", threads: int | None = None
) -> dict[str, Any]:
    """Train in the folder of the plan, begun anew: when each step ended; of ours also what went before the first."""
    out = folder / "runs" / plan.name
    shutil.rmtree(out, ignore_errors=True)
    if plan.who == "theirs":
        out.mkdir(parents=True)
    environment = {
        **os.environ, "PYTHONPATH": str(CHECKOUT), "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true",
        "TOKENIZERS_PARALLELISM": "false", "DIFFUSION_LORA_CACHE": str(folder / "cache"), "HF_HOME": str(out / "hf"),
    }  # fmt: skip
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = command_of(folder, plan, steps, out, precision)
    begun = time.time()
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    if plan.who == "theirs":
        return {"stamps": json.loads((out / "figures.json").read_text())["stamps"]}
    events = read_events(out)
    started = next(event["time"] for event in events if event["kind"] == "start")
    return {"stamps": [e["time"] for e in events if e["kind"] == "step"], "before": started - begun}


def measure_pace(folder: Path) -> None:
    """Seconds a step of each trainer on each set, and what making ours its cache takes, in pace.json.

    Both compute in the precision in which theirs is faster on the first set: where a processor has no instructions for
    bf16, that is fp32.
    """
    theirs = Plan("theirs", SETS[0], 0, RATES[SETS[0], "theirs"][0])
    halves = _per_step(executed(folder, theirs, BF16_STEPS, "bf16")["stamps"])
    pace: dict[str, Any] = {"theirs in bf16": halves, "precision": "no"}
    for kind in SETS:
        theirs = Plan("theirs", kind, 0, RATES[kind, "theirs"][0])
        full = _per_step(executed(folder, theirs, PACE_STEPS, "no")["stamps"])
        if halves < full and kind == SETS[0]:
            pace["precision"] = "bf16"
        shutil.rmtree(folder / "cache", ignore_errors=True)
        ours = Plan("ours", kind, 0, RATES[kind, "ours"][0])
        cold, warm = (executed(folder, ours, PACE_STEPS, pace["precision"]) for _ in range(2))
        pace[kind] = {
            "theirs": full if pace["precision"] == "no" else halves,
            "ours": _per_step(warm["stamps"]),
            "ours, caching": round(max(0.0, cold["before"] - warm["before"]), 2),
        }
        print(kind, json.dumps(pace), flush=True)
    (folder / "pace.json").write_text(json.dumps(pace, indent=1))


def train_all(folder: Path, wanted: Sequence[Plan]) -> None:
    """Those that are not there yet, the longest first, as many at a time as there are cores, one thread each."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda plan: _trained(folder, plan), sorted(wanted, key=lambda plan: -plan.seconds)))


def _trained(folder: Path, plan: Plan) -> None:
    told = folder / "runs" / f"{plan.name}.json"
    if not told.exists():
        pace = json.loads((folder / "pace.json").read_text())
        caching = pace[plan.kind]["ours, caching"] if plan.who == "ours" else 0.0
        s_per_step = pace[plan.kind][plan.who]
        steps = int((plan.seconds - caching) / s_per_step)
        executed(folder, plan, steps, pace["precision"], threads=1)
        told.write_text(json.dumps({"steps": steps, "seconds": round(steps * s_per_step + caching, 1)}))
        print(plan.name, told.read_text(), flush=True)


def _per_step(stamps: list[float]) -> float:
    return round(statistics.fmean(after - before for before, after in pairwise(stamps[min(2, len(stamps) - 2) :])), 4)


# --- judging ----------------------------------------------------------------------------------------------------------


def judged(folder: Path, plan: Plan, studio: Studio, prompts: int | None = None) -> dict[str, Any]:
    """What the judge sees in the pictures of a training at strength 1, found or drawn anew."""
    name = plan.name if prompts is None else f"{plan.name}-first-{prompts}"
    told = folder / "judged" / f"{name}.json"
    if not told.exists():
        adapter = LoraUse(plan.name, plan.file(folder))
        if plan.kind == "style":
            styled, pictures = judge_style(studio, read_lora()[:prompts], STYLE, adapter, (1.0,))
            found: Any = {**styled[1.0], "score": styled[1.0]["style and object"]}
        else:
            found, pictures = judge_subject(studio, read_lora()[:prompts], CHARACTER, adapter, (1.0,))
            found["score"] = found["with its word, 1"]["present"] - found["without its word, 1"]["present"]
        told.parent.mkdir(exist_ok=True)
        for number, picture in enumerate(pictures):
            picture.save(told.parent / f"{name}-{number:02d}.png")
        told.write_text(json.dumps(found))
        print(name, told.read_text(), flush=True)
    return json.loads(told.read_text())


def try_rates(folder: Path) -> None:
    """Each trainer at each rate for the shortest time, on the first prompts; rates.json says which was best."""
    tried = [Plan(who, kind, SECONDS[0], rate) for (kind, who), rates in RATES.items() for rate in rates]
    train_all(folder, tried)
    studio = Studio.open(device="cpu")
    found: dict[str, Any] = {kind: {who: {"judged": {}} for who in WHO} for kind in SETS}
    for plan in tried:
        found[plan.kind][plan.who]["judged"][f"{plan.rate:g}"] = judged(folder, plan, studio, TRIAL_PROMPTS)
    for kind, of_set in found.items():
        for who, seen in of_set.items():
            seen["best"] = max(RATES[kind, who], key=lambda rate: _order(seen["judged"][f"{rate:g}"]))
    (folder / "rates.json").write_text(json.dumps(found))


def _order(found: dict[str, Any]) -> tuple[float, float]:
    """By what counts; where that is the same, by how sure the judge is."""
    return found["score"], found.get("with its word, 1", found)["mean probability"]


def judge(folder: Path) -> None:
    studio = Studio.open(device="cpu")
    for plan in plans(folder):
        if plan.file(folder).exists():
            judged(folder, plan, studio)


def report(folder: Path, write: bool) -> None:
    """A row a training, and whether ours is at least as good; `score` is in percent: pictures with style and object
    right, or with the character where its word was said, less those with it where it was not."""
    rows, missing = [], []
    for plan in plans(folder):
        told = [folder / place / f"{plan.name}.json" for place in ("runs", "judged")]
        if all(file.exists() for file in told):
            figures, seen = (json.loads(file.read_text()) for file in told)
            took = {"steps": figures["steps"], "seconds of steps": figures["seconds"]}
            rows.append({**plan._asdict(), **took, "judged": seen})
        else:
            missing.append(plan.name)
    scores = {(row["who"], row["kind"], row["seconds"]): row["judged"]["score"] for row in rows}
    reached = {}
    print("score, %         ours   theirs")
    for seconds in SECONDS:
        for kind in SETS:
            ours, theirs = (scores.get((who, kind, seconds)) for who in ("ours", "theirs"))
            if ours is not None and theirs is not None:
                reached[f"{kind}, {seconds} s"] = ours >= theirs
                print(f"{kind:8}{seconds:4} s {ours:8.1f} {theirs:8.1f}")
    facts = {
        "date": date.today().isoformat(),
        "hardware": f"{platform.machine()} CPU ({torch.backends.cpu.get_cpu_capability()}), {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("torch", "diffusers", "peft", "accelerate")},
        "rank": RANK, "batch size": BATCH, "pace": json.loads((folder / "pace.json").read_text()),
        "rates tried": json.loads((folder / "rates.json").read_text()),
        "trainings": rows, "at least as good": reached,
        "not judged": missing,
    }  # fmt: skip
    if write:
        path = CHECKOUT / "bench" / "results" / f"equal-time-{facts['date']}.json"
        path.write_text(json.dumps(facts, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main()
