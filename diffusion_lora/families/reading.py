"""What is known of a base before it is loaded: its tokenizer, for whoever counts, and the size of its pictures."""

import json
from typing import Any

from diffusion_lora.errors import BaseModelError
from diffusion_lora.families.parts import load_tokenizer
from diffusion_lora.families.source import locate
from diffusion_lora.families.tokenizer import find_tokenizer

_LONGEST = 1000  # a tokenizer that was saved without its length says 1e30
_PADDING, _TOKENS = "<|endoftext|>", 49408  # of every checkpoint file of Stable Diffusion
_OF_FILES = 512, 8  # what a checkpoint file is taken for, until it is loaded


def load_base_tokenizer(base: str, revision: str | None = None) -> Any:
    """The tokenizer of a base, of the first one where it has two. Raises BaseModelError as `load_base` does."""
    source = locate(base, revision)
    if source.file is not None:
        return find_tokenizer(source.file, _PADDING, _TOKENS)
    return load_tokenizer(source.folder / "tokenizer")


def chunk_size(tokenizer: Any, otherwise: int) -> int:
    """What a text encoder of this tokenizer reads at once, its marks apart."""
    length = int(tokenizer.model_max_length)
    return length - 2 if length < _LONGEST else otherwise


def base_size(base: str, revision: str | None = None) -> tuple[int, int]:
    """The side of the pictures a base was trained on, and the pixels to a latent. Raises BaseModelError."""
    source = locate(base, revision)
    if source.file is not None:
        return _OF_FILES
    try:
        unet, vae = (json.loads((source.folder / part / "config.json").read_text("utf-8")) for part in ("unet", "vae"))
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        side = unet["sample_size"]
        return (side if isinstance(side, int) else max(side)) * factor, factor
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BaseModelError(f"the base {base}: its config.json files cannot be read ({error!r})") from error
