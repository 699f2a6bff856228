"""What this machine can do for a training, what is missing, and the command that mends it.

Everything is tried, not looked up: a build without code for this device imports well and fails when it is used.
"""

from __future__ import annotations

import platform
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch
from torch import nn

from diffusion_lora.config import OptimizerTable
from diffusion_lora.errors import UserError
from diffusion_lora.families.device import pick_device
from diffusion_lora.train.optimizers import build_optimizer
from diffusion_lora.train.widened import has_products

_NEEDED_GB = 5.0  # a Stable Diffusion 1.5 with a few checkpoints and caches
_LEAST_RAM_GB = 2.0
_LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "bitsandbytes", "safetensors", "gradio")
_SIDE = 1024  # of the matrices by which precisions are timed


@dataclass(frozen=True)
class Finding:
    """One fact about this machine; `remedy` is what to do, empty where all is well."""

    what: str
    text: str
    remedy: str = ""


def examine(device: str, folder: Path) -> list[Finding]:
    """The findings, for trainings on a device with their runs in a folder."""
    found = [Finding("system", f"{platform.platform()}, Python {platform.python_version()}"), *_libraries()]
    try:
        chosen = pick_device(device)
    except UserError as error:
        found.append(Finding("device", str(error), "say --device cpu, or install torch for this device (pytorch.org)"))
        chosen = torch.device("cpu")
    found += [_device(chosen), _memory(chosen), _bf16(chosen), _eight_bits(chosen), _disk(folder)]
    return found


def _libraries() -> list[Finding]:
    there, missing = [], []
    for name in _LIBRARIES:
        try:
            there.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    found = [Finding("libraries", ", ".join(there))]
    if missing:
        command = f"{Path(sys.executable).name} -m pip install {' '.join(missing)}"
        found.append(Finding("libraries", f"{', '.join(missing)} cannot be found", command))
    return found


def _device(device: torch.device) -> Finding:
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        return Finding("device", f"{device}: {card.name}, compute capability {card.major}.{card.minor}")
    if device.type == "mps":
        return Finding("device", "mps: it is untested", "say --device cpu if a training fails")
    text = f"cpu: {psutil.cpu_count(logical=False)} cores, {torch.get_num_threads()} threads of torch"
    if shutil.which("nvidia-smi") and not torch.cuda.is_available():
        return Finding(
            "device",
            f"{text}; there is an NVIDIA driver, but this torch ({torch.__version__}) sees no CUDA",
            f"{Path(sys.executable).name} -m pip install --force-reinstall torch --index-url "
            "<the CUDA wheel index that pytorch.org names for your driver>",
        )
    return Finding("device", f"{text}; pocket trains here in minutes, a real base wants a graphics card")


def _memory(device: torch.device) -> Finding:
    ram = psutil.virtual_memory()
    text = f"{ram.available / 1e9:.1f} of {ram.total / 1e9:.1f} GB of main memory are free"
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        text = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB of {device} are free; {text}"
        if free < 0.8 * total:
            return Finding("memory", text, "end what else uses the card: nvidia-smi lists it")
    if ram.available < _LEAST_RAM_GB * 1e9:
        return Finding("memory", text, "close other programs: a training on pocket takes 1.2 GB, SD 1.5 about 6 GB")
    return Finding("memory", text)


def _bf16(device: torch.device) -> Finding:
    """Whether bf16 works, and is worth it: it is emulated where the processor has no instructions for it."""
    try:
        full, half = (_seconds_a_product(device, dtype) for dtype in (torch.float32, torch.bfloat16))
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        return Finding("bf16", f"it fails here ({why})", 'set train.precision = "fp16" or "fp32"')
    text = f"a matrix product takes {half / full:.2g} times as long as in fp32"
    if device.type == "cpu" and not has_products(torch.bfloat16):
        return Finding("bf16", f"{text}: trainings compute in fp32 here, whatever they are told")
    return Finding("bf16", text, 'set train.precision = "fp32": it is faster here' if half > 1.2 * full else "")


def _seconds_a_product(device: torch.device, dtype: torch.dtype) -> float:
    matrix = torch.ones(_SIDE, _SIDE, device=device, dtype=dtype)
    times = []
    for _ in range(4):
        began = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits for the device
        times.append(time.perf_counter() - began)
    return min(times)


def _eight_bits(device: torch.device) -> Finding:
    parameter = nn.Parameter(torch.zeros(4096, device=device))
    parameter.grad = torch.zeros_like(parameter)
    _, note = build_optimizer(OptimizerTable(name="adamw8bit"), {"unet": parameter}, {"unet": (parameter,)})
    if note is None:
        return Finding("8-bit Adam", "bitsandbytes serves this device")
    return Finding("8-bit Adam", note, f"{Path(sys.executable).name} -m pip install --upgrade bitsandbytes")


def _disk(folder: Path) -> Finding:
    there = next(one for one in (folder, *folder.absolute().parents) if one.is_dir())
    free = shutil.disk_usage(there).free / 1e9
    text = f"{free:.1f} GB are free in {there}"
    return Finding("disk", text, "free some, or choose another folder with --out" if free < _NEEDED_GB else "")


def lines(findings: list[Finding], say: Callable[[str], None]) -> int:
    """Say each finding, those that want something done with the remedy below; how many do."""
    for finding in findings:
        say(f"{'!' if finding.remedy else ' '} {finding.what}: {finding.text}")
        if finding.remedy:
            say(f"    -> {finding.remedy}")
    return sum(bool(finding.remedy) for finding in findings)
