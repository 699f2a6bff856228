"""The architecture of pocket: which diffusers and transformers classes, how wide, and the tokenizer.

Only shapes are decided here. Weights come from `train_autoencoder` and `train_unet`; `assemble` writes the
finished folder in diffusers' layout.
"""

import json
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SIZE_PX = 128
FACTOR = 8
LATENT_SIZE = SIZE_PX // FACTOR
TEXT_WIDTH = 128
MAX_TOKENS = 77
START, END = "<|startoftext|>", "<|endoftext|>"


def autoencoder() -> AutoencoderKL:
    """A 128 px picture to 4 x 16 x 16 latents and back. No attention: pictures of any size that is a multiple of 8."""
    return AutoencoderKL(
        block_out_channels=(32, 64, 96, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE_PX,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def unet() -> UNet2DConditionModel:
    """Three levels (16, 8, 4), cross-attention at each: a LoRA finds attention everywhere."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=4,
        out_channels=4,
        block_out_channels=(80, 128, 192),
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=(2, 4, 6),  # diffusers' name for the number of heads: 40, 32, 32 channels each
        norm_num_groups=8,
    )


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def scheduler() -> DDIMScheduler:
    """Stable Diffusion 1.5's noise schedule, epsilon prediction."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Byte-pair merges (Sennrich 2016) that make each of `words` a single token, learnt in order of pair frequency."""
    spellings = [[*word[:-1], word[-1] + "</w>"] for word in sorted(set(words))]
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for parts in spellings for pair in pairwise(parts))
        if not pairs:
            return merges
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append((left, right))
        spellings = [_merged(parts, left, right) for parts in spellings]


def _merged(parts: Sequence[str], left: str, right: str) -> list[str]:
    out: list[str] = []
    for part in parts:
        if out and out[-1] == left and part == right:
            out[-1] = left + right
        else:
            out.append(part)
    return out


def tokenizer(words: Iterable[str]) -> CLIPTokenizer:
    """A CLIP tokenizer whose vocabulary is the printable ASCII alphabet, plus one token for each of `words`.

    Any other word is spelled letter by letter, so a new trigger word always has its own token sequence.
    """
    merges = learn_merges(words)
    letters = [c for c in string.printable if c.isprintable() and not c.isspace() and not c.isupper()]
    tokens = letters + [c + "</w>" for c in letters] + [a + b for a, b in merges] + [START, END]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


def write_tokenizer(tok: CLIPTokenizer, words: Iterable[str], folder: Path) -> None:
    """transformers 5 writes tokenizer.json alone; other tools still ask for vocab.json and merges.txt."""
    tok.save_pretrained(folder)
    vocab = dict(sorted(tok.get_vocab().items(), key=lambda item: item[1]))
    (folder / "vocab.json").write_text(json.dumps(vocab))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in learn_merges(words))]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
