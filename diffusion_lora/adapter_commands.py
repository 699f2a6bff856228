"""The `adapter` commands: look into LoRA files, and compute with them. No base is needed where none is asked for.

Thin, as `cli` is: options in, one library call, a table or JSON out (`--json`: one object on stdout and nothing else).
What writes a file never writes over one. Torch is imported inside the commands that need values; `info` needs none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffusion_lora.errors import ConfigError, OutputError

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from diffusion_lora.lora.adapter import Adapter
    from diffusion_lora.lora.advice import Advice
    from diffusion_lora.lora.algebra import Term
    from diffusion_lora.lora.checkpoint import Checkpoint
    from diffusion_lora.lora.plain import Cut, Result
    from diffusion_lora.lora.scale import Setting

app = typer.Typer(help="Look into LoRA files, convert them, and compute with them.", no_args_is_help=True)


class _Form(StrEnum):
    KOHYA = "kohya"
    PEFT = "peft"


class _How(StrEnum):
    CONCAT = "concat"
    SVD = "svd"
    LINEAR = "linear"
    TIES = "ties"
    DARE = "dare"


class _Dtype(StrEnum):
    FP16 = "fp16"
    BF16 = "bf16"
    FP32 = "fp32"


def _by_name(text: str) -> Path:
    """A file or folder, or what the workspace calls by this name."""
    from diffusion_lora.adopted import lora_path
    from diffusion_lora.workspace import Workspace

    return lora_path(Workspace.at(), Path(text).expanduser(), beside=Path())


_File = Annotated[
    Path, typer.Argument(metavar="FILE", parser=_by_name, help="A LoRA, its name, or a folder that PEFT saved.")
]
_Uses = Annotated[list[str], typer.Argument(metavar="FILE[:STRENGTH]...", help="As in style.safetensors:0.8.")]
_Out = Annotated[Path, typer.Option(metavar="FILE", help="A new .safetensors file.")]
_Rank = Annotated[int | None, typer.Option(min=1, metavar="N", help="Rank rows a layer keeps, at most.")]
_Energy = Annotated[
    float | None, typer.Option(metavar="SHARE", help="Share of the squared singular values to keep, as in 0.95.")
]
_PerLayer = Annotated[
    bool, typer.Option("--per-layer", help="A rank for each layer, where its energy is, and not one for all.")
]
_AsDtype = Annotated[_Dtype | None, typer.Option(help="Of the new file; by default as it was.")]
_AsForm = Annotated[_Form, typer.Option("--to", help="Names in the new file: kohya's are read by every program.")]
_Json = Annotated[bool, typer.Option("--json", help="One JSON object, every layer in it.")]
_EveryLayer = Annotated[bool, typer.Option("--layers", help="Every layer, and not only blocks.")]


@app.command()
def info(
    file: _File,
    norms: Annotated[bool, typer.Option("--norms", help="Read values too: norms, broken and empty layers.")] = False,
    as_json: _Json = False,
) -> None:
    """What is in a LoRA file: family, names, ranks, scale, trigger words, and what is not read."""
    from diffusion_lora.lora.formats.peft import CONFIG_NAME, WEIGHTS_NAME
    from diffusion_lora.lora.header import read_header
    from diffusion_lora.lora.report import load_report

    # PEFT keeps alpha in a file beside: then the whole is read, not the header alone.
    of_peft = file.is_dir() or (file.name == WEIGHTS_NAME and file.with_name(CONFIG_NAME).is_file())
    if norms or of_peft:
        from diffusion_lora.lora.adapter import read_adapter

        values = read_adapter(file, finite=False)
        report = load_report(values) if of_peft else load_report(read_header(file), values=values)
    else:
        report = load_report(read_header(file))
    if as_json:
        _print_json({"file": str(file), "size_bytes": _size(file), **report.as_dict()})
        return
    from diffusion_lora.faces.adapter_tables import show_report

    show_report(_console(), report, str(file), _size(file))


@app.command()
def convert(file: _File, out: _Out, to: _AsForm, dtype: _AsDtype = None, as_json: _Json = False) -> None:
    """Write a LoRA under other names: kohya's, or diffusers' (PEFT). The deltas stay the same."""
    from diffusion_lora.lora.adapter import read_adapter

    _check_new(out)
    adapter = read_adapter(file)
    _write(adapter, out, to, dtype)
    if as_json:
        _print_json(_written(out, adapter))
        return
    from diffusion_lora.faces.adapter_tables import say, show_size

    console = _console()
    for name, reason in adapter.unread.items():
        say(console, f"left out: {name} ({reason})")
    show_size(console, str(out), _size(out), adapter.parameters)


@app.command()
def resize(
    file: _File,
    out: _Out,
    rank: _Rank = None,
    energy: _Energy = None,
    per_layer: _PerLayer = False,
    dtype: _AsDtype = None,
    to: _AsForm = _Form.KOHYA,
    every_layer: _EveryLayer = False,
    as_json: _Json = False,
) -> None:
    """Make a LoRA of a smaller rank, by SVD, and tell what is lost. LoHa, LoKr and full deltas become plain."""
    cut = _cut(rank, energy, per_layer)
    _check_new(out)

    from diffusion_lora.lora.adapter import read_adapter
    from diffusion_lora.lora.algebra import resize as resized

    _finish(resized(read_adapter(file), cut, _torch_dtype(dtype)), out, to, every_layer=every_layer, as_json=as_json)


@app.command()
def merge(
    loras: _Uses,
    out: _Out,
    how: Annotated[
        _How, typer.Option(help="concat is exact, svd the best of a rank; linear, ties and dare are other sums.")
    ] = _How.CONCAT,
    rank: _Rank = None,
    energy: _Energy = None,
    per_layer: _PerLayer = False,
    density: Annotated[float, typer.Option(help="Share of the entries that ties and dare keep.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Of what dare drops.")] = 0,
    dtype: _AsDtype = None,
    to: _AsForm = _Form.KOHYA,
    every_layer: _EveryLayer = False,
    as_json: _Json = False,
) -> None:
    """Make one LoRA of several at given strengths, and tell how far it is from the stack of them."""
    if rank is None and energy is None:
        cut = None
    elif how in (_How.CONCAT, _How.LINEAR):
        raise ConfigError(f"--rank and --energy are for svd, ties and dare; --how {how} keeps what there is")
    else:
        cut = _cut(rank, energy, per_layer)
    _check_new(out)

    from diffusion_lora.lora.algebra import merge as merged

    terms = _terms(loras)
    result = merged(terms, how.value, cut=cut, density=density, seed=seed, dtype=_torch_dtype(dtype))
    _finish(result, out, to, every_layer=every_layer, as_json=as_json)


@app.command()
def extract(
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The fine-tuned checkpoint: a file or a folder.")],
    base: Annotated[str, typer.Argument(metavar="BASE", help="What it was tuned from: pocket, a file, a folder.")],
    out: _Out,
    rank: _Rank = None,
    energy: _Energy = None,
    per_layer: _PerLayer = False,
    only: Annotated[
        str, typer.Option(metavar="REGEX", help="Only layers whose key this matches, as in 'attn|^te'.")
    ] = "",
    dtype: Annotated[_Dtype, typer.Option(help="Of the new file.")] = _Dtype.FP16,
    to: _AsForm = _Form.KOHYA,
    every_layer: _EveryLayer = False,
    as_json: _Json = False,
) -> None:
    """Make a LoRA of the difference between a fine-tuned checkpoint and its base, by SVD."""
    from diffusion_lora.faces.progress import watch_drawing

    cut = _cut(rank, energy, per_layer)
    _check_new(out)

    from diffusion_lora.lora.adapter import DTYPES
    from diffusion_lora.lora.extract import extract as extracted

    with watch_drawing(_console(stderr=as_json), "extracting") as progress:
        result = extracted(
            _checkpoint(tuned), _checkpoint(base), cut, only=only, dtype=DTYPES[dtype.value], progress=progress
        )
    _finish(result, out, to, every_layer=every_layer, as_json=as_json)


@app.command()
def fold(
    base: Annotated[str, typer.Argument(metavar="BASE", help="pocket, a checkpoint file or a diffusers folder.")],
    loras: _Uses,
    out: Annotated[Path, typer.Option(metavar="PLACE", help="A new file for a file, a new folder for a folder.")],
    as_json: _Json = False,
) -> None:
    """Write LoRAs into a base: a plain checkpoint of the same form, which any tool loads."""
    from diffusion_lora.faces.adapter_tables import say, show_folding
    from diffusion_lora.faces.progress import watch_drawing

    _check_new(out)

    from diffusion_lora.lora.bake import fold_into

    console = _console(stderr=as_json)
    with watch_drawing(console, "folding") as progress:
        folding = fold_into(_checkpoint(base), _terms(loras), out, progress=progress)
    if as_json:
        _print_json({"file": str(out), **folding.as_dict()})
        return
    show_folding(console, folding)
    say(console, str(out))


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A[:STRENGTH]", help="As in style.safetensors:0.8.")],
    b: Annotated[str, typer.Argument(metavar="B[:STRENGTH]", help="Another.")],
    as_json: _Json = False,
) -> None:
    """What two LoRAs do to each other when stacked: reinforce, cancel or neither, and which strengths suit."""
    from diffusion_lora.lora.compare import compare as compared

    comparison = compared(*_terms([a, b]))
    if as_json:
        _print_json(comparison.as_dict())
        return
    from diffusion_lora.faces.adapter_tables import show_comparison

    show_comparison(_console(), comparison)


@app.command()
def spectrum(
    file: _File,
    png: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw it, too.")] = None,
    every_layer: _EveryLayer = False,
    as_json: _Json = False,
) -> None:
    """The singular values of a LoRA, where its energy lies, and which rank would have been enough."""
    from diffusion_lora.faces.adapter_tables import say, show_spectrum

    if png is not None:
        _check_new(png, "--png")

    from diffusion_lora.lora.adapter import read_adapter
    from diffusion_lora.lora.spectrum import SHARES
    from diffusion_lora.lora.spectrum import spectrum as spectrum_of

    adapter = read_adapter(file)
    found = spectrum_of(adapter)
    if png is not None:
        from diffusion_lora.faces.page import save_page
        from diffusion_lora.faces.spectrum_plot import draw_spectrum

        subtitle = f"rank {adapter.rank or 'none'}, {len(adapter.layers)} layers, norm {found.norm:.4g} at strength 1"
        save_page(draw_spectrum(file.stem, subtitle, found, SHARES), png)
    if as_json:
        _print_json({"file": str(file), **found.as_dict()})
        return
    console = _console()
    show_spectrum(console, found, SHARES, every_layer=every_layer)
    if png is not None:
        say(console, str(png))


@app.command()
def calibrate(
    file: _File,
    base: Annotated[str, typer.Option(metavar="NAME", help="The base it is used on.")] = "pocket",
    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompt", metavar="TEXT", help="What to draw, 4 or more; by default everyday things."),
    ] = None,
    pictures: Annotated[int, typer.Option(min=4, metavar="N", help="Pictures at each strength.")] = 12,
    steps: Annotated[int, typer.Option(min=2, metavar="N", help="Sampling steps of these.")] = 10,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    note: Annotated[
        bool, typer.Option("--note", help="Write it into the file's header, and beside it as A1111's preferred weight.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--fold", metavar="FILE", help="A new file of which 1.0 is this strength.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Find the strength at which a LoRA does what it is for and leaves what prompts ask for; as slow as 60 pictures."""
    from diffusion_lora.faces.progress import watch_drawing

    if out is not None:
        _check_new(out, "--fold")

    from diffusion_lora.families.family import load_base
    from diffusion_lora.lora.adapter import read_adapter
    from diffusion_lora.lora.bank import AdapterBank
    from diffusion_lora.lora.calibrated import note_calibration
    from diffusion_lora.train.calibrate import calibrate as calibrated

    adapter = read_adapter(file)
    model = load_base(base, device=device)
    console = _console(stderr=as_json)
    with watch_drawing(console, "drawing at several strengths") as progress:
        bank = AdapterBank(model.components, model.layout.title)
        found = calibrated(
            model, bank, adapter, prompts=prompts or (), pictures=pictures, steps=steps, progress=progress
        )
    facts = found.facts(model.weights_hash)
    if note:
        note_calibration(file, facts)
    if out is not None:
        from diffusion_lora.train.calibrate import write_folded

        write_folded(adapter, out, facts, out.stem)
    if as_json:
        _print_json({"file": str(file), **facts, "text": found.sentence, "seconds": round(found.seconds, 1)})
        return
    from diffusion_lora.faces.adapter_tables import say, show_looks

    show_looks(console, found)
    say(console, found.sentence)
    if note:
        say(console, f"noted in {file} and beside it")
    if out is not None:
        say(console, f"{out}: its strength 1 is strength {facts['strength']:g} of {file}")


