"""The configuration of a captioning run: one [caption] table. TOML in, TOML out, as `config` has it for trainings.

What the settings do is not known here. No torch.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from typing import Any, Literal

from pydantic import Field, ValidationError

from diffusion_lora.config import Table
from diffusion_lora.errors import ConfigError


class CaptionTable(Table):
    """Which pictures are described, by what, and what becomes of its words."""

    folder: str = Field(min_length=1, description="folder of pictures")
    captioner: str = Field(default="embedded", min_length=1, description="embedded, a folder, or a hub id")
    policy: Literal["missing", "overwrite", "append"] = Field(
        default="missing", description="only pictures without caption, all anew, or after what is there"
    )
    layout: Literal["auto", "subfolders"] = Field(default="auto", description="subfolders: pictures below, too")
    prefix: str = Field(default="", description="in front of every caption")
    rules: tuple[str, ...] = Field(default=(), description="replace: a => b, remove: a, synonyms: a, b, regex: a => b")
    form: Literal["as is", "tags", "sentence"] = Field(default="as is", description="tags, each once; or a sentence")
    max_tokens: int = Field(default=0, ge=0, description="longer captions are cut; 0 = never")
    base: str = Field(default="pocket", min_length=1, description="whose tokens max_tokens counts")
    prompt: str = Field(default="", description="what the model is asked; empty = what suits it")
    new_tokens: int = Field(default=0, ge=0, description="the model says no more; 0 = what suits it")
    revision: str = Field(default="", description="revision of a hub id")
    quantise: Literal["none", "8bit", "4bit"] = Field(default="none", description="of a large model, on CUDA")
    threshold: float = Field(default=0.35, ge=0, le=1, description="a tagger names what it is surer of")
    character_threshold: float = Field(default=0.85, ge=0, le=1, description="the same for characters")
    blacklist: tuple[str, ...] = Field(default=(), description="tags that are never named")
    ratings: bool = Field(default=False, description="a tagger tells its rating too")
    batch: int = Field(default=8, ge=1, description="pictures at once")
    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|cuda|cuda:\d+|mps)$", description="auto, cpu, cuda, cuda:N or mps"
    )
    processes: int = Field(default=1, ge=1, le=64, description="side by side on one machine")
    shard: tuple[int, int] = Field(default=(0, 1), description="only this part of so many, from 0")


class CaptionConfig(Table):
    """A captioning."""

    caption: CaptionTable


def caption_config(settings: dict[str, Any], source: str) -> CaptionConfig:
    """The checked configuration of these settings; `source` says where they stand. Raises ConfigError."""
    for key in settings:
        if key not in CaptionTable.model_fields:
            near = difflib.get_close_matches(key, CaptionTable.model_fields, n=1, cutoff=0.0)
            raise ConfigError(f"{source}: unknown key 'caption.{key}'; did you mean 'caption.{near[0]}'?")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    try:
        table = CaptionTable.model_validate(given)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = str(problem["loc"][0])
        told, about = f"caption.{key}", CaptionTable.model_fields[key].description
        if problem["type"] == "missing":
            raise ConfigError(f"{source}: {told} is missing: {about}") from None
        raise ConfigError(
            f"{source}: {told} = {json.dumps(settings[key], ensure_ascii=False)} is not allowed: "
            f"{problem['msg'][:1].lower()}{problem['msg'][1:]} ({about})"
        ) from None
    number, count = table.shard
    if not 0 <= number < count:
        raise ConfigError(f"the shard {number}/{count} is not one of 0/{count} to {count - 1}/{count}")
    if table.processes > 1 and count > 1:
        raise ConfigError(f"{source}: caption.processes starts the shards itself: leave caption.shard as it is")
    return CaptionConfig(caption=table)


def parse_caption_config(text: str, source: str) -> CaptionConfig:
    """`parse_caption_config(caption_toml(c), ...) == c`. Raises ConfigError."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is no TOML ({error})") from error
    if set(tree) != {"caption"} or not isinstance(tree["caption"], dict):
        raise ConfigError(f"{source}: a captioning has one table, [caption], not {', '.join(tree) or 'none'}")
    return caption_config(tree["caption"], source)


def caption_toml(config: CaptionConfig) -> str:
    """The complete configuration, every setting with its description."""
    lines = ["[caption]"]
    for key, field in CaptionTable.model_fields.items():
        value = getattr(config.caption, key)
        written = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        setting = f"{key} = {written}"
        lines += (
            [f"{setting:<40}  # {field.description}"] if len(setting) <= 60 else [f"# {field.description}", setting]
        )
    return "\n".join(lines) + "\n"
