"""Training at SD 1.5's size beside the two trainers that people use: steps a second and peak memory.

Random weights in fp32 files, 256 px, batch 1, rank 16, bf16, AdamW; a pair is one run of theirs and one of ours, right
after each other, on the same layers. The time of a step is the median distance between two optimizer steps, told by a
hook in each process; memory is the most that the process ever had (VmHWM), on a GPU the most that torch had there.

    python bench/peers.py make  DIR --diffusers REPO|SCRIPT [--kohya REPO] [--here]   # once: venvs, base, pictures
    python bench/peers.py run   DIR [--peer diffusers|kohya] [--pairs 5] [--steps 3] [--beside] [--anew]
                                [--device cuda] [--size 512] [--write]

REPO are git clones: huggingface/diffusers for `examples/text_to_image/train_text_to_image_lora.py`, whose commit is to
fit the installed diffusers, and kohya-ss/sd-scripts for commit 48d368f. Each peer has a venv that sees this one's torch
and has its own libraries before it. torchvision has no build for CPUs with this torch: a stand-in with the few
transforms that their scripts use takes its place. `--here` makes no venv: this interpreter, with peft, datasets and
torchvision, runs diffusers' script too; so it is done on a GPU. kohya runs with --cache_latents
--network_train_unet_only; diffusers encodes every picture and caption anew, which is all it can. `--beside` adds one
run of ours like that, and one of each of theirs in fp32: where the processor has no bf16, whoever knows it trains so.
Figures are kept in DIR: a call measures what is missing, whatever device and size the others had.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from random_bases import base

from diffusion_lora.train.widened import has_products

CHECKOUT = Path(__file__).resolve().parent.parent
KOHYA_COMMIT = "48d368f"
DIFFUSERS_SCRIPT = "examples/text_to_image/train_text_to_image_lora.py"
PACKAGES = {
    "diffusers": ["datasets"],
    "kohya": [
        "transformers==4.54.1", "diffusers==0.32.1", "accelerate==1.6.0", "huggingface-hub==0.34.3", "einops==0.7.0",
        "toml==0.10.2", "voluptuous==0.15.2", "imagesize==1.4.1", "opencv-python-headless", "ftfy==6.3.1",
    ],
}  # fmt: skip
# At least so much of its steps/s, at most so much of its memory.
GOALS = {"diffusers": (1.5, 0.5), "kohya": (1.05, 0.4)}
TARGETS = {"diffusers": '"attention"', "kohya": r'["\\.attentions\\."]'}  # kohya adapts all of the transformer blocks
SIZES_PX, RANK = (256, 512), 16
PICTURES = 1  # encoding them takes a processor without bf16 most of a minute, and is not measured

# Runs a script or module as it is, and writes down when an optimizer stepped and the most memory the process had.
WATCH = '''
import atexit, json, runpy, sys, time
from pathlib import Path
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
out, what, sys.argv = sys.argv[1], sys.argv[2], sys.argv[2:]
stamps = []
register_optimizer_step_post_hook(lambda *a: stamps.append(time.perf_counter()))
def write():
    status = Path("/proc/self/status").read_text()
    peak = int(next(l for l in status.splitlines() if l.startswith("VmHWM")).split()[1])
    card = torch.cuda.max_memory_allocated() / 1024 if torch.cuda.is_initialized() else None
    Path(out).write_text(json.dumps({"stamps": stamps, "peak_kib": card or peak}))
atexit.register(write)
# The libraries look for torchvision at import and want all of it: they come before its stand-in.
import diffusers, transformers.utils
transformers.utils.is_torchvision_available()
sys.path.insert(0, str(Path(__file__).parent / "stand-in"))
if what.endswith(".py"):
    sys.path.insert(0, str(Path(what).parent))
    runpy.run_path(what, run_name="__main__")
else:
    runpy.run_module(what, run_name="__main__", alter_sys=True)
'''

TRANSFORMS = '''
"""The few transforms that the peers' scripts use, by Pillow and numpy."""
import enum, random
import numpy as np, torch
from PIL import Image
class InterpolationMode(enum.Enum):
    NEAREST = 0; LANCZOS = 1; BILINEAR = 2; BICUBIC = 3; BOX = 4; HAMMING = 5; NEAREST_EXACT = 6
