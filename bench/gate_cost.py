"""What adapters behind gates cost in a picture's step: beside no adapter, beside diffusers with peft, and as one batch.

    python bench/gate_cost.py step [--pairs 30] [--side 64] [--dtype bf16] [--device cuda] [--write]
                                                               a step of SD 1.5's UNet (random weights, one
                                                               row of 64 x 64 latents) with 1, 2 and 4 stacked adapters
    python bench/gate_cost.py sweep [--base DIR] [--write]     8 strengths as one batch against 8 single drawings

Adapters are of rank 16 on all attention, gated, not folded. In `step` every round times all variants once, in another
order each time, and the medians are those of each round's own ratios: a machine that is slow for a while slows both
sides of a pair. `sweep` draws through the engine, text and decoder included; without --base with pocket. A folder of a
random base is made by `random_bases.base("sd15", FOLDER)`. Threads are torch's own. Run from the checkout.
"""

import argparse
import copy
import json
import platform
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import random_bases
import torch
from torch import nn

from diffusion_lora.families.family import load_base
from diffusion_lora.families.quiet import quiet
from diffusion_lora.generate.engine import Engine
from diffusion_lora.generate.request import LoraUse, Request
from diffusion_lora.lora.adapter import Adapter, write_adapter
from diffusion_lora.lora.bank import AdapterBank
from diffusion_lora.lora.inject import select_layers
from diffusion_lora.lora.weights import LowRank

RANK, STACKS = 16, (1, 2, 4)
PEERS_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
SWEPT = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("step", "sweep"))
    parser.add_argument("--pairs", type=int, default=30, help="rounds of `step`")
    parser.add_argument("--side", type=int, default=64, help="of the latents of `step`")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of `step`")
    parser.add_argument("--device", default="cpu", help="of `step`")
    parser.add_argument("--base", default="pocket", help="of `sweep`: a folder, or pocket")
    parser.add_argument("--size", type=int, default=0, help="of the pictures of `sweep`, in px; 0 is the base's own")
    parser.add_argument("--steps", type=int, default=20, help="of the pictures of `sweep`")
    parser.add_argument("--rounds", type=int, default=3, help="of `sweep`")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    quiet()
    warnings.simplefilter("ignore")
    if args.part == "step":
        suffix = "" if args.device == "cpu" else f"-{args.device}"
        name = f"gate-cost-{args.side}-{args.dtype}{suffix}"
        found = step(args.pairs, args.side, args.dtype, torch.device(args.device))
    else:
        name, found = f"gate-sweep-{Path(args.base).name}", sweep(args.base, args.size, args.steps, args.rounds)
    facts = {
        "date": date.today().isoformat(),
        "hardware": torch.cuda.get_device_name()
        if args.device != "cpu"
        else f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "versions": {name: version(name) for name in ("torch", "diffusers", "peft")},
        "rank": RANK,
        **found,
    }
    print(json.dumps(facts, indent=1))
    if args.write:
        path = Path(__file__).parent / "results" / f"{name}-{facts['date']}.json"
        path.write_text(json.dumps(facts, indent=1) + "\n")
        print(path)


@torch.inference_mode()
def step(pairs: int, side: int, precision: str, device: torch.device) -> dict[str, Any]:
    """Medians over the rounds of seconds and of ratios, by number of stacked adapters."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    plain = random_bases.unet("sd15").to(device, dtype)
    nets: dict[str, nn.Module] = {"base": plain}
    mixes = []
    for count in STACKS:
        net = nets[f"ours, {count}"] = with_shared_weights(plain)
        bank = AdapterBank({"unet": net}, "SD 1.5")
        for index in range(count):
            bank.load(f"a{index}", random_adapter({"unet": net}, "attention"))
        mixes.append(bank.mix({f"a{index}": 0.8 / count for index in range(count)}))
        nets[f"peft, {count}"] = with_peft(with_shared_weights(plain), count)
    placed: dict[str, Any] = {"device": device, "dtype": dtype}
    latents, states = torch.randn(1, 4, side, side, **placed), torch.randn(1, 77, 768, **placed)
    timestep = torch.tensor([500], device=device)
    for mix in mixes:
        mix.__enter__()  # for as long as the process lives
    seconds: dict[str, list[float]] = {name: [] for name in nets}
    order = list(nets)
    for number in range(pairs + 1):  # the first warms up
        random.Random(number).shuffle(order)
        for name in order:
            begun = time.perf_counter()
            nets[name](latents, timestep, states)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:
                seconds[name].append(time.perf_counter() - begun)
    ratios = {
        f"{count} adapters": {
            "of the base's step": median_ratio(seconds[f"ours, {count}"], seconds["base"]),
            "of diffusers with peft": median_ratio(seconds[f"ours, {count}"], seconds[f"peft, {count}"]),
            "diffusers with peft, of the base's step": median_ratio(seconds[f"peft, {count}"], seconds["base"]),
        }
        for count in STACKS
    }
    medians = {name: round(statistics.median(times), 4) for name, times in seconds.items()}
    return {"pairs": pairs, "precision": precision, "latents": [1, 4, side, side], "seconds": medians, "ratios": ratios}


def sweep(base: str, size: int, steps: int, rounds: int) -> dict[str, Any]:
    """Medians of seconds: the sweep as one batch, and its pictures one by one."""
    model = load_base(base, device="cpu", dtype="fp32")
    engine = Engine(model)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.safetensors"
        write_adapter(random_adapter(model.components, "attention"), file)
        requests = [
            Request("a red cat", seed=1, steps=steps, width=size, height=size,
                    loras=(LoraUse("a", file, strength / SWEPT),))
            for strength in range(1, SWEPT + 1)
        ]  # fmt: skip
        engine.draw(requests[:1])

        def one_by_one() -> None:
            for request in requests:
                engine.draw([request])

        jobs: dict[str, Callable[[], object]] = {"one batch": lambda: engine.draw(requests), "one by one": one_by_one}
        seconds: dict[str, list[float]] = {name: [] for name in jobs}
        for number in range(rounds):
            for name in list(jobs)[:: 1 if number % 2 else -1]:
                begun = time.perf_counter()
                jobs[name]()
                seconds[name].append(time.perf_counter() - begun)
    return {
        "base": Path(base).name,
        "pictures": SWEPT,
        "steps": steps,
        "size_px": size or model.size_px,
        "rounds": rounds,
        "seconds": {name: round(statistics.median(times), 3) for name, times in seconds.items()},
        "one batch, of one by one": median_ratio(seconds["one batch"], seconds["one by one"]),
    }


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return round(statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True)), 4)


def with_shared_weights(module: nn.Module) -> nn.Module:
    """A copy with layers of its own around the same tensors."""
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)


def with_peft(unet: Any, count: int) -> nn.Module:
    """The UNet with as many adapters of peft, all at work, as diffusers sets them up."""
    from peft import LoraConfig

    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=PEERS_TARGETS, init_lora_weights="gaussian")
    for index in range(count):
        unet.add_adapter(config, adapter_name=f"a{index}")
    unet.set_adapters([f"a{index}" for index in range(count)], [0.8 / count] * count)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.01)
    return unet.requires_grad_(False).eval()


def random_adapter(components: dict[str, nn.Module], targets: str) -> Adapter:
    layers = {}
    for key, site in select_layers(components, targets, "none").items():
        out, width = site.weight.shape
        down, up = torch.randn(RANK, width) * width**-0.5, torch.randn(out, RANK) * 0.01
        layers[key] = LowRank(down, up, float(RANK))
    return Adapter(layers, {})


if __name__ == "__main__":
    main()
