"""What is known of a base before it is loaded: its tokenizer, for whoever counts, and the size of its pictures."""

import json
from typing import Any

from diffusion_lora.errors import BaseModelError
from diffusion_lora.families.original import recognise
from diffusion_lora.families.parts import load_tokenizer
from diffusion_lora.families.source import locate
from diffusion_lora.families.tokenizer import find_tokenizer
from diffusion_lora.layouts.configs import configs_of

_LONGEST = 1000  # a tokenizer that was saved without its length says 1e30


def load_base_tokenizer(base: str, revision: str | None = None) -> Any:
    """The tokenizer of a base, of the first one where it has two. Raises BaseModelError as `load_base` does."""
    source = locate(base, revision)
    if source.file is not None:
        found = recognise(source.file)
        part = next(iter(found.pad_tokens))
        return find_tokenizer(source.file, found.pad_tokens[part], found.configs[part]["vocab_size"])
    return load_tokenizer(source.folder / "tokenizer")


def chunk_size(tokenizer: Any, otherwise: int) -> int:
    """What a text encoder of this tokenizer reads at once, its marks apart."""
    length = int(tokenizer.model_max_length)
    return length - 2 if length < _LONGEST else otherwise


def base_size(base: str, revision: str | None = None) -> tuple[int, int]:
    """The side of the pictures a base was trained on, and the pixels to a latent. Raises BaseModelError."""
    source = locate(base, revision)
    try:
        if source.file is not None:
            found = recognise(source.file)
            unet, vae = found.configs["unet"], found.configs.get("vae") or configs_of(found.layout_name)["vae"]
        else:
            unet, vae = (json.loads((source.folder / p / "config.json").read_text("utf-8")) for p in ("unet", "vae"))
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        side = unet["sample_size"]
        return (side if isinstance(side, int) else max(side)) * factor, factor
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BaseModelError(f"the base {base}: its config.json files cannot be read ({error!r})") from error
