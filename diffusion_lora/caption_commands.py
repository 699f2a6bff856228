"""`diffusion-lora caption`: a folder of pictures gets captions. Thin, as `cli` is."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffusion_lora.errors import CaptionerError, ConfigError

if TYPE_CHECKING:
    from diffusion_lora.caption.captioner import Options
    from diffusion_lora.caption.work import Order
    from diffusion_lora.data.rules import Shape


class Policy(StrEnum):
    """Which pictures are described."""

    MISSING = "missing"
    OVERWRITE = "overwrite"
    APPEND = "append"


class Form(StrEnum):
    """What captions look like."""

    AS_IS = "as is"
    TAGS = "tags"
    SENTENCE = "sentence"


class Quantise(StrEnum):
    """How the weights of a large model are held."""

    NONE = "none"
    EIGHT = "8bit"
    FOUR = "4bit"


Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder of pictures.")]
Prefix = Annotated[str, typer.Option(metavar="WORDS", help="In front of every caption, as in 'zib, '.")]
Rules = Annotated[
    list[str] | None,
    typer.Option("--rule", metavar="RULE", help="replace: a => b, remove: a, synonyms: a, b, regex: a => b."),
]
RuleFile = Annotated[Path | None, typer.Option("--rules", metavar="FILE", help="The same, one a line.")]
TheForm = Annotated[Form, typer.Option("--form", help="Tags, each once; or a sentence.")]
MaxTokens = Annotated[int, typer.Option(min=0, metavar="N", help="Longer captions are cut; 0: never.")]
CountBase = Annotated[str, typer.Option(metavar="NAME", help="Whose tokens --max-tokens counts.")]
Subfolders = Annotated[bool, typer.Option("--subfolders", help="Pictures in folders below too.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show before and after, write nothing.")]


def caption(
    folder: Folder,
    captioner: Annotated[str, typer.Option(metavar="NAME", help="embedded, a folder, or a hub id.")] = "embedded",
    policy: Annotated[Policy, typer.Option(help="Only pictures without caption, all anew, or after what is there.")]
    = Policy.MISSING,
    prefix: Prefix = "",
    rule: Rules = None,
    rules: RuleFile = None,
    form: TheForm = Form.AS_IS,
    max_tokens: MaxTokens = 0,
    base: CountBase = "pocket",
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="What the model is asked; else what suits it.")] = "",
    new_tokens: Annotated[int, typer.Option(min=0, metavar="N", help="The model says no more; 0: what suits it.")] = 0,
    revision: Annotated[str | None, typer.Option(metavar="NAME", help="Of a hub id.")] = None,
    quantise: Annotated[Quantise, typer.Option(help="Of a large model, on CUDA.")] = Quantise.NONE,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="A tagger names what it is surer of.")] = 0.35,
    character_threshold: Annotated[float, typer.Option(min=0, max=1, help="The same for characters.")] = 0.85,
    blacklist: Annotated[str, typer.Option(metavar="TAGS", help="Never named; commas between.")] = "",
    ratings: Annotated[bool, typer.Option("--ratings", help="A tagger tells its rating too.")] = False,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Pictures at once.")] = 8,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:N or mps (untested).")] = "auto",
    subfolders: Subfolders = False,
    processes: Annotated[int, typer.Option(min=1, max=64, metavar="N", help="On one machine, side by side.")] = 1,
    shard: Annotated[str, typer.Option(metavar="I/N", help="Only the I-th of N parts, from 0.")] = "",
    dry_run: DryRun = False,
) -> None:  # fmt: skip
    """Describe the pictures of a folder: NAME.txt beside each. `dataset undo` takes it back."""
    from diffusion_lora.caption.captioner import Options
    from diffusion_lora.caption.work import Order

    if processes > 1 and (shard or dry_run):
        raise ConfigError("--processes starts the shards itself: leave --shard and --dry-run out")
    shape = shape_of(prefix, rule, rules, form, max_tokens, base)
    options = Options(
        device=device, quantised=quantise.value, prompt=prompt, new_tokens=new_tokens, revision=revision,
        threshold=threshold, character_threshold=character_threshold,
        blacklist=tuple(tag.strip() for tag in blacklist.split(",") if tag.strip()), ratings=ratings,
    )  # fmt: skip
    order = Order(folder.absolute(), policy.value, shape, "subfolders" if subfolders else "auto", batch, _shard(shard))
    asked = {"what": "caption", "captioner": captioner, "policy": policy.value, **asked_of(shape, base),
             "prompt": prompt, "new_tokens": new_tokens, "revision": revision, "threshold": threshold,
             "character_threshold": character_threshold, "blacklist": blacklist, "ratings": ratings}  # fmt: skip
    if processes > 1:
        kept = {"captioner": captioner, "policy": policy.value, "prefix": prefix, "form": form.value,
                "max-tokens": max_tokens, "base": base, "prompt": prompt, "new-tokens": new_tokens,
                "revision": revision or "", "quantise": quantise.value, "threshold": threshold,
                "character-threshold": character_threshold, "blacklist": blacklist, "batch": batch,
                "device": device, "rules": rules or ""}  # fmt: skip
        flags = [f"--{name}" for name, on in (("ratings", ratings), ("subfolders", subfolders)) if on]
        _shards(
            [
                *(f"--{name}={value}" for name, value in kept.items() if value != ""),
                *(f"--rule={text}" for text in rule or ()),
                *flags,
                str(order.folder),
            ],
            order.folder,
            processes,
        )
        return
    _caption(order, options, captioner, asked, dry_run)


def shape_of(
    prefix: str, rule: list[str] | None, rules: Path | None, form: Form, max_tokens: int, base: str
) -> Shape:
    """What becomes of captions, from the options that say so. Raises ConfigError, BaseModelError."""
    from diffusion_lora.data.rules import Shape, parse_rule, read_rules

    said = (*(read_rules(rules) if rules else ()), *map(parse_rule, rule or ()))
    if not max_tokens:
        return Shape(said, prefix, form.value)
    from diffusion_lora.families.reading import load_base_tokenizer

    tokenizer = load_base_tokenizer(base)
    return Shape(said, prefix, form.value, max_tokens,
                 lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids))  # fmt: skip


def asked_of(shape: Shape, base: str) -> dict[str, Any]:
    """What tells one order's shape from another's, as JSON."""
    return {"prefix": shape.prefix, "rules": [rule.text for rule in shape.rules], "form": shape.form,
            "max_tokens": shape.max_tokens, "base": base if shape.max_tokens else ""}  # fmt: skip


def show_change(name: str, before: str, after: str) -> None:
    """One picture of a dry run."""
    from diffusion_lora.faces.dataset_tables import show_caption_change

    show_caption_change(name, before, after)


def _caption(order: Order, options: Options, captioner: str, asked: dict[str, Any], dry_run: bool) -> None:
    from diffusion_lora.data.sources import Source, expand

    expand(Source(order.folder, order.layout))  # a folder that is not there is told before torch is loaded
    from rich.console import Console

    from diffusion_lora.caption.find import open_captioner
    from diffusion_lora.caption.work import carry_out
    from diffusion_lora.faces.captioning import watch_captioning

    model = open_captioner(captioner, options)
    try:
        with watch_captioning(Console(stderr=dry_run)) as progress:
            outcome = carry_out(order, model, asked, progress, show_change if dry_run else None)
    finally:
        model.close()
    if outcome.problems:
        raise CaptionerError(
            f"{len(outcome.problems)} of the pictures have no new caption, the first: {outcome.problems[0].text}"
        )


def _shard(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not text:
        return 0, 1
    if not (slash and number.isdecimal() and count.isdecimal()):
        raise ConfigError(f"--shard {text!r} is not of the form 0/4")
    return int(number), int(count)


def _shards(arguments: list[str], folder: Path, processes: int) -> None:
    """The same command for each part, in processes of their own; what they print is kept in the folder's history."""
    from rich.console import Console

    from diffusion_lora.data.edits import HISTORY
    from diffusion_lora.faces.captioning import watch_shards
    from diffusion_lora.jobs.launch import caption_shards

    with watch_shards(Console(), processes) as tell:
        caption_shards(arguments, folder / HISTORY, processes, tell)
