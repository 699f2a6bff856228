"""The judged acceptance of pocket and of the presets trained on it: `scripts/judge [--part NAME ...] [--limit N]`.

    base         the committed prompts: object, colour, background; Fréchet distance; seconds a picture
    autoencoder  PSNR of fresh drawings, by style
    noise        what the judge sees in nothing
    style        the style preset on three styles, three seeds each: trained, drawn and judged; the demo's own style
                 at five strengths with the first seed, all others at strength 1
    subject      the subject preset on three characters, three seeds each: with and without the trigger word
    character    the character preset on its shipped set's character: with and without the trigger word
    concept      the concept preset: the thing asked for seen in both halves of a picture, called and uncalled
    captioned    the demo's own style trained on captions of the embedded captioner, beside the one trained on true ones
    stack        the demo's own two together at 0.8 + 0.8
    regions      the character on the left, the style on the right of one picture, judged by halves

Prints one line for each figure with what it must be and should be, and writes all of them, with the machine and the
versions, to bench/results/judge-DATE.json. Exit status 1 when a figure is not what it must be. Trained adapters and
sheets of the pictures stay in the work folder; with `--work DIR` the adapters found there are used again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from diffusion_lora.generate.request import LoraUse
from recipes.pocket import world
from recipes.pocket.judge import studio as judged
from recipes.pocket.judge.adapters import Preset, Trained, as_fact, trained
from recipes.pocket.judge.prompts import LoraPrompt, read_base, read_lora
from recipes.pocket.judge.studio import Studio
from recipes.pocket.make_sets import CHARACTER, CONCEPT, HERO, STYLE

ROOT = Path(__file__).resolve().parents[3]
FURTHER_STYLES, FURTHER_CHARACTERS = ("chalk", "neon"), ("momo", "quill")
STYLE_STRENGTHS, SUBJECT_STRENGTHS, FULL = (0.0, 0.25, 0.5, 0.75, 1.0), (0.0, 0.5, 1.0), (1.0,)
STACKED = 0.8
TRAINING_SECONDS = 150.0
_Judged = Callable[
    [Studio, Sequence[LoraPrompt], str, LoraUse, Sequence[float]],
    tuple[dict[str, dict[str, float]], list[Image.Image]],
]


@dataclass(frozen=True)
class Figure:
    """One measured figure, what it must be and what it should be; `above` says on which side of them it belongs."""

    name: str
    value: float
    unit: str = "%"
    must: float | None = None
    goal: float | None = None
    above: bool = True

    @property
    def holds(self) -> bool:
        return self.must is None or (self.value >= self.must if self.above else self.value <= self.must)

    def __str__(self) -> str:
        sign = ">=" if self.above else "<="
        wants = [
            f"{word} {sign} {bar:g}" for word, bar in (("must", self.must), ("goal", self.goal)) if bar is not None
        ]
        verdict = "" if self.must is None else "  ok" if self.holds else "  NOT REACHED"
        return f"  {self.name:58} {self.value:9.3f} {self.unit:3} {', '.join(wants):24}{verdict}".rstrip()


@dataclass
class Session:
    """What the parts share, and what they found."""

    studio: Studio
    work: Path
    device: str
    limit: int | None
    seeds: Sequence[int]
    styles: Sequence[str]
    characters: Sequence[str]
    together: bool
    settings: Sequence[str] = ()
    figures: list[Figure] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def tell(self, line: str) -> None:
        print(f"  {line}", flush=True)

    def found(self, figure: Figure) -> None:
        self.figures.append(figure)
        print(figure, flush=True)

    def style(self, name: str, seed: int) -> Trained:
        return trained(self.work, "style", name, seed, self.device, self.tell, more_settings=self.settings)

    def captioned(self, name: str, seed: int) -> Trained:
        return trained(
            self.work, "style", name, seed, self.device, self.tell, captioned=True, more_settings=self.settings
        )

    def of(self, preset: Preset, name: str, seed: int) -> Trained:
        return trained(self.work, preset, name, seed, self.device, self.tell, more_settings=self.settings)

    def subject(self, name: str, seed: int) -> Trained:
        return self.of("subject", name, seed)

    @property
    def most_seconds(self) -> float | None:
        """What a training may take; trainings that share the machine are not judged by the clock."""
        return None if self.together else TRAINING_SECONDS

    def train_together(self, parts: Sequence[str]) -> None:
        """All adapters of these parts, as many at a time as there are cores, one thread each."""
        names: dict[Preset, Sequence[str]] = {
            "style": self.styles,
            "subject": self.characters,
            "character": (HERO,),
            "concept": (CONCEPT,),
        }
        wanted = [
            (preset, name, seed)
            for seed in self.seeds
            for preset in names
            if preset in parts
            for name in names[preset]
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            work = [
                pool.submit(
                    trained, self.work, preset, name, seed, self.device, self.tell, 1, more_settings=self.settings
                )
                for preset, name, seed in wanted
            ]
            for job in work:
                job.result()

    @property
    def lora_prompts(self) -> list[LoraPrompt]:
        return read_lora()[: self.limit]

    def keep(self, name: str, pictures: Sequence[Image.Image]) -> None:
        """A sheet of the first pictures, eight in a row, for eyes."""
        shown = pictures[:160]
        width, height = shown[0].size
        sheet = Image.new("RGB", (8 * width, math.ceil(len(shown) / 8) * height))
        for number, picture in enumerate(shown):
            sheet.paste(picture, (number % 8 * width, number // 8 * height))
        sheet.save(self.work / f"sheet-{name}.png")


def part_base(session: Session) -> None:
    prompts = read_base()[: session.limit]
    report, pictures, seen = judged.judge_base(session.studio, prompts)
    session.keep("base", pictures)
    bars: dict[tuple[str, str], tuple[float, float]] = {
        ("single", "object"): (80, 97),
        ("single", "colour"): (85, 95),
        ("single", "background"): (92, 99),
        ("held", "object and colour"): (60, 90),
    }
    for kind, shares in report.items():
        for name, value in shares.items():
            must, goal = bars.get((kind, name), (None, 60.0 if (kind, name) == ("two", "object") else None))
            session.found(Figure(f"{kind}: {name}", value, must=must, goal=goal))
    unasked = judged.presence_unasked(seen, prompts)
    for label, names in (("style", (*world.STYLES, *world.HELD_STYLES)), ("character", world.CHARACTERS)):
        worst = max((name for name in names if name in unasked), key=lambda name: unasked[name])
        session.found(
            Figure(
                f"base pictures judged to show a {label} unasked, worst: {worst}", unasked[worst], must=5, above=False
            )
        )
    distances = judged.distances(session.studio, prompts, seen)
    for name, value in distances.items():
        session.found(Figure(f"Fréchet distance to fresh drawings: {name}", value, unit=""))
    seconds = judged.seconds_a_picture(session.studio)
    session.found(Figure("one picture, 20 steps, guidance on", seconds, "s", must=2, above=False))
    session.details["base"] = {"shares": report, "unasked": unasked, "distances": distances, "prompts": len(prompts)}


def part_autoencoder(session: Session) -> None:
    report = judged.psnr_by_style(session.studio.model, min(session.limit or 64, 64))
    seen = [report[style] for style in world.STYLES]
    session.found(Figure("autoencoder: mean of the base's styles", sum(seen) / len(seen), "dB", must=28, goal=31))
    for style, value in report.items():
        session.found(Figure(f"autoencoder: {style}", value, "dB", must=26 if style in world.HELD_STYLES else None))
    session.details["autoencoder"] = report


def part_noise(session: Session) -> None:
    report = judged.presence_in_noise(session.studio, min(session.limit or 512, 512))
    for kind, shares in report.items():
        worst = max(shares, key=lambda name: shares[name])
        session.found(
            Figure(f"noise of {kind} judged to show something, worst: {worst}", shares[worst], must=5, above=False)
        )
    session.details["noise"] = report


def part_style(session: Session) -> None:
    details = session.details["style"] = {}
    for style in session.styles:
        demo = style == session.styles[0]
        must, goal = (80.0, 90.0) if demo else (70.0, None)
        reports = []
        for seed in session.seeds:
            sweep = demo and seed == session.seeds[0]
            strengths = STYLE_STRENGTHS if sweep else FULL
            adapter = session.style(style, seed)
            report, pictures = judged.judge_style(session.studio, session.lora_prompts, style, adapter.at(1), strengths)
            session.keep(f"style-{style}-{seed}", pictures)
            reports.append(report)
            details[f"{style}-{seed}"] = {"adapter": as_fact(adapter), "strengths": report}
            means = [report[strength]["mean probability"] for strength in strengths]
            session.tell(f"{style}, seed {seed}: mean probability {', '.join(f'{mean:.1f}' for mean in means)} %")
            if sweep:
                rises = sum(after > before for before, after in pairwise(means))
                session.found(Figure(f"{style}, seed {seed}: rises of that mean, of 4", rises, unit="", must=4))
            session.found(
                Figure(f"{style}, seed {seed}: training", adapter.seconds, "s", must=session.most_seconds, above=False)
            )
        for name, must_be, goal_is in (
            ("present", must, goal),
            ("object", 75.0 if demo else None, None),
            ("colour", None, None),
            ("background", None, None),
        ):
            value = sum(report[1.0][name] for report in reports) / len(reports)
            label = f"{style}, strength 1, mean of {len(reports)} seeds: {name}"
            session.found(Figure(label, value, must=must_be, goal=goal_is))


def part_captioned(session: Session) -> None:
    style, seed = session.styles[0], session.seeds[0]
    reports: dict[str, dict[str, float]] = {}
    details = session.details["captioned"] = {}
    for name, adapter in (("true", session.style(style, seed)), ("own", session.captioned(style, seed))):
        report, pictures = judged.judge_style(session.studio, session.lora_prompts, style, adapter.at(1), FULL)
        session.keep(f"captioned-{name}", pictures)
        reports[name] = report[1.0]
        details[name] = {"adapter": as_fact(adapter), **report[1.0]}
    for name in ("present", "object"):
        share = 100 * reports["own"][name] / reports["true"][name]
        label = f"{style}, on the captioner's words: {name}, of that on true ones"
        session.found(Figure(label, share, must=90))


def part_subject(session: Session) -> None:
    details = session.details["subject"] = {}
    for character in session.characters:
        demo = character == session.characters[0]
        strengths = SUBJECT_STRENGTHS if demo else FULL
        reports = []
        for seed in session.seeds:
            adapter = session.subject(character, seed)
            report, pictures = judged.judge_subject(
                session.studio, session.lora_prompts, character, adapter.at(1), strengths
            )
            session.keep(f"subject-{character}-{seed}", pictures)
            reports.append(report)
            details[f"{character}-{seed}"] = {"adapter": as_fact(adapter), "cases": report}
            label = f"{character}, seed {seed}: training"
            session.found(Figure(label, adapter.seconds, "s", must=session.most_seconds, above=False))
        for case, bar, above in (
            ("with its word, 1", 70.0 if demo else 60.0, True),
            ("without its word, 1", 10.0, False),
        ):
            value = sum(report[case]["present"] for report in reports) / len(reports)
            goal = 85.0 if demo and above else None
            label = f"{character}, mean of {len(reports)} seeds: {case}"
            session.found(Figure(label, value, must=bar, goal=goal, above=above))


def part_character(session: Session) -> None:
    _called_and_uncalled(session, "character", HERO, judged.judge_subject, "present")


def part_concept(session: Session) -> None:
    _called_and_uncalled(session, "concept", CONCEPT, judged.judge_concept, "twice")


def _called_and_uncalled(session: Session, preset: Preset, name: str, judge: _Judged, what: str) -> None:
    details = session.details[preset] = {}
    reports = []
    for seed in session.seeds:
        adapter = session.of(preset, name, seed)
        report, pictures = judge(session.studio, session.lora_prompts, name, adapter.at(1), (0.0, 1.0))
        session.keep(f"{preset}-{name}-{seed}", pictures)
        reports.append(report)
        details[f"{name}-{seed}"] = {"adapter": as_fact(adapter), "cases": report}
    for case in reports[0]:
        value = sum(report[case][what] for report in reports) / len(reports)
        bar = 70.0 if case == "with its word, 1" else None
        session.found(Figure(f"{preset} {name}, mean of {len(reports)} seeds: {case}: {what}", value, must=bar))


def part_stack(session: Session) -> None:
    style, character = session.styles[0], session.characters[0]
    details = session.details["stack"] = {}
    reports = []
    for seed in session.seeds:
        adapters = [session.style(style, seed).at(STACKED), session.subject(character, seed).at(STACKED)]
        report, pictures = judged.judge_stack(session.studio, session.lora_prompts, style, character, adapters)
        session.keep(f"stack-{style}-{character}-{seed}", pictures)
        reports.append(report)
        details[f"{style}-{character}-{seed}"] = report
    for name in ("style", "character", "both"):
        value = sum(report[name] for report in reports) / len(reports)
        label = f"{style} + {character} at {STACKED:g}: {name}"
        session.found(Figure(label, value, must=60 if name == "both" else None))


def part_regions(session: Session) -> None:
    style, character = session.styles[0], session.characters[0]
    details = session.details["regions"] = {}
    reports = []
    for seed in session.seeds:
        report, pictures = judged.judge_regions(
            session.studio, session.lora_prompts, style, character,
            session.style(style, seed).at(1.0), session.subject(character, seed).at(1.0),
        )  # fmt: skip
        session.keep(f"regions-{style}-{character}-{seed}", pictures)
        reports.append(report)
        details[f"{style}-{character}-{seed}"] = report
    bars = {"character left": (80, True), "character right": (10, False), "style right": (80, True),
            "style left": (20, False)}  # fmt: skip
    for name, (must, above) in bars.items():
        value = sum(report[name] for report in reports) / len(reports)
        session.found(Figure(f"{character} left, {style} right: {name}", value, must=must, above=above))


PARTS: dict[str, Callable[[Session], None]] = {
    "autoencoder": part_autoencoder,
    "noise": part_noise,
    "base": part_base,
    "style": part_style,
    "captioned": part_captioned,
    "subject": part_subject,
    "character": part_character,
    "concept": part_concept,
    "stack": part_stack,
    "regions": part_regions,
}


def circumstances(studio: Studio, judge: Path) -> dict[str, Any]:
    """Machine, versions and the hashes of all that was judged and judges."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "commit": commit.stdout.strip(),
        "base": studio.model.weights_hash,
        "judge": hashlib.sha256(judge.read_bytes()).hexdigest(),
        "judge trained": studio.judge.trained,
        "device": torch.cuda.get_device_name() if studio.model.device.type == "cuda" else str(studio.model.device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=tuple(PARTS), help="only this part; repeatable")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N prompts of each list")
    parser.add_argument("--seeds", type=_numbers, default=(0, 1, 2), metavar="0,1,2", help="seeds of the trainings")
    parser.add_argument("--styles", type=_names, default=(STYLE, *FURTHER_STYLES), help="the demo's first")
    parser.add_argument("--characters", type=_names, default=(CHARACTER, *FURTHER_CHARACTERS), help="the demo's first")
    parser.add_argument("--together", action="store_true", help="train one adapter a core; times are then not judged")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the trainings; told")
    parser.add_argument("--base", default="pocket")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--judge", type=Path, default=judged.WEIGHTS, help="weights of the judge; by default the frozen ones"
    )
    parser.add_argument("--work", type=Path, help="folder for adapters and sheets; by default a new temporary one")
    parser.add_argument("--out", type=Path, help="the results file; by default bench/results/judge-DATE.json")
    args = parser.parse_args(argv)
    work = args.work or Path(tempfile.mkdtemp(prefix="judge-"))
    work.mkdir(parents=True, exist_ok=True)

    studio = Studio.open(args.base, args.device, args.judge)
    session = Session(
        studio, work.absolute(), args.device, args.limit, args.seeds, args.styles, args.characters, args.together,
        args.set,
    )  # fmt: skip
    started = time.monotonic()
    if args.together:
        session.train_together(args.part or tuple(PARTS))
    for name in args.part or PARTS:
        print(name, flush=True)
        PARTS[name](session)
    out = args.out or ROOT / "bench" / "results" / f"judge-{time.strftime('%Y-%m-%d-%H%M')}.json"
    results = {
        **circumstances(studio, args.judge),
        "parts": list(args.part or PARTS),
        "limit": args.limit,
        "trained together": args.together,
        "settings": args.set,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "figures": [{**asdict(figure), "holds": figure.holds} for figure in session.figures],
        "details": session.details,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")
    missed = [figure for figure in session.figures if not figure.holds]
    print(f"wrote {out}; adapters and sheets in {work}")
    for figure in missed:
        print(figure)
    print(f"{len(missed)} of {len(session.figures)} figures are not what they must be" if missed else "all hold")
    return 1 if missed else 0


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


if __name__ == "__main__":
    sys.exit(main())
