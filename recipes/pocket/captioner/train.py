"""Train the captioner: `python -m recipes.pocket.captioner.train --vae DIR --pictures DIR --out DIR --minutes N`.

The autoencoder and the drawn set are those that pocket was made from (`recipes.pocket.latents`); the judge's drawings
are drawn into its cache when they are not there. Training can be stopped at any time and goes on from its state when
started again; batch n depends on (seed, n) alone. At the end the captioner is written to --out and its captions of
fresh drawings are counted. The network is small enough for a CPU; a GPU (--device cuda --batch 240) holds the pictures
and shows it a hundred times as many.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import VisionEncoderDecoderModel

from recipes.pocket.captioner import model
from recipes.pocket.captioner.examine import examine
from recipes.pocket.captioner.material import Autoencoder, Batch, Pictures, batch, drawn_set, judged
from recipes.pocket.judge.drawings import LABELS
from recipes.pocket.judge.train import cache_folder as judge_cache
from recipes.pocket.judge.train import learning_rate, loss_of

_AVERAGE = 0.998
_HINT_WEIGHT = 0.3


def logits_of(captioner: VisionEncoderDecoderModel, seen_BNC: Tensor, tokens: Tensor) -> Tensor:
    """Of every token but the last, what may come after it [B, L - 1, words]."""
    projected = captioner.enc_to_dec_proj(seen_BNC)
    return captioner.decoder(input_ids=tokens[:, :-1], encoder_hidden_states=projected, use_cache=False).logits


def loss_on(captioner: VisionEncoderDecoderModel, hints: model.Hints, material: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the next word, mean over the words, and the judge's questions."""
    with torch.autocast(material.pixels.device.type, torch.bfloat16):
        pixels = material.pixels.contiguous(memory_format=torch.channels_last)
        seen = captioner.encoder(pixel_values=pixels).last_hidden_state
        logits = logits_of(captioner, seen, material.tokens)
        readings = hints(seen)
    wanted = material.tokens[:, 1:]
    words = F.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), ignore_index=0)
    return words, loss_of(readings, material.answers)


def train(sources: Sequence[Pictures], captioner: VisionEncoderDecoderModel, state_file: Path, minutes: float,
          size: int, peak: float, seed: int) -> None:
    """Leaves in `captioner` the moving average of its weights after `minutes`, counted over all starts."""
    torch.manual_seed(seed)
    device = sources[0].pixels.device
    captioner.to(device)
    hints = model.Hints(LABELS).to(device)
    captioner.encoder.to(memory_format=torch.channels_last)
    captioner.train()
    both = nn.ModuleList([captioner, hints])
    optimizer = torch.optim.AdamW(both.parameters(), lr=peak, weight_decay=0.03, betas=(0.9, 0.98),
                                  fused=device.type == "cuda")
    average = {name: tensor.detach().clone() for name, tensor in captioner.state_dict().items()}
    step, before = 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        both.load_state_dict(state["both"])
        optimizer.load_state_dict(state["optimizer"])
        average, step, before = state["average"], state["step"], state["seconds"]
        print(f"goes on from step {step} after {before / 60:.1f} minutes", flush=True)

    def keep() -> None:
        state = {"both": both.state_dict(), "optimizer": optimizer.state_dict(), "average": average, "step": step,
                 "seconds": before + time.monotonic() - started}
        state_file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, state_file.with_suffix(".new"))
        state_file.with_suffix(".new").replace(state_file)

    live = captioner.state_dict()
    blended = [name for name, tensor in live.items() if tensor.is_floating_point()]
    counted = [name for name in live if name not in blended]
    started = saved = time.monotonic()
    shown: Tensor | None = None
    while (seconds := before + time.monotonic() - started) < minutes * 60:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(seconds / (minutes * 60), step, peak)
        words, asked = loss_on(captioner, hints, batch(sources, seed, step, size))
        optimizer.zero_grad(set_to_none=True)
        (words + _HINT_WEIGHT * asked).backward()
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        step += 1
        weight = min(_AVERAGE, step / (step + 10))
        torch._foreach_lerp_([average[name] for name in blended], [live[name] for name in blended], 1 - weight)
        for name in counted:
            average[name].copy_(live[name])
        shown = words.detach() if shown is None else shown.lerp(words.detach(), 0.02)
        if step % 50 == 0:
            pace = (before + time.monotonic() - started) / step
            print(f"step {step}  words {shown.item():.4f}  hints {asked.item():.3f}  {size / pace:.0f} pictures/s  "
                  f"{seconds / 60:.1f} min", flush=True)
        if time.monotonic() - saved > 60:
            keep()
            saved = time.monotonic()
    keep()
    captioner.load_state_dict(average)
    captioner.cpu().eval()


def cache_folder() -> Path:
    """Where the state of training is kept: the user's cache, never the work tree."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "pocket" / "captioner"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True, help="pocket's AutoencoderKL folder")
    parser.add_argument("--pictures", type=Path, required=True, help="a set made by recipes.pocket.pictures")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--minutes", type=float, default=40, help="time for training alone")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1, help="that draw")
    parser.add_argument("--drawings", type=int, default=12_000, help="of the judge's")
    parser.add_argument("--batch", type=int, default=60)
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, default=cache_folder() / "state.pt")
    parser.add_argument("--examined", type=int, default=512, help="fresh drawings of each kind; 0 = none")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    words = model.tokenizer()
    captioner = model.build(words)
    autoencoder = Autoencoder.load(args.vae, args.device)
    sources = [
        drawn_set(args.pictures, words, args.device),
        *judged(judge_cache(), args.drawings, 0, autoencoder, words, args.device, args.processes),
    ]
    train(sources, captioner, args.state, args.minutes, args.batch, args.rate, args.seed)
    model.save(captioner, words, args.out)
    print(f"wrote {args.out}: {sum(file.stat().st_size for file in args.out.iterdir()) / 1e6:.2f} MB")
    if args.examined:
        examine(args.out, judge_cache(), autoencoder, args.examined, args.device)


if __name__ == "__main__":
    main()
