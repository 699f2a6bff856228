"""Train pocket's autoencoder on drawings of everything: every style and character, so that LoRAs can learn them.

Resumable (see `team`). `--decoder-only` freezes the encoder, so that latents made before stay right while pictures go
on getting sharper.
"""

import argparse
import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from recipes.pocket import model, team
from recipes.pocket.pictures import load_set

CROP = 64
KL_WEIGHT = 1e-6


def batch(pictures: np.ndarray, step: int, size: int) -> Tensor:
    """[size, 3, CROP, CROP] in -1 ... 1, a function of the step. Crops keep the latent grid of whole pictures."""
    rng = np.random.default_rng([17, step])
    places = (model.SIZE_PX - CROP) // model.FACTOR + 1
    out = np.empty((size, CROP, CROP, 3), dtype=np.uint8)
    for row in range(size):
        top, left = rng.integers(0, places, 2) * model.FACTOR
        out[row] = pictures[rng.integers(len(pictures)), top : top + CROP, left : left + CROP]
        if rng.random() < 0.5:
            out[row] = out[row, :, ::-1]
    return torch.from_numpy(out).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def loss_of(drawn: Tensor, target: Tensor) -> Tensor:
    """L1 + squared error + error of differences (edges) + error of 4 and 8 px averages (colours do not drift)."""
    error = drawn - target
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    colours = F.avg_pool2d(error, 4).abs().mean() + F.avg_pool2d(error, 8).abs().mean()
    return error.abs().mean() + 4 * error.square().mean() + 0.5 * edges + 1.5 * colours


@torch.inference_mode()
def psnr(vae: AutoencoderKL, pictures: np.ndarray) -> Tensor:
    """Decibels of each whole picture of [n, 128, 128, 3] uint8 through the mode of its latents; 8-bit range."""
    out = []
    for chunk in np.array_split(pictures, max(1, len(pictures) // 16)):
        x = torch.from_numpy(np.array(chunk)).permute(0, 3, 1, 2).float().div(127.5).sub(1).to(vae.device)
        back = vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
        out.append(-10 * torch.log10((back - x).square().mean(dim=(1, 2, 3)) / 4).cpu())
    return torch.cat(out)


class AutoencoderTask:
    outer = ("conv_in", "decoder.conv_out")

    def __init__(self, pictures: Path, fresh: Path, batch_size: int, decoder_only: bool, device: str) -> None:
        torch.manual_seed(0)
        self.vae = model.autoencoder().to(device, memory_format=torch.channels_last)
        self.module: nn.Module = self.vae
        self.frozen = ("encoder.", "quant_conv.") if decoder_only else ()
        self.pictures, _ = load_set(pictures)
        self.fresh, self.scenes = load_set(fresh)
        self.batch_size, self.decoder_only, self.device = batch_size, decoder_only, torch.device(device)

    def loss(self, step: int, rank: int, size: int) -> Tensor:
        x = batch(self.pictures, step, self.batch_size)[rank::size].to(self.device, memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16):
            latents = self.vae.encode(x).latent_dist
            back = self.vae.decode(latents.mode() if self.decoder_only else latents.sample()).sample
        return loss_of(back.float(), x) + KL_WEIGHT * latents.kl().float().mean()

    def report(self, average: nn.Module, step: int) -> None:
        assert isinstance(average, AutoencoderKL)
        print(f"  psnr of 48 fresh drawings {psnr(average, self.fresh[:48]).mean():.2f} dB", flush=True)

    def extra(self) -> dict[str, float]:
        return {}


def lr_at(step: int, steps: int, peak: float) -> float:
    """Warm-up of 100 steps, flat to the half, cosine to a hundredth."""
    done = max(0.0, (step / steps - 0.5) * 2)
    return peak * min(1.0, (step + 1) / 100) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def write(task: AutoencoderTask, state: Path) -> None:
    """Print the PSNR of the averaged weights for every style and write them to STATE/vae."""
    team.load_average(task.vae, state)
    measured = psnr(task.vae.eval(), task.fresh)
    for style in sorted({scene["style"] for scene in task.scenes}):
        rows = [i for i, scene in enumerate(task.scenes) if scene["style"] == style]
        print(f"{style:12s} {measured[rows].mean():.2f} dB over {len(rows)}")
    print(f"{'all':12s} {measured.mean():.2f} dB over {len(measured)}")
    task.vae.save_pretrained(state / "vae")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--fresh", type=Path, required=True, help="another set, for the PSNR report")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True, help="0: only report on the state and write it")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--decoder-only", action="store_true")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    build = partial(AutoencoderTask, args.pictures, args.fresh, args.batch, args.decoder_only, args.device)
    plan = team.Plan(args.state, args.steps, partial(lr_at, peak=args.lr), 0.995, args.processes, args.device)
    if args.steps:
        team.train(build, plan)
    write(build(), args.state)


if __name__ == "__main__":
    main()
