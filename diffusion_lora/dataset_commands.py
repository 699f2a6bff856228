"""The `dataset` commands: what is wrong with a set of pictures, and what exactly would be trained on.

Thin, as `cli` is. A set is a folder, or a configuration whose [dataset] it is; `--set` gives settings as `train` does.
With `--json` one object goes to stdout and nothing else. The base is not loaded, only its tokenizer.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffusion_lora.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from diffusion_lora.config import TrainConfig
    from diffusion_lora.data.dataset import Dataset
    from diffusion_lora.data.problems import Problem
    from diffusion_lora.data.tokens import CaptionReader

app = typer.Typer(help="Look at a set of pictures before it is trained on.", no_args_is_help=True)

_Set = Annotated[str, typer.Argument(metavar="DIR", help="A folder of pictures, a TOML file, or a shipped config.")]
_Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, as in dataset.shuffle=true.")
]
_Base = Annotated[
    str | None, typer.Option(metavar="NAME", help="Whose tokenizer counts and whose size counts; as in model.base.")
]
_Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]


@app.command()
def check(folder: _Set, settings: _Settings = None, base: _Base = None, as_json: _Json = False) -> None:
    """Everything that can be said against a set: unreadable, too small, twice there, captions missing or too long."""
    from diffusion_lora.data.buckets import crop_report
    from diffusion_lora.data.check import check as problems_of
    from diffusion_lora.data.problems import by_kind

    config = _config(folder, settings, base)
    found: list[Problem] = []
    dataset = _dataset(config, found)
    reader = _reader(config)

    def too_long(caption: str) -> tuple[int, str]:
        read = reader.read(caption)
        return len(reader.tokenize(caption)), read.cut

    found += problems_of(dataset, too_long)
    cropped = crop_report(dataset.places)
    if as_json:
        _print_json(
            {
                "pictures": len(dataset.items),
                "problems": [asdict(problem) for problem in found],
                "buckets": [
                    {"size": list(size), "pictures": count, "cropped_mean": mean, "cropped_most": most}
                    for size, count, mean, most in cropped
                ],
            }
        )
        return
    from diffusion_lora.faces.dataset_tables import show_buckets, show_problems

    show_problems(by_kind(found), len(dataset.items))
    show_buckets(cropped)


@app.command()
def captions(
    folder: _Set,
    settings: _Settings = None,
    base: _Base = None,
    picture: Annotated[str | None, typer.Option(metavar="NAME", help="Of this picture only.")] = None,
    as_json: _Json = False,
) -> None:
    """The very strings and tokens that each picture is trained with, every variant of them."""
    config = _config(folder, settings, base)
    dataset = _dataset(config, [])
    reader = _reader(config)
    listed = []
    for index, item in enumerate(dataset.items):
        if picture is not None and item.name != picture:
            continue
        said = dataset.rules_of(item).every_variant(item.captions, dataset.seed, index)
        listed.append({"picture": item.name, "captions": [_told(reader, caption) for caption in said]})
    if picture is not None and not listed:
        raise DatasetError(f"there is no picture {picture!r} in {folder}")
    if as_json:
        _print_json({"caption_dropout": config.dataset.caption_dropout, "pictures": listed})
        return
    from diffusion_lora.faces.dataset_tables import show_captions

    show_captions(listed, config.dataset.caption_dropout)


def _told(reader: CaptionReader, caption: str) -> dict[str, Any]:
    read = reader.read(caption)
    chunks = [
        [{"token": reader.decode([token]), "id": token, "weight": weight} for token, weight in zip(*pair, strict=True)]
        for pair in ((chunk.ids, chunk.weights) for chunk in read.chunks)
    ]
    return {"caption": caption, "tokens": read.count, "chunks": chunks, "cut": read.cut}


def _config(folder: str, settings: list[str] | None, base: str | None) -> TrainConfig:
    from diffusion_lora.config import find_config, load_train_config, parse_train_config, resolve_path

    overrides = [*(settings or []), *([f"model.base={json.dumps(base)}"] if base else [])]
    path = resolve_path(folder, None)
    if path is not None and path.is_dir() and not (path / "config.toml").is_file():
        text = f"[dataset]\npath = {json.dumps(str(path))}\n"
        return parse_train_config(text, source="the command line", overrides=overrides)
    if path is not None and path.is_dir():
        path = path / "config.toml"  # of a run
    if (path is None or not path.exists()) and Path(folder).suffix != ".toml" and Path(folder).name != folder:
        raise DatasetError(f"there is no folder {folder}: name a folder of pictures or a configuration")
    try:
        return load_train_config(path or find_config(folder), overrides)
    except ConfigError as error:
        raise ConfigError(f"{error}; or name a folder of pictures") from None


def _dataset(config: TrainConfig, problems: list[Problem]) -> Dataset:
    from diffusion_lora.data.dataset import open_dataset
    from diffusion_lora.data.store import cache_folder
    from diffusion_lora.families.reading import base_size

    size_px, factor = base_size(config.model.base, config.model.revision)
    indices = cache_folder() / "pictures" if config.dataset.cache == "disk" else None
    return open_dataset(
        config,
        size_px=config.dataset.size_px or size_px,
        factor=factor,
        indices=indices,
        report=problems.append,
        gate=False,
    )


def _reader(config: TrainConfig) -> CaptionReader:
    from diffusion_lora.data.tokens import CHUNK_TOKENS
    from diffusion_lora.families.reading import chunk_size, load_base_tokenizer
    from diffusion_lora.train.reading import caption_reader

    tokenizer = load_base_tokenizer(config.model.base, config.model.revision)
    return caption_reader(config.dataset, tokenizer, chunk_size(tokenizer, CHUNK_TOKENS))


def _print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))