@app.command()
def scale(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", parser=_by_name, help="A LoRA whose header says how it was trained."),
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank; by default the file's.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Alpha; by default the file's.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; by default the file's.")] = None,
    rs: Annotated[bool, typer.Option("--rs", help="The scale is rsLoRA's, alpha / sqrt(rank).")] = False,
    as_json: _Json = False,
) -> None:
    """Alpha, rank and learning rate as one effective rate, and the equal setting in other trainers."""
    from diffusion_lora.lora.scale import equal_settings

    setting = _setting(file, rank, alpha, lr, rs)
    equals = equal_settings(setting)
    if as_json:
        told = {"scale": setting.scale, "effective_rate": setting.effective_rate}
        _print_json({**told, "equal": [equal.as_dict() for equal in equals]})
        return
    from diffusion_lora.faces.adapter_tables import show_equal_settings

    show_equal_settings(_console(), setting, equals)


@app.command()
def advise(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", parser=_by_name, help="A trained LoRA: which rank would have been enough."),
    ] = None,
    dataset: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Captioned pictures: which rank a training on them needs.")
    ] = None,
    base: Annotated[str, typer.Option(metavar="NAME", help="The base they would be trained on.")] = "pocket",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As in lora.targets=wide. Repeatable.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Steps whose gradients are added up.")] = 8,
    share: Annotated[float, typer.Option(metavar="SHARE", help="Of the energy that the rank is to keep.")] = 0.95,
    as_json: _Json = False,
) -> None:
    """Which rank to train with: from the first gradients on a data set, or from what a trained LoRA has become."""
    if (file is None) == (dataset is None):
        raise ConfigError("say either a FILE that was trained, or --dataset DIR and --base for a training to come")
    if not 0 < share <= 1:
        raise ConfigError(f"--share is {share:g}; give one above 0 and up to 1, as in 0.95")
    advice = _advice_after(file, share) if file is not None else _advice_before(dataset, base, settings, steps, share)
    if as_json:
        _print_json(advice.as_dict())
        return
    from diffusion_lora.faces.adapter_tables import show_advice

    show_advice(_console(), advice)


