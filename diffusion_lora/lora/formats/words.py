"""Names of a learned word's vectors (textual inversion) in safetensors files. Key logic only, no torch.

Bundled in a LoRA file, where A1111 and Forge use them by the word's own name in a prompt (`bundle_emb.NAME.` before
what an embedding file holds), and in a file of their own, which A1111, Forge, ComfyUI (`embedding:NAME`) and diffusers
load:

    Stable Diffusion 1 and 2    string_to_param.*  in a bundle, emb_params alone
    XL                          clip_l and clip_g, for its two text encoders
"""

from __future__ import annotations

from collections.abc import Iterable

BUNDLE = "bundle_emb."
_BUNDLED = {"te": "string_to_param.*", "te1": "clip_l", "te2": "clip_g"}
_ALONE = {"te": "emb_params", "te1": "clip_l", "te2": "clip_g"}
_READ = {"string_to_param.*": "te", "string_to_param": "te", "emb_params": "te", "clip_l": "te1", "clip_g": "te2"}


def bundled_name(word: str, component: str) -> str:
    """The tensor of a word for a text encoder, in a LoRA file."""
    return f"{BUNDLE}{word}.{_BUNDLED[component]}"


def alone_name(component: str) -> str:
    """The tensor of a text encoder, in a file that holds one word."""
    return _ALONE[component]


def read_alone(names: Iterable[str]) -> dict[str, str]:
    """Component -> tensor of the one word that an embedding's own file holds; empty where it holds none."""
    return {_READ[name]: name for name in names if name in _READ}


def read_bundle(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """The words among a file's tensors: word -> component -> name. What is no word's tensor is left out."""
    words: dict[str, dict[str, str]] = {}
    for name in names:
        word, _, tensor = name.removeprefix(BUNDLE).partition(".")
        if name.startswith(BUNDLE) and tensor in _READ:
            words.setdefault(word, {})[_READ[tensor]] = name
    return words