class Compose:
    def __init__(self, transforms): self.transforms = transforms
    def __call__(self, x):
        for transform in self.transforms: x = transform(x)
        return x
class Lambda:
    def __init__(self, f): self.f = f
    def __call__(self, x): return self.f(x)
class Resize:
    def __init__(self, size, interpolation=InterpolationMode.BILINEAR): self.size, self.how = size, interpolation
    def __call__(self, x):
        scale = self.size / min(x.size)
        return x.resize((round(x.width * scale), round(x.height * scale)), Image.Resampling(self.how.value))
class _Crop:
    def __init__(self, size): self.size = size
    def __call__(self, x):
        left, top = self.place(x.width - self.size), self.place(x.height - self.size)
        return x.crop((left, top, left + self.size, top + self.size))
class CenterCrop(_Crop):
    def place(self, rest): return rest // 2
class RandomCrop(_Crop):
    def place(self, rest): return random.randint(0, max(0, rest))
class RandomHorizontalFlip:
    def __call__(self, x): return x.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else x
class ToTensor:
    def __call__(self, x):
        pixels = np.array(x)
        return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
class Normalize:
    def __init__(self, mean, std): self.mean, self.std = mean, std
    def __call__(self, x): return (x - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]
'''


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make")
    make.add_argument("folder", type=Path)
    make.add_argument("--diffusers", required=True, help="a clone of huggingface/diffusers, or the script itself")
    make.add_argument("--kohya", help="a clone of kohya-ss/sd-scripts")
    make.add_argument("--here", action="store_true", help="no venvs: this interpreter runs diffusers' script")
    run = commands.add_parser("run")
    run.add_argument("folder", type=Path)
    run.add_argument("--peer", choices=sorted(GOALS), action="append")
    run.add_argument("--pairs", type=int, default=5)
    run.add_argument("--steps", type=int, default=3, help="the first one does not count")
    run.add_argument("--beside", action="store_true", help="also theirs in fp32, and ours uncached")
    run.add_argument("--anew", action="store_true", help="forget the pairs that were measured")
    run.add_argument("--device", default="cpu")
    run.add_argument("--size", type=int, choices=SIZES_PX, default=SIZES_PX[0], help="of the pictures, in px")
    run.add_argument("--write", action="store_true")
    args = parser.parse_args()
    folder = args.folder.resolve()
    if args.command == "make":
        make_peers(folder, args.diffusers, args.kohya, here=args.here)
        return
    setting = Setting(folder, args.device, args.size, args.steps)
    found = {}
    for peer in args.peer or sorted(GOALS):
        if args.anew:
            (folder / f"measured-{peer}.json").unlink(missing_ok=True)
        found[peer] = compared(peer, measured(setting, peer, args.pairs, beside=args.beside))
    facts = {
        "date": date.today().isoformat(),
        "hardware": torch.cuda.get_device_name()
        if args.device != "cpu"
        else f"{platform.machine()} CPU ({torch.backends.cpu.get_cpu_capability()}), {os.cpu_count()} cores",
        "size_px": args.size,
        "bf16_instructions": has_products(torch.bfloat16),
        "versions": {name: version(name) for name in ("torch", "diffusers", "peft")},
        "steps_a_run": args.steps,
        "peers": found,
    }
    print(json.dumps(facts, indent=1))
    if args.write:
        suffix = "" if args.device == "cpu" else f"-{args.device}"
        path = CHECKOUT / "bench" / "results" / f"peers-{facts['date']}{suffix}.json"
        path.write_text(json.dumps(facts, indent=1) + "\n")
        print(path)


@dataclass(frozen=True)
class Setting:
    """Where everything lies, and what is the same for every run."""

    folder: Path
    device: str
    size_px: int
    steps: int


def make_peers(folder: Path, diffusers: str, kohya: str | None, *, here: bool) -> None:
    """Everything that `run` needs, under `folder`; what is there already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    base("sd15", folder)
    pictures(folder)
    (folder / "watch.py").write_text(WATCH)
    if Path(diffusers).is_file():
        script = Path(diffusers).read_bytes()
    else:
        command = ["git", "-C", diffusers, "show", f"HEAD:{DIFFUSERS_SCRIPT}"]
        script = subprocess.run(command, check=True, capture_output=True).stdout
    (folder / "train_text_to_image_lora.py").write_bytes(script)
    if kohya:
        _kohyas_sources(folder, kohya)
    if here:
        return
    stand_in = folder / "stand-in" / "torchvision"
    stand_in.mkdir(parents=True, exist_ok=True)
    (stand_in / "__init__.py").write_text('__version__ = "0.0"\nfrom torchvision import transforms\n')
    (stand_in / "transforms.py").write_text(TRANSFORMS)
    ours = next(path for path in sys.path if path.endswith("site-packages"))
    for peer, packages in PACKAGES.items():
        venv = folder / f"venv-{peer}"
        if not venv.exists():
            subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        site = next((venv / "lib").glob("python*/site-packages"))
        (site / "shared.pth").write_text(ours + "\n")
        subprocess.run([str(venv / "bin" / "python"), "-m", "pip", "install", "-q", *packages], check=True)


def _kohyas_sources(folder: Path, kohya: str) -> None:
    sources = folder / "sd-scripts"
    if not sources.exists():
        sources.mkdir()
        command = ["git", "-C", kohya, "archive", KOHYA_COMMIT, "train_network.py", "library", "networks"]
        archive = subprocess.run(command, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", str(sources)], input=archive, check=True)
    # kohya looks for OpenAI's tokenizer under this name.
    shutil.copytree(
        folder / "sd15-random" / "tokenizer",
        folder / "tokenizers" / "openai_clip-vit-large-patch14",
        dirs_exist_ok=True,
    )


def measured(setting: Setting, peer: str, pairs: int, *, beside: bool) -> list[dict[str, dict[str, float]]]:
    """The figures of the pairs, "theirs" and then "ours", and `beside` them, in the first one, "theirs_in_fp32" and,
    where the peer caches nothing, "ours_uncached". What was measured before is not measured again."""
    kept = setting.folder / f"measured-{peer}.json"
    found: list[dict[str, dict[str, float]]] = json.loads(kept.read_text()) if kept.exists() else []
    wanted = [(index, which) for index in range(pairs) for which in ("theirs", "ours")]
    if beside:
        wanted += [(0, "theirs_in_fp32"), *([(0, "ours_uncached")] if peer == "diffusers" else [])]
    for index, which in wanted:
        if index == len(found):
            found.append({})
        if which not in found[index]:
            found[index][which] = _figures(setting, *_command(setting, peer, which))
            kept.write_text(json.dumps(found))
            print(f"{peer}, pair {index + 1}, {which}: {found[index][which]}", file=sys.stderr, flush=True)
    return found


def _command(setting: Setting, peer: str, which: str) -> tuple[Path, list[str]]:
    if which.startswith("theirs"):
        return command_of(setting, peer, "no" if which.endswith("fp32") else "bf16")
    return our_command(setting, peer, "off" if which.endswith("uncached") else "ram")


def compared(peer: str, pairs: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """The figures and the medians of their ratios."""

    def ratio(what: str, above: str, below: str) -> float | None:
        ratios = [pair[above][what] / pair[below][what] for pair in pairs if above in pair and below in pair]
        return round(statistics.median(ratios), 3) if ratios else None

    speed, memory = ratio("s_per_step", "theirs", "ours"), ratio("peak_gib", "ours", "theirs")
    least, most = GOALS[peer]
    return {
        "pairs": pairs,
        "times_their_speed": speed,
        "goal_speed": least,
        "share_of_their_memory": memory,
        "goal_memory": most,
        "reached": speed is not None and memory is not None and speed >= least and memory <= most,
        "uncached": {
            "times_their_speed": ratio("s_per_step", "theirs", "ours_uncached"),
            "share_of_their_memory": ratio("peak_gib", "ours_uncached", "theirs"),
        },
        "against_them_in_fp32": {
            "times_their_speed": ratio("s_per_step", "theirs_in_fp32", "ours"),
            "share_of_their_memory": ratio("peak_gib", "ours", "theirs_in_fp32"),
        },
    }


def command_of(setting: Setting, peer: str, precision: str = "bf16") -> tuple[Path, list[str]]:
    """(python, arguments) of a peer's training."""
    folder, steps, size_px = setting.folder, setting.steps, setting.size_px
    python, out = folder / f"venv-{peer}" / "bin" / "python", folder / "out" / peer
    if not python.exists():
        python = Path(sys.executable)
    shutil.rmtree(out, ignore_errors=True)
    model = str(folder / "sd15-random")
    if peer == "diffusers":
        return python, [
            str(folder / "train_text_to_image_lora.py"), f"--pretrained_model_name_or_path={model}",
            f"--train_data_dir={folder / 'pictures-diffusers'}", f"--resolution={size_px}", "--train_batch_size=1",
            f"--rank={RANK}", f"--mixed_precision={precision}", f"--max_train_steps={steps}", "--learning_rate=1e-4",
            "--checkpointing_steps=100000", "--seed=0", f"--output_dir={out}", "--caption_column=text",
        ]  # fmt: skip
    return python, [
        str(folder / "sd-scripts" / "train_network.py"), f"--pretrained_model_name_or_path={model}",
        f"--tokenizer_cache_dir={folder / 'tokenizers'}", f"--train_data_dir={folder / 'pictures-kohya'}",
        f"--resolution={size_px},{size_px}", "--train_batch_size=1", "--network_module=networks.lora",
        f"--network_dim={RANK}", f"--network_alpha={RANK}", "--network_train_unet_only", "--cache_latents",
        f"--mixed_precision={precision}", f"--max_train_steps={steps}", "--learning_rate=1e-4",
        "--optimizer_type=AdamW", "--sdpa", "--seed=0", f"--output_dir={out}", "--caption_extension=.txt",
        "--max_data_loader_n_workers=0",
    ]  # fmt: skip


def our_command(setting: Setting, peer: str, cache: str) -> tuple[Path, list[str]]:
    """(python, arguments) of our training on the layers that the peer trains."""
    folder = setting.folder
    out = folder / "out" / "ours"
    shutil.rmtree(out, ignore_errors=True)
    config = folder / "ours.toml"
    config.write_text("")
    settings = [
        f'model.base="{folder / "sd15-random"}"', "model.dtype=bf16", f'dataset.path="{folder / "pictures"}"',
        f"dataset.size_px={setting.size_px}", f'dataset.cache="{cache}"', "dataset.buckets=false",
        f"lora.rank={RANK}", f"lora.alpha={RANK}", f"lora.targets={TARGETS[peer]}", "lora.text_targets=none",
        "optimizer.name=adamw", "optimizer.lr=1e-4", "optimizer.schedule=constant", "loss.min_snr_gamma=0",
        "train.batch_size=1", "train.precision=bf16", f"train.device={setting.device}",
    ]  # fmt: skip
    sets = [part for one in settings for part in ("--set", one)]
    return Path(sys.executable), [
        "diffusion_lora", "train", str(config), *sets, "--steps", str(setting.steps), "--out", str(out),
    ]  # fmt: skip


def _figures(setting: Setting, python: Path, arguments: Sequence[str]) -> dict[str, float]:
    folder = setting.folder
    told = folder / "figures.json"
    told.unlink(missing_ok=True)
    environment = {
        **os.environ, "PYTHONPATH": str(CHECKOUT), "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false", "DIFFUSION_LORA_CACHE": str(folder / "cache"),
    }  # fmt: skip
    if setting.device == "cpu":
        environment["ACCELERATE_USE_CPU"] = "true"
    command = [str(python), str(folder / "watch.py"), str(told), *arguments]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode or not told.exists():
        sys.exit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    figures = json.loads(told.read_text())
    stamps = figures["stamps"]
    between = [after - before for before, after in pairwise(stamps)]
    return {"s_per_step": round(statistics.median(between), 4), "peak_gib": round(figures["peak_kib"] / 2**20, 3)}


def pictures(folder: Path) -> None:
    """The same pictures of noise as each of the three programs wants them, of the largest size."""
    places = [folder / "pictures", folder / "pictures-diffusers", folder / "pictures-kohya" / "9_thing"]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(PICTURES):
        pixels = np.random.default_rng(number).integers(0, 255, (SIZES_PX[-1], SIZES_PX[-1], 3), dtype=np.uint8)
        for place in places:
            Image.fromarray(pixels).save(place / f"{number}.png")
            if place.name != "pictures-diffusers":
                (place / f"{number}.txt").write_text("a red thing")
        rows.append(json.dumps({"file_name": f"{number}.png", "text": "a red thing"}))
    (places[1] / "metadata.jsonl").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