def _advice_after(file: Path, share: float) -> Advice:
    from diffusion_lora.lora.adapter import read_adapter
    from diffusion_lora.lora.advice import advice, needs_of
    from diffusion_lora.lora.spectrum import spectrum as spectrum_of

    found = spectrum_of(read_adapter(file))
    return advice(needs_of(found), share, found.notes)


def _advice_before(
    dataset: Path | None, base: str, settings: Sequence[str] | None, steps: int, share: float
) -> Advice:
    from diffusion_lora.config import parse_train_config
    from diffusion_lora.faces.progress import watch_drawing

    given = {"dataset.path": str(dataset), "model.base": base}
    overrides = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in given.items()]
    config = parse_train_config("", source="advise", overrides=[*overrides, *(settings or [])])

    from diffusion_lora.train.advise import advise as advised

    with watch_drawing(_console(stderr=True), "looking at gradients") as progress:
        return advised(config, steps=steps, share=share, progress=progress)


def _finish(result: Result, out: Path, to: _Form, *, every_layer: bool, as_json: bool) -> None:
    """Write what was computed under its new name, and tell what it lost."""
    from diffusion_lora.lora.lineage import named

    adapter = replace(result.adapter, metadata=named(result.adapter.metadata, out.stem))
    _write(adapter, out, to, None)
    if as_json:
        _print_json({**_written(out, adapter), **result.as_dict()})
        return
    from diffusion_lora.faces.adapter_tables import show_losses, show_size

    console = _console()
    show_losses(console, result, every_layer=every_layer)
    show_size(console, str(out), _size(out), adapter.parameters)


