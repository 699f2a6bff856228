"""How many pictures a second are scanned, hashed, given a bucket and captioned, by one process and by two.

Run from the checkout: `python -m bench.caption [--pictures 400] [--write]`. Pocket's drawings of 128 px and the
embedded captioner; the disk is warm. Captioning is timed as a command, its start (a run on no picture) taken off.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

from diffusion_lora.data.buckets import bucket_sizes, place
from diffusion_lora.data.examine import examine
from diffusion_lora.data.folder import scan
from diffusion_lora.data.sources import Looking, Source
from recipes.pocket.world import draw, sample_scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number in range(args.pictures):
            draw(sample_scene(random.Random(number))).save(root / f"{number:05}.png")
        items = scan([Source(root)], Looking()).items
        buckets = bucket_sizes(128, 16)
        paces = {
            "scan": args.pictures / _seconds(lambda: scan([Source(root)], Looking())),
            "hash": args.pictures / _seconds(lambda: examine([item.path for item in items], None)),
            "bucket": args.pictures / _seconds(lambda: [place(item.size, buckets) for item in items]),
        }
        for processes in (1, 2):
            for file in root.glob("*.txt"):
                file.unlink()
            whole = _seconds(lambda count=processes: _caption(root, count))  # type: ignore[misc]
            start = _seconds(lambda count=processes: _caption(root, count))  # type: ignore[misc]
            paces[f"caption, {processes} process{'es' if processes > 1 else ''}"] = args.pictures / (whole - start)
            print(f"{processes}: {whole:.1f} s, of which {start:.1f} s to start", flush=True)
    for name, pace in paces.items():
        print(f"{name:22} {pace:10.1f} pictures/s")
    if args.write:
        told = {
            "date": date.today().isoformat(),
            "hardware": f"{platform.machine()} CPU, {os.cpu_count()} cores",
            "load_average": round(os.getloadavg()[0], 1),
            "torch": version("torch"),
            "transformers": version("transformers"),
            "pictures": args.pictures,
            "pictures_per_s": {name: round(pace, 1) for name, pace in paces.items()},
        }
        path = Path(__file__).parent / "results" / f"caption-{told['date']}.json"
        path.write_text(json.dumps(told, indent=1) + "\n")
        print(path)


def _caption(root: Path, processes: int) -> None:
    command = [sys.executable, "-m", "diffusion_lora", "caption", str(root), "--processes", str(processes)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
