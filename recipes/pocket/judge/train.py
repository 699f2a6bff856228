"""Train the judge: `python -m recipes.pocket.judge.train [--vae DIR] --out FILE --minutes N --threads 1`.

Drawings only: plain, damaged, in halves, and (with --vae) as the autoencoder gives them back. Pictures are drawn once
into the cache folder. Training can be stopped at any time and goes on from its state there when started again with the
same arguments; batch n depends on (seed, n) alone. At the end the accuracy on fresh drawings is printed, attribute by
attribute, and the weights are written to FILE. CPU only: the network is small enough.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.pocket.judge.damage import damaged, none_answers, nothing
from recipes.pocket.judge.drawings import (
    IGNORE,
    LABELS,
    PARTS,
    Answers,
    Autoencoder,
    Drawings,
    decoded,
    decoded_noise,
    drawings,
    world_hash,
)
from recipes.pocket.judge.model import FORMAT, Judge, JudgeNet, Opinion, Part, Readings, as_batch, save, take_part

FRESH_SEED = 90_001
UNREST = 0.2
"""Noise on the latents of decoded pictures, in units of the latents' spread."""


@dataclass(frozen=True)
class Material:
    """All that training reads: drawings, the same decoded (or none), and pictures of decoded noise (or none)."""

    drawn: Drawings
    decoded: np.ndarray | None
    noise: np.ndarray | None


