"""Train pocket's UNet and text encoder together on cached latents: epsilon prediction, classifier-free guidance.

Resumable (see `team`); batch n depends on n alone. The learning rate is flat for
60 % of the steps and falls linearly to nothing, so a run that has not begun to fall can be given more --steps.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.models.attention_processor import Attention
from safetensors import safe_open
from torch import Tensor, nn

from recipes.pocket import model, team
from recipes.pocket.assemble import KNOWN_WORDS

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
        """Scaled latents and noise [n, 4, 16, 16], timesteps [n], one in each n-th of the range, token ids [n, 77]."""
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


class UnetTask:
    outer = ("embedding", "conv_in", "conv_out")
    frozen: tuple[str, ...] = ()

    def __init__(self, latents: Path, batch_size: int, device: str) -> None:
        torch.manual_seed(0)
        self.diet = Diet(latents)
        self.batch_size, self.device = batch_size, torch.device(device)
        self.unet = model.unet()
        self.unet.set_attn_processor(PlainAttention())
        self.text_encoder = model.text_encoder(model.tokenizer(KNOWN_WORDS))
        self.module: nn.Module = nn.ModuleDict({"unet": self.unet, "text_encoder": self.text_encoder})
        # The stubs of Module.to do not know the keyword.
        self.module.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.alphas = DDPMScheduler.from_config(model.scheduler().config).alphas_cumprod.to(self.device)

    def loss(self, step: int, rank: int, size: int) -> Tensor:
        parts = (tensor[rank::size].to(self.device) for tensor in self.diet.batch(step, self.batch_size))
        latents, noise, timesteps, ids = parts
        alphas = self.alphas[timesteps]
        noisy = alphas.sqrt().view(-1, 1, 1, 1) * latents + (1 - alphas).sqrt().view(-1, 1, 1, 1) * noise
        with torch.autocast(self.device.type, torch.bfloat16):
            states = self.text_encoder(ids).last_hidden_state
            noisy = noisy.contiguous(memory_format=torch.channels_last)
            guess = self.unet(noisy, timesteps, states, return_dict=False)[0]
        snr = alphas / (1 - alphas)
        weights = snr.clamp(max=MIN_SNR) / snr  # Hang 2023, for epsilon
        return (F.mse_loss(guess.float(), noise, reduction="none").mean(dim=(1, 2, 3)) * weights).mean()

    def report(self, average: nn.Module, step: int) -> None:
        """Nothing to add: the judge speaks of the finished folder."""

    def extra(self) -> dict[str, float]:
        return {"scaling_factor": self.diet.scaling_factor}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latents", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    build = partial(UnetTask, args.latents, args.batch, args.device)
    team.train(build, team.Plan(args.state, args.steps, partial(lr_at, peak=args.lr), EMA, args.processes, args.device))


if __name__ == "__main__":
    main()
