"""The UNet's diet: drawings as latents and captions as token ids, made once.

`encode_set` reads a drawn set and writes FOLDER/latents.safetensors: mean and std [n, 4, 16, 16] fp16 (unscaled) and
tokens [n, CAPTIONS, 77] int16. Every picture has several captions; some hold a made-up word, so that letters are
known to the text encoder and mean nothing by themselves.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor

from recipes.pocket import model
from recipes.pocket.assemble import KNOWN_WORDS
from recipes.pocket.pictures import load_set
from recipes.pocket.world import Scene, Thing, caption

CAPTIONS = 4
MADE_UP = 0.1
BATCH = 16  # larger activations would be mapped and unmapped anew for every layer


def scene_of(facts: dict[str, Any]) -> Scene:
    things = tuple(Thing(**thing) for thing in facts["things"])
    return Scene(facts["background"], things, facts["style"], facts["jitter"])


def made_up_word(rng: random.Random) -> str:
    return "".join(rng.choice("bcdfghjklmnpqrstvwxyz") + rng.choice("aeiouy") for _ in range(rng.randint(1, 3)))


def captions_of(scene: Scene, seed: int) -> list[str]:
    rng = random.Random(seed)
    texts = []
    for _ in range(CAPTIONS):
        text = caption(scene, rng)
        if rng.random() < MADE_UP:
            text = rng.choice((f"{made_up_word(rng)} {text}", f"{text}, {made_up_word(rng)} {made_up_word(rng)}"))
        texts.append(text)
    return texts


@torch.inference_mode()
def encode_set(vae: AutoencoderKL, folder: Path, count: int, out: Path, device: str) -> None:
    pictures, scenes = load_set(folder)
    pictures, scenes = pictures[:count], scenes[:count]
    tokenizer = model.tokenizer(KNOWN_WORDS)
    means: list[Tensor] = []
    stds: list[Tensor] = []
    for first in range(0, len(pictures), BATCH):
        x = torch.from_numpy(np.array(pictures[first : first + BATCH])).permute(0, 3, 1, 2).to(device).float()
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            latents = vae.encode(x.div(127.5).sub(1).contiguous(memory_format=torch.channels_last)).latent_dist
        means.append(latents.mean.half().cpu())
        stds.append(latents.std.half().cpu())
        if first % 6400 == 0:
            print(f"{first}/{len(pictures)} encoded", flush=True)
    texts = [text for i, facts in enumerate(scenes) for text in captions_of(scene_of(facts), i)]
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    mean, std = torch.cat(means).contiguous(), torch.cat(stds).contiguous()
    scaling = 1 / float((mean.float().square() + std.float().square()).mean().sqrt())
    tensors = {"mean": mean, "std": std, "tokens": ids.to(torch.int16).view(len(scenes), CAPTIONS, -1)}
    save_file(tensors, out, {"scaling_factor": json.dumps(scaling)})
    print(f"{out}: {len(scenes)} pictures, scaling factor {scaling:.4f}, mean std {std.float().mean():.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--count", type=int, required=True, help="how many of the pictures")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    vae = AutoencoderKL.from_pretrained(args.vae).to(args.device, memory_format=torch.channels_last).eval()
    encode_set(vae, args.pictures, args.count, args.out, args.device)


if __name__ == "__main__":
    main()