def _write(adapter: Adapter, out: Path, to: _Form, dtype: _Dtype | None) -> None:
    from diffusion_lora.lora.adapter import write_adapter

    write_adapter(adapter, out, dtype.value if dtype is not None else None, to.value)


def _written(out: Path, adapter: Adapter) -> dict[str, Any]:
    return {"file": str(out), "size_bytes": _size(out), "parameters": adapter.parameters}


def _terms(texts: Sequence[str]) -> list[Term]:
    """`FILE:0.8` as adapters at strengths; a second number is the text encoder's."""
    from diffusion_lora.generate.request import parse_lora_argument

    uses = [parse_lora_argument(text) for text in texts]
    uses = [replace(use, path=_by_name(str(use.path))) for use in uses]

    from diffusion_lora.lora.adapter import read_adapter
    from diffusion_lora.lora.algebra import Term

    return [Term(read_adapter(use.path), use.strength, use.name, use.text_strength) for use in uses]


def _checkpoint(base: str) -> Checkpoint:
    """A checkpoint by path, or a base by name as every command takes it."""
    from diffusion_lora.lora.checkpoint import open_checkpoint

    path = Path(base).expanduser()
    if not path.exists():
        from diffusion_lora.families.source import locate

        path = locate(base).folder
    return open_checkpoint(path)


