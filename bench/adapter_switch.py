"""Loading, turning and taking out adapters of Stable Diffusion 1.5's size: this program beside diffusers with peft.

The base has the layers of SD 1.5 with weights of zeros (nothing is drawn); the file is a kohya one of rank 16 on all
attention of UNet and text encoder, 128 + 48 layers. CPU time of one thread in one process, the best of some rounds; on
an idle machine that is what one waits. With --many, nine other adapters are present. Run from the checkout:

    python bench/adapter_switch.py [--rounds 7] [--many] [--write]
"""

import argparse
import gc
import json
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffusion_lora.families.quiet import quiet
from diffusion_lora.lora.adapter import Adapter, read_adapter, write_adapter
from diffusion_lora.lora.bank import AdapterBank
from diffusion_lora.lora.inject import select_layers
from diffusion_lora.lora.weights import LowRank

RANK = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="the best of so many counts")
    parser.add_argument("--many", action="store_true", help="with nine other adapters present")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.safetensors"
        best_ms = ours(file, args.rounds, args.many)
        gc.collect()
        best_ms |= theirs(file, args.rounds, args.many)
        size = file.stat().st_size
    for name, ms in best_ms.items():
        print(f"{name:44s} {ms:9.2f} ms")
    if args.write:
        facts = {
            "date": date.today().isoformat(),
            "hardware": f"{platform.machine()} CPU, one thread",
            "versions": {name: version(name) for name in ("torch", "diffusers", "peft")},
            "rank": RANK,
            "file_bytes": size,
            "other_adapters": 9 if args.many else 0,
            "milliseconds": {name: round(ms, 2) for name, ms in best_ms.items()},
        }
        path = Path(__file__).parent / "results" / f"adapter-switch-{facts['date']}{'-many' if args.many else ''}.json"
        path.write_text(json.dumps(facts, indent=1) + "\n")
        print(path)


def ours(file: Path, rounds: int, many: bool) -> dict[str, float]:
    components = {"unet": unet(), "te": text_encoder()}
    write_adapter(random_adapter(components), file)
    bank = AdapterBank(components, "SD 1.5")
    others = [f"other {i}" for i in range(9)] if many else []
    for name in others:
        bank.load(name, read_adapter(file))
    names = ["a", *others]

    def load() -> None:
        bank.load("a", read_adapter(file))

    def turn(values: Iterator[float]) -> None:
        with bank.mix({name: next(values) for name in names}):
            pass

    def turn_rows(values: Iterator[float]) -> None:
        with bank.mix([{name: next(values) for name in names} for _ in range(8)]):
            pass

    return timed(
        rounds,
        {
            "ours: load a file": load,
            "ours: set all strengths": lambda: turn(numbers()),
            "ours: set all strengths, 8 rows": lambda: turn_rows(numbers()),
            "ours: fold the mix": lambda: bank.fold(dict.fromkeys(names, 0.5)),
            "ours: restore the base": bank.restore,
            "ours: unload": lambda: bank.unload("a"),
        },
    )


def theirs(file: Path, rounds: int, many: bool) -> dict[str, float]:
    pipe = pipeline(unet(), text_encoder())
    others = [f"other_{i}" for i in range(9)] if many else []
    for name in others:
        pipe.load_lora_weights(str(file), adapter_name=name)
    names = ["a", *others]

    def turn(values: Iterator[float]) -> None:
        pipe.set_adapters(names, [next(values) for _ in names])

    return timed(
        rounds,
        {
            "diffusers + peft: load a file": lambda: pipe.load_lora_weights(str(file), adapter_name="a"),
            "diffusers + peft: set all strengths": lambda: turn(numbers()),
            "diffusers + peft: delete": lambda: pipe.delete_adapters("a"),
        },
    )


def timed(rounds: int, jobs: dict[str, Callable[[], None]]) -> dict[str, float]:
    best = dict.fromkeys(jobs, float("inf"))
    for _ in range(rounds + 1):
        for name, job in jobs.items():
            with no_collection():
                begun = time.process_time()
                job()
                best[name] = min(best[name], 1000 * (time.process_time() - begun))
    return best


@contextmanager
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def numbers() -> Iterator[float]:
    """Strengths of which no two are alike."""
    value = 0.3
    while True:
        value += 0.01
        yield value


def random_adapter(components: dict[str, nn.Module]) -> Adapter:
    generator = torch.Generator().manual_seed(0)
    layers = {}
    for key, site in select_layers(components).items():
        out, inputs = site.weight.shape
        down, up = torch.randn(RANK, inputs, generator=generator), torch.randn(out, RANK, generator=generator)
        layers[key] = LowRank(down * 0.01, up * 0.01, float(RANK))
    return Adapter(layers, {"ss_network_module": "networks.lora"})


def unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        module = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    return zeros(module)


def text_encoder() -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
    with torch.device("meta"):
        module = CLIPTextModel(CLIPTextConfig(**sizes, num_attention_heads=12))
    return zeros(module)


def zeros(module: nn.Module) -> nn.Module:
    module = module.to_empty(device="cpu").half().requires_grad_(False).eval()
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.zero_()
    return module


def pipeline(unet: nn.Module, text_encoder: nn.Module) -> Any:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTokenizer

    vocabulary = {token: i for i, token in enumerate(["a", "a</w>", "<|startoftext|>", "<|endoftext|>"])}
    return StableDiffusionPipeline(
        vae=AutoencoderKL(),
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77),
        unet=unet,
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


if __name__ == "__main__":
    main()
