#!/usr/bin/env python3
"""Ask one engine for hundreds of pictures, two callers at once, and see that nothing piles up. `scripts/soak serve`.

    mixing     every picture told to a caller has the prompt, the seed and the strengths that this caller asked for
    memory     the engine's resident memory: the mean of the last tenth of the answers against that of the second one
    cancel     how many steps of a drawing were still told after it was given up
    handing over   a training is started while the engine holds the base: the engine lets go, the training ends well,
                   and the next picture is drawn

The engine is the real process on pocket, the pictures are of few steps, with mixes of two LoRAs that change each time.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
from safetensors.numpy import save_file

from diffusion_lora.generate.request import LoraUse, Request
from diffusion_lora.generate.wire import Cancelled, DrawingEvent, Drawn, End, EngineStatus, Start, Step
from diffusion_lora.lora.header import read_header
from diffusion_lora.processes import open_ui
from diffusion_lora.workspace import Workspace
from webui.engine import EngineClient

CHECKOUT = Path(__file__).resolve().parent.parent
CALLERS = 2
MOST_GROWTH = 0.02
_PATIENCE_S = 900


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("requests", nargs="?", type=int, default=500)
    parser.add_argument("--steps", type=int, default=2, help="of each picture")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        workspace = Workspace.open(Path(folder) / "ws")
        for seed, name in enumerate(("ink", "zib")):
            write_lora(workspace.loras / f"{name}.safetensors", seed)
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "DIFFUSION_LORA_WORKSPACE": str(workspace.root)}
        command = [sys.executable, "-m", "diffusion_lora"]
        with open_ui(workspace, 1), (workspace.root / "engine.txt").open("wb") as output:
            engine = subprocess.Popen(
                [*command, "serve", "--device", "cpu"], env=environment, stdout=output, stderr=subprocess.STDOUT
            )
            try:
                client = EngineClient(workspace)
                wait_for(client, "ready")
                found = {
                    **asked_for(client, engine.pid, args.requests, args.steps),
                    "steps told after a cancel was answered": cancelled(client),
                    **handed_over(client, [*command, "train", "pocket-style", "--steps", "2", "--set",
                                           "preview.every=0", "--device", "cpu"], workspace, environment),
                }  # fmt: skip
            finally:
                engine.terminate()
                engine.wait(60)
    holds = (
        found["wrong answers"] == 0
        and abs(found["memory, last tenth of second"] - 1) <= MOST_GROWTH
        and found["steps told after a cancel was answered"] <= 1
        and found["training's exit status"] == 0
        and found["picture after it"] == "drawn"
    )
    facts = {
        "date": date.today().isoformat(),
        "hardware": f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("torch", "diffusers")},
        "steps": args.steps,
        **found,
        "holds": holds,
    }
    print(json.dumps(facts, indent=1))
    if args.write:
        path = CHECKOUT / "bench" / "results" / f"soak-serve-{facts['date']}.json"
        path.write_text(json.dumps(facts, indent=1) + "\n")
        print(path)
    sys.exit(0 if holds else 1)


def asked_for(client: EngineClient, pid: int, count: int, steps: int) -> dict[str, float]:
    """Have `count` pictures drawn by callers at once; memory in bytes after each answer."""
    process, memory, wrong = psutil.Process(pid), list[int](), list[int]()

    def call(caller: int) -> None:
        for number in range(caller, count, CALLERS):
            mix = (("ink", number % 7 / 4 - 0.5), ("zib", number % 5 / 4))[: number % 3]
            uses = tuple(LoraUse(name, Path(f"loras/{name}.safetensors"), strength) for name, strength in mix)
            asked = Request(f"a red cat, the {number}th", seed=number, steps=steps, width=64, height=64, loras=uses)
            events = list(client.generate([asked], previews=False))
            drawn = [event for event in events if isinstance(event, Drawn)]
            told = [(use.name, use.strength) for event in drawn for use in event.request.loras]
            right = (
                isinstance(events[-1], End)
                and [(event.request.prompt, event.request.seed) for event in drawn] == [(asked.prompt, number)]
                and told == list(mix)
            )
            wrong.extend([] if right else [number])
            memory.append(process.memory_info().rss)

    began = time.monotonic()
    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tenth = max(1, count // 10)
    first, last = statistics.mean(memory[tenth : 2 * tenth]), statistics.mean(memory[-tenth:])
    return {
        "requests": len(memory),
        "callers": CALLERS,
        "wrong answers": len(wrong),
        "seconds": round(time.monotonic() - began, 1),
        "memory, second tenth, MiB": round(first / 2**20, 1),
        "memory, last tenth, MiB": round(last / 2**20, 1),
        "memory, last tenth of second": round(last / first, 4),
    }


def cancelled(client: EngineClient) -> int:
    """The most steps that a drawing told after its cancel was answered, of five."""
    most = 0
    for seed in range(5):
        drawing = client.generate([Request("a red cat", seed=seed, steps=900)], previews=False)
        start = next(drawing)
        assert isinstance(start, Start), start
        while not isinstance(next(drawing), Step):
            pass
        done, seen = threading.Event(), list[tuple[bool, object]]()
        reading = threading.Thread(target=_read, args=(drawing, done, seen))
        reading.start()
        assert client.cancel(start.id)
        done.set()
        reading.join()
        assert isinstance(seen[-1][1], Cancelled), seen[-1]
        most = max(most, sum(after and isinstance(event, Step) for after, event in seen))
    return most


def _read(drawing: Iterator[DrawingEvent], cancelled: threading.Event, seen: list[tuple[bool, object]]) -> None:
    seen.extend((cancelled.is_set(), event) for event in drawing)


def handed_over(
    client: EngineClient, training: list[str], workspace: Workspace, environment: dict[str, str]
) -> dict[str, object]:
    """Start a training in the workspace while the engine holds the base, then ask for a picture."""
    run = workspace.run_folder("handover")
    began = time.monotonic()
    with (workspace.root / "training.txt").open("wb") as output:
        process = subprocess.Popen(
            [*training, "--out", str(run)], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    holders = set()
    while process.poll() is None and time.monotonic() - began < _PATIENCE_S:
        holders.add(client.status().holder)
        time.sleep(0.05)
    trained = time.monotonic() - began
    events = list(client.generate([Request("a red cat", steps=2)], previews=False))
    return {
        "training's exit status": process.poll(),
        "the engine said who has the device": "handover" in holders,
        "training's seconds": round(trained, 1),
        "picture after it": "drawn" if isinstance(events[-1], End) else str(events[-1]),
    }


def wait_for(client: EngineClient, state: str) -> EngineStatus:
    end = time.monotonic() + _PATIENCE_S
    while (status := client.status()).state != state:
        if time.monotonic() > end:
            raise SystemExit(f"the engine is not {state}: {status}")
        time.sleep(0.1)
    return status


def write_lora(path: Path, seed: int) -> None:
    """A LoRA of random numbers on pocket's attention."""
    unet = CHECKOUT / "diffusion_lora/families/pocket/base/unet/diffusion_pytorch_model.safetensors"
    random, tensors = np.random.default_rng(seed), dict[str, np.ndarray]()
    for name, info in read_header(unet).tensors.items():
        if name.endswith((".to_q.weight", ".to_k.weight", ".to_v.weight")):
            layer = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            wide, narrow = info.shape
            tensors[f"{layer}.lora_down.weight"] = random.normal(0, narrow**-0.5, (4, narrow)).astype(np.float32)
            tensors[f"{layer}.lora_up.weight"] = random.normal(0, 0.1, (wide, 4)).astype(np.float32)
            tensors[f"{layer}.alpha"] = np.array(4, dtype=np.float32)
    save_file(tensors, path)


if __name__ == "__main__":
    main()
