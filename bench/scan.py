"""How long it takes to read headers and captions of a large set, and how memory grows with it.

Run from the checkout: `python bench/scan.py [--pictures 100000] [--write]`. The files are made first (JPEGs of 512 px
with an EXIF orientation, a caption of some tags beside each) and removed afterwards; the disk's cache is warm.
"""

import argparse
import io
import json
import os
import platform
import resource
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion_lora.data.folder import scan
from diffusion_lora.data.problems import Problem
from diffusion_lora.data.sources import Looking, Source, walk

LIMIT_S = 20.0
FOLDER_OF = 10_000  # pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _make(root, args.pictures)
        source, problems = Source(root, layout="subfolders"), list[Problem]()

        before = _peak_mib()
        begun, cpu = time.perf_counter(), time.process_time()
        found = sum(1 for _ in walk(source, Looking(), problems.append))
        streamed = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - cpu}
        streamed["memory_mib"] = _peak_mib() - before

        begun, cpu = time.perf_counter(), time.process_time()
        scanned = scan([source], Looking())
        kept = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - cpu}
        kept["memory_mib"] = _peak_mib() - before
    assert found == len(scanned.items) == args.pictures, problems[:3]
    assert not problems
    for name, facts in (("walked", streamed), ("walked and kept", kept)):
        print(name, {key: round(value, 2) for key, value in facts.items()}, f"(at most {LIMIT_S} s)")
    if args.write:
        told = {
            "date": date.today().isoformat(),
            "hardware": f"{platform.machine()} CPU, one thread",
            "load_average": round(os.getloadavg()[0], 1),
            "pictures": args.pictures,
            **{name: {key: round(value, 2) for key, value in facts.items()}
               for name, facts in (("walked", streamed), ("kept", kept))},
        }  # fmt: skip
        path = Path(__file__).parent / "results" / f"scan-{told['date']}.json"
        path.write_text(json.dumps(told, indent=1) + "\n")
        print(path)


def _make(root: Path, pictures: int) -> None:
    """Files of a few kilobytes whose headers are those of photographs."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((512, 384)).save(buffer, "JPEG", exif=exif, quality=20)
    for number in range(pictures):
        folder = root / f"{number // FOLDER_OF:03}"
        if number % FOLDER_OF == 0:
            folder.mkdir()
        (folder / f"{number:06}.jpg").write_bytes(buffer.getvalue())
        (folder / f"{number:06}.txt").write_text(f"zib, 1girl, solo, red dress, tag {number}", encoding="utf-8")


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
