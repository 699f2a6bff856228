"""What a training step is made of: data, forward, backward, optimizer and save, apart, beside the floor.

A UNet with random weights in the shapes of SD 1.5 or SDXL, an adapter of rank 16 on its attention, our own modules for
everything else. The floor is the time that the products of forward and backward would take at the rate of a large
matrix product, measured in the same run: FLOPs by torch's FlopCounterMode, one multiply-add counting 2. Medians of some
steps; a step whose parts are timed waits for the device after each, so `whole`, which does not, may be less than their
sum. Run from the checkout:

    python bench/train_step.py [--kind sd15|sdxl] [--device cuda] [--size 512] [--batch 1] [--steps 7] [--write]
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from random_bases import unet
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from diffusion_lora.config import TrainConfig, parse_train_config
from diffusion_lora.diffusion.noise import with_offset
from diffusion_lora.diffusion.objective import picture_losses
from diffusion_lora.diffusion.schedule import NoiseSchedule
from diffusion_lora.lora.adapter import write_adapter
from diffusion_lora.lora.bank import AdapterBank
from diffusion_lora.lora.trainable import TrainableAdapter
from diffusion_lora.run import Run
from diffusion_lora.train.arithmetic import arithmetic
from diffusion_lora.train.checkpoint import save_checkpoint
from diffusion_lora.train.learner import Learner

PARTS = ("data", "forward", "backward", "optimizer")
SIZES_PX = {"sd15": 512, "sdxl": 1024}
_SAVES = 3


@register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu)
def _attention_on_cpu(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], *rest: Any, **named: Any) -> int:
    batch, heads, queries, width = q
    return 2 * 2 * batch * heads * queries * k[2] * width


@register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward)
def _attention_on_cpu_backward(
    grad: tuple[int, ...], q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], *rest: Any, **named: Any
) -> int:
    batch, heads, queries, width = q
    return 5 * 2 * batch * heads * queries * k[2] * width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=sorted(SIZES_PX), default="sd15")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=0, help="pixels a side; by default the base's own")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--precision", choices=("bf16", "fp16", "fp32"), default="bf16")
    parser.add_argument("--steps", type=int, default=7, help="steps that count, after two that do not")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0 = torch's choice")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    size_px = args.size or SIZES_PX[args.kind]
    config = parse_train_config(
        "",
        source="bench",
        overrides=[
            "dataset.path=nowhere", f"lora.rank={args.rank}", f"lora.alpha={args.rank}", "lora.text_targets=none",
            f"train.batch_size={args.batch}", f"train.precision={args.precision}", "train.steps=1000",
        ],
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        step = Step(config, args.kind, torch.device(args.device), size_px, Path(folder))
        facts = step.measured(args.steps)
    facts |= {
        "date": date.today().isoformat(),
        "hardware": torch.cuda.get_device_name() if args.device.startswith("cuda") else _cpu(),
        "versions": {name: version(name) for name in ("torch", "diffusers", "bitsandbytes")},
        "kind": args.kind,
        "size_px": size_px,
        "batch": args.batch,
        "rank": args.rank,
        "precision": args.precision,
    }
    print(json.dumps(facts, indent=1))
    if args.write:
        name = f"train-step-{facts['date']}-{args.kind}-{args.device.partition(':')[0]}-{size_px}px-b{args.batch}.json"
        path = Path(__file__).parent / "results" / name
        path.write_text(json.dumps(facts, indent=1) + "\n")
        print(path)


class Step:
    """A training step in its parts, on random latents of 16 pictures."""

    def __init__(self, config: TrainConfig, kind: str, device: torch.device, size_px: int, folder: Path) -> None:
        self.config, self.device, self.side = config, device, size_px // 8
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[config.train.precision]
        self.unet: nn.Module = unet(kind, dtype).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.dtype = dtype
        self.bank = AdapterBank({"unet": self.unet}, kind)
        self.adapter: TrainableAdapter = self.bank.add_trainable(
            "a", config.lora.rank, config.lora.alpha, config.lora.targets, "none"
        )
        self.learner = Learner.of("", config, self.adapter, device)
        self.run = Run.create(folder / "run", config)
        self.schedule = NoiseSchedule.from_config({"beta_schedule": "scaled_linear", "beta_start": 0.00085}).to(device)
        shape = (16, 4, self.side, self.side)
        self.mean, self.std = torch.randn(shape), torch.rand(shape) * 0.1
        width = 768 if kind == "sd15" else 2048
        self.hidden = torch.randn(16, 77, width, device=device, dtype=dtype)
        self.added = (
            {
                "text_embeds": torch.randn(config.train.batch_size, 1280, device=device, dtype=dtype),
                "time_ids": torch.full((config.train.batch_size, 6), 1024.0, device=device),
            }
            if kind == "sdxl"
            else None
        )
        self.number = 0

    def measured(self, steps: int) -> dict[str, Any]:
        times: dict[str, list[float]] = {part: [] for part in (*PARTS, "whole")}
        for index in range(steps + 2):
            apart = self._timed_apart()
            whole = self._timed(self._whole)
            if index >= 2:
                for part, seconds in (apart | {"whole": whole}).items():
                    times[part].append(seconds)
        milliseconds = {part: round(1000 * statistics.median(values), 2) for part, values in times.items()}
        milliseconds["save"] = round(1000 * statistics.median(self._timed(self._save) for _ in range(_SAVES)), 2)
        flops = self._flops()
        rate = self._matrix_rate()
        floor = 1000 * flops / rate
        return {
            "milliseconds": milliseconds,
            "steps_per_s": round(1000 / milliseconds["whole"], 3),
            "floor": {
                "tflop_a_step": round(flops / 1e12, 4),
                "matrix_tflop_per_s": round(rate / 1e12, 3),
                "milliseconds": round(floor, 2),
                "times_floor": round(milliseconds["whole"] / floor, 2),
            },
            "peak_gpu_mib": torch.cuda.max_memory_allocated() // 2**20 if self.device.type == "cuda" else None,
            "adapter_parameters": self.adapter.report.parameters,
        }

    def _whole(self) -> None:
        self._optimize(self._forward(*self._data()))

    def _timed_apart(self) -> dict[str, float]:
        found: dict[str, float] = {}
        made: list[Any] = []
        found["data"] = self._timed(lambda: made.append(self._data()))
        found["forward"] = self._timed(lambda: made.append(self._forward(*made[0])))
        found["backward"] = self._timed(lambda: self._backward(made[1]))
        found["optimizer"] = self._timed(self._update)
        return found

    def _data(self) -> tuple[Tensor, ...]:
        """As `draws.draw_step` does it: everything from the CPU's generators, then sent."""
        count = self.config.train.batch_size
        generator = torch.Generator().manual_seed(self.number)
        self.number += 1
        rows = torch.randint(0, len(self.mean), (count,), generator=generator)
        x0 = self.mean[rows] + self.std[rows] * torch.randn(self.mean[rows].shape, generator=generator)
        noise = with_offset(torch.randn(x0.shape, generator=generator), 0.0, generator)
        timesteps = torch.randint(0, self.schedule.timesteps, (count,), generator=generator)
        drawn = (x0, noise, timesteps, rows)
        if self.device.type == "cuda":
            drawn = tuple(tensor.pin_memory() for tensor in drawn)  # type: ignore[assignment]
        return tuple(tensor.to(self.device, non_blocking=True) for tensor in drawn)

    def _forward(self, x0: Tensor, noise: Tensor, timesteps: Tensor, rows: Tensor) -> Tensor:
        self.learner.begin(self.number)
        noisy = self.schedule.add_noise(x0, noise, timesteps)
        self.adapter.begin_pass()
        with arithmetic(self.config.train, self.device, self.side**2, self.dtype):
            answer = self.unet(
                noisy.to(self.dtype), timesteps, self.hidden[rows], added_cond_kwargs=self.added, return_dict=False
            )[0]
        return picture_losses(self.config.loss, self.schedule, answer, x0, noise, timesteps).mean()

    def _backward(self, loss: Tensor) -> None:
        self.learner.scaler.scale(loss).backward()

    def _update(self) -> None:
        self.learner.update(self.number, self.learner.clip()[0])

    def _optimize(self, loss: Tensor) -> None:
        self._backward(loss)
        self._update()

    def _save(self) -> None:
        save_checkpoint(self.run, self.number, [self.learner], {}, keep=1)
        write_adapter(self.bank.export("a"), self.run.adapter_path)

    def _flops(self) -> int:
        with FlopCounterMode(display=False) as counter:
            self._backward(self._forward(*self._data()))
        return int(counter.get_total_flops())

    def _matrix_rate(self) -> float:
        """FLOP/s of one large matrix product in the step's precision, the best of five."""
        side = 8192 if self.device.type == "cuda" else 2048
        a, b = (torch.randn(side, side, device=self.device).to(self.dtype) for _ in range(2))
        a @ b
        return 2 * side**3 / min(self._timed(lambda: a @ b) for _ in range(5))

    def _timed(self, job: Callable[[], Any]) -> float:
        self._wait()
        begun = time.perf_counter()
        job()
        self._wait()
        return time.perf_counter() - begun

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _cpu() -> str:
    return f"{platform.machine()} CPU ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