def _cut(rank: int | None, energy: float | None, per_layer: bool) -> Cut:
    from diffusion_lora.lora.plain import Cut

    return Cut(rank, energy, per_layer)


def _torch_dtype(dtype: _Dtype | None) -> torch.dtype | None:
    from diffusion_lora.lora.adapter import DTYPES

    return None if dtype is None else DTYPES[dtype.value]


def _setting(file: Path | None, rank: int | None, alpha: float | None, rate: float | None, rs: bool) -> Setting:
    """What was typed, and for the rest what the file's header says."""
    from diffusion_lora.lora.scale import Setting

    if file is not None:
        from diffusion_lora.lora.header import read_header
        from diffusion_lora.lora.report import load_report

        header = read_header(file)
        report = load_report(header)
        rank = rank or (report.ranks[1] if report.ranks else None)
        alpha = alpha or (report.scale * rank if rank is not None else None)
        rate = rate or _learning_rate(header.metadata)
    for value, option in ((rank, "--rank"), (alpha, "--alpha"), (rate, "--lr")):
        if value is None:
            where = "it is not given" if file is None else f"{file} does not say it"
            raise ConfigError(f"{option} is missing: {where}; give it, as in --rank 16 --alpha 8 --lr 1e-4")
    assert rank is not None
    assert alpha is not None
    assert rate is not None
    if not alpha > 0 or not rate > 0:
        raise ConfigError(f"alpha is {alpha:g} and the learning rate {rate:g}: both must be above zero")
    return Setting(rank, alpha, rate, rs)


def _learning_rate(metadata: Mapping[str, str]) -> float | None:
    for key in ("ss_unet_lr", "ss_learning_rate"):
        try:
            rate = float(metadata.get(key, ""))
        except ValueError:
            continue
        if rate > 0:
            return rate
    return None


def _check_new(out: Path, option: str = "--out") -> None:
    """Say that a place is taken before minutes are spent on what should go there. Raises OutputError."""
    if out.exists():
        raise OutputError(f"{out} exists already: name another place with {option}")
    for place in out.absolute().parents:
        if place.exists():
            if not place.is_dir():
                raise OutputError(f"{out} cannot be written: {place} is a file; choose another place")
            return


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False))


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)
