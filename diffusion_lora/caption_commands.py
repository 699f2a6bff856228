"""`diffusion-lora caption`: a folder of pictures gets captions. Thin, as `cli` is."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffusion_lora.errors import CaptionerError, ConfigError

if TYPE_CHECKING:
    from diffusion_lora.caption.work import Outcome
    from diffusion_lora.caption_config import CaptionConfig
    from diffusion_lora.caption_run import CaptionRun
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
    queue: Annotated[bool, typer.Option("--queue", help="Leave it to the workspace's queue.")] = False,
    workspace: Annotated[Path | None, typer.Option(metavar="DIR", help="Whose queue.")] = None,
) -> None:  # fmt: skip
    """Describe the pictures of a folder: NAME.txt beside each. `dataset undo` takes it back."""
    from diffusion_lora.caption_config import caption_config
    from diffusion_lora.data.sources import Source, expand

    if dry_run and (processes > 1 or shard or queue):
        raise ConfigError("--dry-run shows what one process would do: leave --processes, --shard and --queue out")
    config = caption_config(
        {
            "folder": str(folder.absolute()), "captioner": _absolute(captioner), "policy": policy.value,
            "layout": "subfolders" if subfolders else "auto", "prefix": prefix, "rules": _rule_texts(rule, rules),
            "form": form.value, "max_tokens": max_tokens, "base": _absolute(base), "prompt": prompt,
            "new_tokens": new_tokens, "revision": revision or "", "quantise": quantise.value, "threshold": threshold,
            "character_threshold": character_threshold,
            "blacklist": [tag.strip() for tag in blacklist.split(",") if tag.strip()], "ratings": ratings,
            "batch": batch, "device": device, "processes": processes, "shard": _shard(shard),
        },
        "the command line",
    )  # fmt: skip
    table = config.caption
    expand(Source(Path(table.folder), table.layout))  # a folder that is not there is told before anything is made
    if queue:
        _queue(config, workspace)
    elif dry_run:
        _dry_run(config)
    else:
        from diffusion_lora.caption_run import CaptionRun
        from diffusion_lora.data.edits import HISTORY

        carry_out(CaptionRun.beside(Path(table.folder) / HISTORY / "runs", config))


def carry_out(run: CaptionRun) -> None:
    """Describe the pictures of a run, in front of a person."""
    from rich.console import Console

    from diffusion_lora.caption.carry_out import carry_out_run
    from diffusion_lora.faces.captioning import watch_captioning
    from diffusion_lora.jobs.launch import run_together

    with watch_captioning(Console()) as progress:
        outcome = carry_out_run(run, run_together, progress)
    _tell_problems(outcome)


def shape_of(
    prefix: str, rule: list[str] | None, rules: Path | None, form: Form, max_tokens: int, base: str
) -> Shape:
    """What becomes of captions, from the options that say so. Raises ConfigError, BaseModelError."""
    from diffusion_lora.caption.carry_out import shape_of as shape

    return shape(_rule_texts(rule, rules), prefix, form.value, max_tokens, base)


def asked_of(shape: Shape, base: str) -> dict[str, Any]:
    """What tells one order's shape from another's, as JSON."""
    return {"prefix": shape.prefix, "rules": [rule.text for rule in shape.rules], "form": shape.form,
            "max_tokens": shape.max_tokens, "base": base if shape.max_tokens else ""}  # fmt: skip


def show_change(name: str, before: str, after: str) -> None:
    """One picture of a dry run."""
    from diffusion_lora.faces.dataset_tables import show_caption_change

    show_caption_change(name, before, after)


def _rule_texts(rule: list[str] | None, rules: Path | None) -> list[str]:
    from diffusion_lora.data.rules import parse_rule, read_rules

    return [each.text for each in (*(read_rules(rules) if rules else ()), *map(parse_rule, rule or ()))]


def _absolute(name: str) -> str:
    """A folder as an absolute path, for processes that run elsewhere; names stay names."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() and name not in ("embedded", "pocket") else name


def _queue(config: CaptionConfig, workspace: Path | None) -> None:
    from diffusion_lora.caption_run import CaptionRun
    from diffusion_lora.jobs.launch import ensure_worker
    from diffusion_lora.jobs.store import Queue
    from diffusion_lora.workspace import Workspace

    queue = Queue(Workspace.open(workspace))
    name = queue.workspace.free_run_name(f"caption-{Path(config.caption.folder).name}")
    run = CaptionRun.create(queue.workspace.run_folder(name), config)
    queue.add(name)
    ensure_worker(queue.workspace)
    print(f"queued: {name} ({run.folder})")


def _dry_run(config: CaptionConfig) -> None:
    from rich.console import Console

    from diffusion_lora.caption.carry_out import show_run
    from diffusion_lora.faces.captioning import watch_captioning

    with watch_captioning(Console(stderr=True)) as progress:
        outcome = show_run(config, show_change, progress)
    _tell_problems(outcome)


def _tell_problems(outcome: Outcome) -> None:
    if outcome.problems:
        raise CaptionerError(
            f"{len(outcome.problems)} of the pictures have no new caption, the first: {outcome.problems[0].text}"
        )


def _shard(text: str) -> list[int]:
    number, slash, count = text.partition("/")
    if not text:
        return [0, 1]
    if not (slash and number.isdecimal() and count.isdecimal()):
        raise ConfigError(f"--shard {text!r} is not of the form 0/4")
    return [int(number), int(count)]
