"""Train pocket's UNet and text encoder together on cached latents: epsilon prediction, classifier-free guidance.

Resumable: STATE/state.pt is replaced every few minutes; batch n depends on n alone. The learning rate is flat for
60 % of the steps and falls linearly to nothing, so a run that has not begun to fall can be given more --steps.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.models.attention_processor import Attention
from safetensors import safe_open
from torch import Tensor, nn

from recipes.pocket import model
from recipes.pocket.assemble import KNOWN_WORDS
from recipes.pocket.muon import Muon

CAPTION_DROPOUT = 0.1
MIN_SNR = 5.0
EMA = 0.999


class PlainAttention:
    """softmax(q k) v by matrix products: on a CPU its backward pass is faster than the fused kernel's."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer, x in ((attn.to_q, hidden_states), (attn.to_k, source), (attn.to_v, source))
        )
        weights = ((q * attn.scale) @ k.transpose(-1, -2)).softmax(dim=-1)
        out = (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2)
        return attn.to_out[0](out)


class Diet:
    """Cached latents and captions; `batch(step)` is a function of the step."""

    def __init__(self, file: Path) -> None:
        with safe_open(file, "pt") as data:
            self.mean, self.std, self.tokens = (data.get_tensor(name) for name in ("mean", "std", "tokens"))
            self.scaling_factor = float(data.metadata()["scaling_factor"])
        self.empty = model.tokenizer(KNOWN_WORDS)("", padding="max_length", return_tensors="pt").input_ids[0]

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scaled latents [n, 4, 16, 16], noise alike, timesteps [n] (one in each n-th of the range), token ids [n, 77]."""
        rng = np.random.default_rng([29, step])
        generator = torch.Generator().manual_seed(step)
        rows = torch.from_numpy(rng.integers(0, len(self.mean), size))
        mean, std = self.mean[rows].float(), self.std[rows].float()
        latents = (mean + std * torch.randn(mean.shape, generator=generator)) * self.scaling_factor
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = (torch.randperm(size, generator=generator) + torch.rand(size, generator=generator)) * (1000 / size)
        ids = self.tokens[rows, torch.from_numpy(rng.integers(0, self.tokens.shape[1], size))].long()
        ids[torch.from_numpy(rng.random(size) < CAPTION_DROPOUT)] = self.empty
        return latents, noise, timesteps.long().clamp(max=999), ids


def lr_at(step: int, steps: int, peak: float) -> float:
    return peak * min(1.0, (step + 1) / 200, (steps - step) / (0.4 * steps))


def named_matrices(networks: nn.ModuleDict) -> Iterator[tuple[nn.Parameter, bool]]:
    """Each parameter with: is it a hidden weight matrix? Embeddings and the outermost convolutions are not."""
    outer = ("embedding", "conv_in", "conv_out")
    for name, parameter in networks.named_parameters():
        yield parameter, parameter.ndim > 1 and not any(part in name for part in outer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latents", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    diet = Diet(args.latents)
    unet = model.unet()
    unet.set_attn_processor(PlainAttention())
    networks = nn.ModuleDict({"unet": unet, "text_encoder": model.text_encoder(model.tokenizer(KNOWN_WORDS))})
    networks.to(device, memory_format=torch.channels_last)
    average = torch.optim.swa_utils.AveragedModel(networks, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA))
    sorted_ = list(named_matrices(networks))
    optimizer = Muon([p for p, matrix in sorted_ if matrix], [p for p, matrix in sorted_ if not matrix], args.lr)
    alphas_cumprod = DDPMScheduler.from_config(model.scheduler().config).alphas_cumprod.to(device)
    args.state.mkdir(parents=True, exist_ok=True)
    file = args.state / "state.pt"
    step = 0
    if file.exists():
        saved = torch.load(file, weights_only=True, map_location=device)
        networks.load_state_dict(saved["networks"])
        average.load_state_dict(saved["averaged"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]

    def save() -> None:
        averaged = {name: net.state_dict() for name, net in average.module.items()}  # type: ignore[operator, union-attr]
        state = {"networks": networks.state_dict(), "averaged": average.state_dict(), "average": averaged}
        state |= {"optimizer": optimizer.state_dict(), "step": step, "scaling_factor": diet.scaling_factor}
        torch.save(state, file.with_suffix(".part"))
        file.with_suffix(".part").rename(file)

    begun = told_at = saved_at = time.monotonic()
    first, running = step, 0.0
    while step < args.steps:
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, args.steps, args.lr)
        latents, noise, timesteps, ids = (tensor.to(device) for tensor in diet.batch(step, args.batch))
        alphas = alphas_cumprod[timesteps]
        noisy = alphas.sqrt().view(-1, 1, 1, 1) * latents + (1 - alphas).sqrt().view(-1, 1, 1, 1) * noise
        with torch.autocast(device.type, torch.bfloat16):
            states = networks["text_encoder"](ids).last_hidden_state
            guess = unet(noisy.contiguous(memory_format=torch.channels_last), timesteps, states, return_dict=False)[0]
        snr = alphas / (1 - alphas)
        weights = snr.clamp(max=MIN_SNR) / snr  # Hang 2023, for epsilon
        loss = (F.mse_loss(guess.float(), noise, reduction="none").mean(dim=(1, 2, 3)) * weights).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(networks)
        step += 1
        running = loss.item() if step == first + 1 else 0.98 * running + 0.02 * loss.item()
        now = time.monotonic()
        if now - told_at > 30 or step == args.steps:
            told_at = now
            rate = args.batch * (step - first) / (now - begun)
            print(f"step {step}/{args.steps} loss {running:.4f} {rate:.1f} pictures/s {now - begun:.0f} s", flush=True)
        if now - saved_at > 240 or step == args.steps:
            saved_at = now
            save()


if __name__ == "__main__":
    main()
