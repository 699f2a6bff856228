"""Does a preflight tell the truth? Its seconds a step and peak memory against those of a real run after it.

    python -m bench.preflight [CONFIG] [--steps 40] [--set KEY=VALUE ...] [--write]

Each is a process of its own, one after the other; the real run's step is the mean between its second step and its last,
its memory the most its process held (`ru_maxrss`), on a GPU the most that torch held there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from diffusion_lora.events import read_events


def in_a_process(*arguments: str) -> tuple[str, float]:
    """The output of `diffusion-lora ...`, and the most memory in GB that its process held."""
    code = (
        "import resource, sys, torch\n"
        "from diffusion_lora.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "    print('peak', (torch.cuda.max_memory_reserved() if torch.cuda.is_initialized() else held) / 1e9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return done.stdout, float(done.stdout.rsplit("peak", 1)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="pocket-style")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    common = [options.config, "--steps", str(options.steps), *(word for one in options.set for word in ("--set", one))]
    with tempfile.TemporaryDirectory() as work:
        said, _ = in_a_process("preflight", *common, "--out", f"{work}/run")
        predicted_s = float(re.search(r"steps of ([\d.e-]+) s", said)[1])  # type: ignore[index]
        predicted_gb = float(re.search(r"memory: ([\d.]+) GB", said)[1])  # type: ignore[index]
        _, peak_gb = in_a_process("train", *common, "--out", f"{work}/run")
        steps = [event["time"] for event in read_events(Path(work, "run")) if event["kind"] == "step"]
    step_s = (steps[-1] - steps[1]) / (len(steps) - 2)
    result = {
        "config": options.config,
        "settings": options.set,
        "date": time.strftime("%Y-%m-%d"),
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores",
        "step_s": {"predicted": predicted_s, "real": round(step_s, 4), "ratio": round(predicted_s / step_s, 3)},
        "peak_gb": {"predicted": predicted_gb, "real": round(peak_gb, 3), "ratio": round(predicted_gb / peak_gb, 3)},
    }
    print(json.dumps(result, indent=1))
    if options.write:
        device = "-cuda" if any("cuda" in one for one in options.set) else ""
        name = f"preflight-{Path(options.config).stem}-{result['date']}{device}.json"
        path = Path(__file__).parent / "results" / name
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
