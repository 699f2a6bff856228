"""Train pocket's autoencoder on drawings of everything: every style and character, so that LoRAs can learn them.

Resumable: STATE/state.pt is replaced every few minutes. `--decoder-only` freezes the encoder, so that latents made
before stay right while pictures go on getting sharper.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.pocket import model
from recipes.pocket.muon import Muon
from recipes.pocket.pictures import load_set

CROP = 64
KL_WEIGHT = 1e-6


def batch(pictures: np.ndarray, step: int, size: int, crop: int) -> Tensor:
    """[size, 3, crop, crop] in -1 ... 1, a function of the step. Crops keep the latent grid of whole pictures."""
    rng = np.random.default_rng([17, step])
    places = (model.SIZE_PX - crop) // model.FACTOR + 1
    out = np.empty((size, crop, crop, 3), dtype=np.uint8)
    for row in range(size):
        top, left = rng.integers(0, places, 2) * model.FACTOR
        out[row] = pictures[rng.integers(len(pictures)), top : top + crop, left : left + crop]
        if rng.random() < 0.5:
            out[row] = out[row, :, ::-1]
    return torch.from_numpy(out).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def loss_of(drawn: Tensor, target: Tensor) -> Tensor:
    """L1 + squared error + error of differences (edges) + error of 4 and 8 px averages (colours do not drift)."""
    error = drawn - target
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    colours = F.avg_pool2d(error, 4).abs().mean() + F.avg_pool2d(error, 8).abs().mean()
    return error.abs().mean() + 4 * error.square().mean() + 0.5 * edges + 1.5 * colours


def psnr(vae: torch.nn.Module, pictures: np.ndarray) -> Tensor:
    """Decibels of each whole picture of [n, 128, 128, 3] uint8, through mode latents; 8-bit range."""
    out = []
    for chunk in np.array_split(pictures, max(1, len(pictures) // 16)):
        x = torch.from_numpy(np.array(chunk)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        with torch.inference_mode():
            back = vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)  # type: ignore[operator]
        out.append(-10 * torch.log10((back - x).square().mean(dim=(1, 2, 3)) / 4))
    return torch.cat(out)


def lr_at(step: int, steps: int, peak: float) -> float:
    """Warm-up of 100 steps, flat to the half, cosine to a hundredth."""
    if step < 100:
        return peak * (step + 1) / 100
    done = max(0.0, (step / steps - 0.5) * 2)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--fresh", type=Path, required=True, help="another set, for the PSNR report")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--crop", type=int, default=CROP)
    parser.add_argument("--decoder-only", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    pictures, _ = load_set(args.pictures)
    fresh, scenes = load_set(args.fresh)
    vae = model.autoencoder().to(args.device, memory_format=torch.channels_last)
    average = torch.optim.swa_utils.AveragedModel(vae, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    if args.decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    learning = [p for p in vae.parameters() if p.requires_grad]
    optimizer = Muon([p for p in learning if p.ndim > 1], [p for p in learning if p.ndim == 1], args.lr)
    args.state.mkdir(parents=True, exist_ok=True)
    file = args.state / "state.pt"
    step = 0
    if file.exists():
        saved = torch.load(file, weights_only=True, map_location=args.device)
        vae.load_state_dict(saved["vae"])
        average.load_state_dict(saved["average"])
        if saved["decoder_only"] == args.decoder_only:
            optimizer.load_state_dict(saved["optimizer"])
            step = saved["step"]

    def save() -> None:
        state = {"vae": vae.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**state, "step": step, "decoder_only": args.decoder_only}, file.with_suffix(".part"))
        file.with_suffix(".part").rename(file)

    begun = saved_at = told_at = time.monotonic()
    first = step
    while step < args.steps:
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, args.steps, args.lr)
        x = batch(pictures, step, args.batch, args.crop).to(args.device, memory_format=torch.channels_last)
        with torch.autocast(torch.device(args.device).type, torch.bfloat16):
            latents = vae.encode(x).latent_dist
            back = vae.decode(latents.mode() if args.decoder_only else latents.sample()).sample
        loss = loss_of(back.float(), x) + KL_WEIGHT * latents.kl().float().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(vae)
        step += 1
        now = time.monotonic()
        if now - told_at > 30 or step == args.steps:
            told_at = now
            rate = (step - first) / (now - begun)
            print(f"step {step}/{args.steps} loss {loss.item():.4f} {rate:.2f} steps/s {now - begun:.0f} s", flush=True)
        if now - saved_at > 180 or step == args.steps:
            saved_at = now
            save()
            average.eval()
            measured = psnr(average.module, fresh[:48])
            print(f"  psnr of 48 fresh drawings {measured.mean():.2f} dB", flush=True)

    average.eval()
    measured = psnr(average.module, fresh)
    for style in sorted({scene["style"] for scene in scenes}):
        rows = [i for i, scene in enumerate(scenes) if scene["style"] == style]
        print(f"{style:12s} {measured[rows].mean():.2f} dB over {len(rows)}")
    average.module.save_pretrained(args.state / "vae")


if __name__ == "__main__":
    main()
