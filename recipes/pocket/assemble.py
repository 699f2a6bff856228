"""Write pocket as an ordinary diffusers folder: fp16 weights, tokenizer, scheduler, the words it knows, its version."""

import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel

from recipes.pocket import model, team
from recipes.pocket.world import BACKGROUNDS, CHARACTERS, COLOURS, HELD_STYLES, OBJECTS, STYLES, WORDS

VERSION = "1"
# What a LoRA is to teach has no token of its own: those words are spelled, as a user's own words are.
KNOWN_WORDS = tuple(word for word in WORDS if word not in {*HELD_STYLES, *CHARACTERS})
LIMIT_BYTES = 32_000_000


def assemble(vae: AutoencoderKL, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, folder: Path) -> int:
    """Write the folder that `StableDiffusionPipeline.from_pretrained` loads; returns the bytes of its weights."""
    tokenizer = model.tokenizer(KNOWN_WORDS)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=model.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(folder)
    model.write_tokenizer(tokenizer, KNOWN_WORDS, folder / "tokenizer")
    for config in folder.glob("*/config.json"):
        facts = json.loads(config.read_text())
        facts.pop("_name_or_path", None)  # where the weights lay on the machine that trained them
        config.write_text(json.dumps(facts, indent=2) + "\n")
    words = {"objects": OBJECTS, "colours": tuple(COLOURS), "backgrounds": BACKGROUNDS, "styles": STYLES}
    (folder / "words.json").write_text(json.dumps(words, indent=1) + "\n")
    (folder / "version").write_text(VERSION + "\n")
    files = list(folder.rglob("*.safetensors"))
    for path in files:
        path.chmod(0o644)  # safetensors writes for its owner alone
    weights = sum(path.stat().st_size for path in files)
    if weights > LIMIT_BYTES:
        raise SystemExit(f"{folder}: {weights} bytes of weights, more than {LIMIT_BYTES}: make the networks narrower")
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vae", type=Path, help="the folder train_autoencoder wrote (random weights when left out)")
    parser.add_argument("--unet", type=Path, help="the state train_unet wrote (random weights when left out)")
    args = parser.parse_args()
    torch.manual_seed(0)
    vae = AutoencoderKL.from_pretrained(args.vae) if args.vae else model.autoencoder()
    unet, text_encoder = model.unet(), model.text_encoder(model.tokenizer(KNOWN_WORDS))
    if args.unet:
        facts = team.load_average(nn.ModuleDict({"unet": unet, "text_encoder": text_encoder}), args.unet)
        vae.register_to_config(scaling_factor=facts["scaling_factor"])
    print(f"{args.folder}: {assemble(vae, unet, text_encoder, args.folder):,} bytes of weights")


if __name__ == "__main__":
    main()
