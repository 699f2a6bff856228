"""From what a person typed to what a request holds: wildcards expanded, adapter tags found as files. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path

from diffusion_lora.errors import PromptError, PromptSyntaxError, UserError
from diffusion_lora.generate.request import Embedding, LoraUse, with_options
from diffusion_lora.prompt.tags import AdapterTag, take_tags
from diffusion_lora.prompt.wildcards import expand, files_in

Find = Callable[[str], Path]
"""The file of a LoRA's name. Raises UserError."""


def read_typed_prompt(
    text: str, seed: int, *, find: Find | None = None, wildcards: Path | None = None
) -> tuple[str, tuple[LoraUse, ...]]:
    """The prompt without choices, wildcards and tags, and the adapters that the tags name.

    Raises PromptSyntaxError, which points at the tag, where `find` finds no file; PromptError for wildcards.
    """
    expanded = expand(text, seed, files_in(wildcards) if wildcards else None)
    prompt, tags = take_tags(expanded)
    return prompt, tuple(_use(expanded, tag, find) for tag in tags)


def read_embeddings(texts: Sequence[str], folders: Sequence[Path]) -> tuple[tuple[str, ...], tuple[Embedding, ...]]:
    """The embeddings in these folders that the prompts name, wildcards expanded: by the file's name, as the web UI has
    it, or as `embedding:NAME`, as ComfyUI has it, which becomes the name alone. Capitals do not matter."""
    found: dict[str, Embedding] = {}
    for file in (file for folder in folders for file in sorted(folder.rglob("*.safetensors"))):
        word = re.compile(rf"(?<!\w)(?:embedding:)?{re.escape(file.stem)}(?!\w)", re.IGNORECASE)
        if file.stem not in found and any(map(word.search, texts)):
            found[file.stem] = Embedding(file.stem, file)
            texts = [word.sub(file.stem, text) for text in texts]
    return tuple(texts), tuple(found.values())


def in_folders(folders: Sequence[Path]) -> Find:
    """Files below these folders, by their name without the suffix, or with the folders before it (`mine/robot`)."""

    def find(name: str) -> Path:
        files = {
            file.relative_to(folder).with_suffix("").as_posix(): file
            for folder in folders
            for file in sorted(folder.rglob("*.safetensors"))
            if not any(part.startswith(".") for part in file.relative_to(folder).parts)
        }
        name = name.removesuffix(".safetensors")
        found = [files[name]] if name in files else [file for place, file in files.items() if Path(place).name == name]
        if len(found) == 1:
            return found[0]
        where = ", ".join(map(str, folders))
        near = get_close_matches(name, files, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise PromptError(f"{name} is several files in {where}" if found else f"{name} is no LoRA in {where}{hint}")

    return find


def _use(prompt: str, tag: AdapterTag, find: Find | None) -> LoraUse:
    if find is None:
        raise PromptSyntaxError("tags are not read here; give the LoRA by itself", prompt, tag.start)
    try:
        path = find(tag.name)
    except UserError as error:
        raise PromptSyntaxError(str(error), prompt, tag.start) from error
    text = None if tag.text == tag.unet else tag.text
    return with_options(LoraUse(tag.name, path, tag.unet, text), dict(tag.options))
