"""Our LoRA layers against peft's and against no adapter, on pocket's UNet: CPU time of one thread, or time on a GPU.

Run from the checkout: `python bench/lora_layer.py [--device cuda] [--rounds 9] [--write]`.
"""

import argparse
import copy
import json
import platform
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from diffusion_lora.families.family import load_base
from diffusion_lora.lora.bank import AdapterBank

BATCH, RANK = 8, 16
PEERS_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9, help="the best of so many counts")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(args.device)
    model = load_base("pocket", device=args.device, dtype="fp32")
    plain = model.unet.requires_grad_(False)
    banks = {}
    nets: dict[str, nn.Module] = {"base": plain}
    for targets in ("attention", "wide"):
        nets[targets] = copy.deepcopy(plain)
        banks[targets] = AdapterBank({"unet": nets[targets]}, "pocket")
        banks[targets].add_trainable("a", RANK, float(RANK), targets, "none")
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=PEERS_TARGETS)
    nets["peft"] = inject_adapter_in_model(config, copy.deepcopy(plain))

    latents = torch.randn(BATCH, *model.latent_shape(model.size_px, model.size_px), device=device)
    timesteps = torch.randint(0, 1000, (BATCH,), device=device)
    states = torch.randn(BATCH, 77, model.layout.cross_attention_width, device=device)

    def forward(name: str) -> None:
        with torch.no_grad():
            nets[name](latents, timesteps, states)

    def mixed() -> None:
        with banks["attention"].mix([{"a": row / BATCH} for row in range(BATCH)]):
            forward("attention")

    def train(name: str) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            guess = nets[name](latents, timesteps, states).sample
        guess.float().square().mean().backward()

    jobs: dict[str, Callable[[], None]] = {
        "forward, no adapter": lambda: forward("base"),
        "forward, attention": lambda: forward("attention"),
        "forward, attention, a mix per row": mixed,
        "forward, attention, peft": lambda: forward("peft"),
        "forward, wide": lambda: forward("wide"),
        "train, attention": lambda: train("attention"),
        "train, attention, peft": lambda: train("peft"),
        "train, wide": lambda: train("wide"),
    }
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    best_ms = dict.fromkeys(jobs, float("inf"))
    for _ in range(args.rounds + 1):
        for name, job in jobs.items():
            begun = clock()
            job()
            if device.type == "cuda":
                torch.cuda.synchronize()
            best_ms[name] = min(best_ms[name], 1000 * (clock() - begun))
    for name, ms in best_ms.items():
        peer = best_ms[f"{name.split(',')[0]}, attention, peft"]
        print(f"{name:34s} {ms:8.1f} ms   {ms / peer:.2f} of peft's attention")
    if args.write:
        hardware = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU, one thread"
        facts = {
            "date": date.today().isoformat(),
            "hardware": hardware,
            "versions": {name: version(name) for name in ("torch", "diffusers", "peft")},
            "batch": BATCH,
            "rank": RANK,
            "milliseconds": {name: round(ms, 1) for name, ms in best_ms.items()},
        }
        path = Path(__file__).parent / "results" / f"lora-layer-{facts['date']}-{device.type}.json"
        path.write_text(json.dumps(facts, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main()
