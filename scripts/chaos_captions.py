#!/usr/bin/env python3
"""Caption a set with a command that is killed again and again: nothing made twice, nothing lost, all can be undone.

Run by `scripts/soak captions [KILLS, default 10] [PICTURES, default 500] [--seed N] [--write]`. Drawings of pocket's
world, a third with captions of their own, captioned by the embedded captioner with --policy append: done twice would
show.
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from diffusion_lora.data.edits import HISTORY
from recipes.pocket.world import draw, sample_scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kills", type=int, nargs="?", default=10)
    parser.add_argument("pictures", type=int, nargs="?", default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="put the dated result into bench/results")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as place:
        made, whole, killed = (Path(place, name) for name in ("made", "whole", "killed"))
        made.mkdir()
        for number in range(args.pictures):
            draw(sample_scene(random.Random(number))).save(made / f"{number:04}.png")
            if number % 3 == 0:
                (made / f"{number:04}.txt").write_text("before")
        shutil.copytree(made, whole)
        shutil.copytree(made, killed)
        begun = time.monotonic()
        _caption(whole).wait()
        seconds, wanted, was = time.monotonic() - begun, _captions(whole), _captions(made)
        print(f"undisturbed: {seconds:.1f} s", flush=True)
        done, found = 0, []
        while done < args.kills and len(_differing(killed, was)) < args.pictures:
            process, before = _caption(killed), len(_differing(killed, was))
            deadline = time.monotonic() + seconds
            while process.poll() is None and time.monotonic() < deadline and len(_differing(killed, was)) == before:
                time.sleep(0.05)  # its start; only then is there anything to disturb
            time.sleep(rng.uniform(0, seconds / (3 * args.kills)))
            process.send_signal(signal.SIGKILL)
            if process.wait() != -signal.SIGKILL:
                break
            done += 1
            wrong = {name for name, data in _captions(killed).items() if data not in (was.get(name), wanted[name])}
            found.append(len(_differing(killed, was)))
            print(f"kill {done}: {found[-1]} captions", flush=True)
            if wrong:
                sys.exit(f"after {done} kills half written or made twice: {sorted(wrong)[:5]}")
        if _caption(killed).wait() or _captions(killed) != wanted:
            sys.exit(f"after {done} kills the captions differ from those of the undisturbed run")
        subprocess.run([*_COMMAND, "dataset", "undo", str(killed)], check=True)
        if _captions(killed) != was or len(list((killed / HISTORY).glob("undone-*"))) != 1:
            sys.exit("undo did not bring every caption back, or it was more than one edit")
        print(f"soak passed: {done} kills of a captioning of {args.pictures} pictures")
    if args.write:
        facts = {
            "date": date.today().isoformat(), "hardware": f"{platform.machine()} CPU, {os.cpu_count()} cores",
            "pictures": args.pictures, "seed": args.seed, "undisturbed_s": round(seconds, 1), "kills": done,
            "captions_written_by_each_kill": found, "half_written": 0, "written_twice": 0, "all_undone": True,
        }  # fmt: skip
        path = Path(__file__).parent.parent / "bench" / "results" / f"soak-captions-{facts['date']}.json"
        path.write_text(json.dumps(facts, indent=1) + "\n")
        print(path)


_COMMAND = (sys.executable, "-m", "diffusion_lora")


def _caption(folder: Path) -> "subprocess.Popen[bytes]":
    order = [*_COMMAND, "caption", str(folder), "--policy", "append", "--batch", "4"]
    return subprocess.Popen(order, stdout=subprocess.DEVNULL)


def _captions(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.txt"))}


def _differing(folder: Path, was: dict[str, bytes]) -> list[str]:
    return [name for name, data in _captions(folder).items() if data != was.get(name)]


if __name__ == "__main__":
    main()