def cache_folder() -> Path:
    """Where drawings and the state of training are kept: the user's cache, never the work tree."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "diffusion-lora" / "pocket-judge"


def batch(material: Material, seed: int, step: int, size: int) -> tuple[Tensor, Answers]:
    """Pictures [B, 3, H, W] and their answers; a function of (seed, step). Every fourth batch is of halves."""
    rng = np.random.default_rng((seed, step))
    part: Part = PARTS[1 + step // 4 % 4] if step % 4 == 3 else "all"
    chosen = np.sort(rng.choice(len(material.drawn.pictures), size, replace=False))
    pictures = material.drawn.pictures[chosen]
    if material.decoded is not None:
        through = rng.random(size) < 0.6
        pictures[through] = material.decoded[chosen[through]]
    x_BCHW = take_part(as_batch(pictures), part).contiguous()
    empty = size // 8
    x_BCHW = damaged(x_BCHW, rng)
    void, void_answers = nothing(x_BCHW[:empty], rng)
    if material.noise is not None:
        half = empty // 2
        noise = material.noise[np.sort(rng.choice(len(material.noise), half, replace=False))]
        void[:half] = damaged(take_part(as_batch(noise), part).contiguous(), rng)
        void_answers = _joined(none_answers(half), void_answers[np.arange(half, empty)])
    found = material.drawn.answers[part][chosen[empty:]]
    return torch.cat([void, x_BCHW[empty:]]), _joined(void_answers, found)


def _joined(first: Answers, second: Answers) -> Answers:
    return Answers(
        *(np.concatenate([getattr(first, name), getattr(second, name)]) for name in Answers.__dataclass_fields__)
    )


def loss_of(readings: Readings, answers: Answers) -> Tensor:
    """Cross-entropy summed over the heads; where no answer is expected nothing is asked.

    Objects are asked twice: is each kind there (the answer that is used), and, kinds against each other, which one it
    is; the second question alone teaches the kinds apart from the first minutes on.
    """
    device = readings.objects.device
    truth = torch.from_numpy(answers.objects).float().to(device)
    there = truth.clamp(min=0)
    objects = F.binary_cross_entropy_with_logits(readings.objects, there, reduction="none")
    loss = (objects * (truth != IGNORE)).sum() / len(truth)
    which = F.log_softmax(readings.objects.masked_fill(truth == IGNORE, -1e4), -1)
    loss = loss - (which * there).sum() / there.sum().clamp(min=1)
    for logits, target in (
        (readings.colours.flatten(0, 1), answers.colours.reshape(-1)),
        (readings.backgrounds, answers.backgrounds),
        (readings.styles, answers.styles),
        (readings.characters, answers.characters),
    ):
        if (target != IGNORE).any():
            wanted = torch.from_numpy(target.astype(np.int64)).to(device)
            loss = loss + F.cross_entropy(logits, wanted, ignore_index=IGNORE)
    return loss


def learning_rate(progress: float, step: int, peak: float) -> float:
    """Warm-up over 100 steps, then half a cosine to zero as the time runs out."""
    return peak * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def train(material: Material, state_file: Path, minutes: float, size: int, peak: float, seed: int) -> JudgeNet:
    """The network after `minutes` of training, counted over all starts from the same state."""
    torch.manual_seed(seed)
    net = JudgeNet(LABELS)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack this form
    optimizer = torch.optim.AdamW(net.parameters(), lr=peak, weight_decay=0.02)
    step, before = 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        step, before = state["step"], state["seconds"]
        print(f"goes on from step {step} after {before / 60:.1f} minutes", flush=True)
    started = saved = time.monotonic()
    running = math.nan
    while (seconds := before + time.monotonic() - started) < minutes * 60:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(seconds / (minutes * 60), step, peak)
        x_BCHW, answers = batch(material, seed, step, size)
        with torch.autocast("cpu", torch.bfloat16):
            readings = net(x_BCHW.contiguous(memory_format=torch.channels_last))
        loss = loss_of(readings, answers)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        step += 1
        running = loss.item() if math.isnan(running) else 0.98 * running + 0.02 * loss.item()
        if step % 100 == 0:
            pace = (before + time.monotonic() - started) / step
            print(f"step {step}  loss {running:.3f}  {size / pace:.0f} pictures/s  {seconds / 60:.1f} min", flush=True)
        if time.monotonic() - saved > 60:
            _save_state(state_file, net, optimizer, step, before + time.monotonic() - started)
            saved = time.monotonic()
    _save_state(state_file, net, optimizer, step, before + time.monotonic() - started)
    return net


def _save_state(file: Path, net: JudgeNet, optimizer: torch.optim.Optimizer, step: int, seconds: float) -> None:
    beside = file.with_suffix(".new")
    file.parent.mkdir(parents=True, exist_ok=True)
    state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "seconds": seconds}
    torch.save(state, beside)
    beside.replace(file)


def score(opinion: Opinion, truth: Answers) -> dict[str, float]:
    """Share right of the pictures in which the attribute is asked for, in percent.

    object: exactly the things that are there, no more; colour: of the things that are there.
    """
    seen, asked = opinion.objects >= 0.5, truth.objects != IGNORE
    whole = asked.all(1)
    coloured = (truth.objects == 1) & (truth.colours != IGNORE)
    right = {
        "object": (seen == (truth.objects == 1))[whole].all(1),
        "colour": (opinion.colours.argmax(-1) == truth.colours)[coloured],
    }
    for name in ("backgrounds", "styles", "characters"):
        target = getattr(truth, name)
        right[name[:-1]] = (getattr(opinion, name).argmax(1) == target)[target != IGNORE]
    return {name: 100 * float(values.mean()) if len(values) else math.nan for name, values in right.items()}


def none_score(opinion: Opinion) -> dict[str, float]:
    """The share of pictures of nothing in which a thing is seen after all, the worst style and character apart."""
    count = len(opinion)
    styles = np.bincount(opinion.styles.argmax(1), minlength=len(LABELS.styles) + 1)[:-1]
    characters = np.bincount(opinion.characters.argmax(1), minlength=len(LABELS.characters) + 1)[:-1]
    return {
        "object": 100 * float((opinion.objects >= 0.5).any(1).mean()),
        "worst style": 100 * float(styles.max()) / count,
        "worst character": 100 * float(characters.max()) / count,
    }


def examine(judge: Judge, fresh: Material) -> dict[str, dict[str, float]]:
    """Accuracy on drawings that training never saw: plain, decoded, halves; and what is seen in nothing."""
    report: dict[str, dict[str, float]] = {}
    for name, pictures in (("plain", fresh.drawn.pictures), ("decoded", fresh.decoded)):
        if pictures is None:
            continue
        for part in PARTS:
            label = name if part == "all" else f"{name}, {part} half"
            report[label] = score(judge.look(pictures, part), fresh.drawn.answers[part])
        for attribute, names in (("style", LABELS.styles), ("character", LABELS.characters)):
            report[f"{name}, worst {attribute}"] = _worst(
                judge.look(pictures), fresh.drawn.answers["all"], attribute, names
            )
    rng = np.random.default_rng(FRESH_SEED)
    void, _ = nothing(as_batch(fresh.drawn.pictures[:600]), rng)
    report["nothing"] = none_score(judge.look(((void + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()))
    if fresh.noise is not None:
        report["decoded noise"] = none_score(judge.look(fresh.noise))
    return report


def _worst(opinion: Opinion, truth: Answers, attribute: str, names: Sequence[str]) -> dict[str, float]:
    """The class of this attribute that is recognised least often, with its share."""
    target = getattr(truth, attribute + "s")
    said = getattr(opinion, attribute + "s").argmax(1)
    shares = {name: 100 * float((said[target == i] == i).mean()) for i, name in enumerate(names) if (target == i).any()}
    name = min(shares, key=lambda key: shares[key])
    return {name: shares[name]}


def gather(folder: Path, count: int, seed: int, autoencoder: Autoencoder | None, noise_count: int) -> Material:
    """Drawings of this seed and, with an autoencoder, their decoded twins."""

    def tell(line: str) -> None:
        print(line, flush=True)

    drawn = drawings(folder, count, seed, tell)
    if autoencoder is None:
        return Material(drawn, None, None)
    again = decoded(folder, drawn, autoencoder, seed, UNREST, tell)
    return Material(drawn, again, decoded_noise(folder, drawn, autoencoder, noise_count, seed))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, help="diffusers AutoencoderKL folder; without it nothing is decoded")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--minutes", type=float, default=20, help="time for training, drawing and decoding excluded")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--drawings", type=int, default=12_000)
    parser.add_argument("--fresh", type=int, default=2_000, help="drawings kept for measuring")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=cache_folder())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)

    autoencoder = Autoencoder.load(args.vae) if args.vae else None
    material = gather(args.cache, args.drawings, args.seed, autoencoder, 1536)
    told = {
        "format": FORMAT,
        "world": world_hash(),
        "autoencoder": autoencoder.name if autoencoder else None,
        **{name: getattr(args, name) for name in ("minutes", "drawings", "batch", "rate", "seed")},
    }
    state = args.cache / f"state-{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]}.pt"
    net = train(material, state, args.minutes, args.batch, args.rate, args.seed)
    save(net, args.out, json.dumps(told))

    judge = Judge.load(args.out)
    fresh = gather(args.cache, args.fresh, FRESH_SEED, autoencoder, 512)
    for name, shares in examine(judge, fresh).items():
        print(f"{name:24}", "  ".join(f"{key} {share:.1f} %" for key, share in shares.items()))
    print(f"wrote {args.out}: {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
