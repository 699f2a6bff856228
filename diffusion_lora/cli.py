"""The command line: every command reads its options, hands them to a library function and prints where the result lies.

Thin on purpose: what a command does is done elsewhere. Torch and the model libraries are imported inside the commands,
so that `--help` answers at once. This is the one place that turns a `UserError` into `error: ...` and exit status 2;
Ctrl-C ends with status 130. Anything else that is raised is a bug and shows its traceback.
"""

import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from diffusion_lora.errors import OutputError, PromptError, RunInterrupted, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from diffusion_lora.generate.engine import Engine
    from diffusion_lora.generate.grid import Axis
    from diffusion_lora.generate.request import LoraUse
    from diffusion_lora.run import Run

_USER_ERROR, _INTERRUPTED = 2, 130

app = typer.Typer(
    help="Train LoRAs for diffusion models and mix them freely.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_Device = Annotated[str | None, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:N or mps (mps is untested).")]
_Base = Annotated[str, typer.Option(metavar="NAME", help="pocket, a diffusers folder, or a hub id.")]
_Seed = Annotated[int | None, typer.Option(min=0, max=2**63 - 1, help="Of the first picture; by default any, told.")]
_Steps = Annotated[int, typer.Option(min=1, max=1000, help="Sampling steps.")]
_Guidance = Annotated[float | None, typer.Option(help="Classifier-free guidance; by default what suits the base.")]
_Negative = Annotated[str, typer.Option(metavar="TEXT", help="What the picture should not show.")]
_Size = Annotated[str | None, typer.Option(metavar="WxH", help="In pixels, as in 512x768; by default the base's.")]
_Precision = Annotated[str, typer.Option(metavar="NAME", help="auto (that of the base's weights), fp32, bf16 or fp16.")]
_Sampler = Annotated[str, typer.Option(metavar="NAME", help="ddim, euler, euler_a, dpm++_2m, ...")]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line (by default the process's own) and exit with its status."""
    try:
        status = app(arguments, prog_name="diffusion-lora", standalone_mode=False)
    except RunInterrupted as error:
        print(f"\n{error}", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    except (UserError, TyperException) as error:
        message = error.format_message() if isinstance(error, TyperException) else str(error)
        print(f"error: {message}", file=sys.stderr)
        sys.exit(_USER_ERROR)
    except KeyboardInterrupt:
        status = _INTERRUPTED
    if status == _INTERRUPTED:
        print("\nstopped", file=sys.stderr)
    sys.exit(status)


@app.callback(invoke_without_command=True)
def _help_without_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG.toml", help="A file, or a shipped one: pocket-style.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, as in lora.rank=8. Repeatable.")
    ] = None,
    steps: Annotated[int | None, typer.Option(metavar="N", help="Short for --set train.steps=N.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The run's folder; by default runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in DIR.")] = False,
    device: _Device = None,
) -> None:
    """Train a LoRA: DIR/adapter.safetensors."""
    from diffusion_lora.config import load_train_config
    from diffusion_lora.run import Run

    overrides = list(settings or [])
    overrides += [f"train.steps={steps}"] if steps is not None else []
    overrides += [f"train.device={device}"] if device is not None else []
    settled = load_train_config(_config_path(config), overrides)
    folder = out or Path("runs", settled.output.name)
    _train(Run.resume(folder, settled) if resume else Run.create(folder, settled), resume=resume)


@app.command()
def run(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run folder.")],
) -> None:
    """Carry out the run in a folder, from its newest checkpoint if there is one."""
    from diffusion_lora.run import Run

    _train(Run.open(folder), resume=True)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help='As in "a big red cat on a sky background".')],
    lora: Annotated[
        list[str] | None, typer.Option(metavar="FILE[:STRENGTH]", help="As in style.safetensors:0.8. Repeatable.")
    ] = None,
    seed: _Seed = None,
    steps: _Steps = 20,
    count: Annotated[int, typer.Option(min=1, metavar="N", help="Pictures; picture i has seed + i.")] = 1,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the PNG files.")] = Path("pictures"),
    base: _Base = "pocket",
    guidance: _Guidance = None,
    negative: _Negative = "",
    size: _Size = None,
    sampler: _Sampler = "ddim",
    precision: _Precision = "auto",
    device: _Device = None,
) -> None:
    """Draw pictures. Each PNG carries all its settings."""
    from diffusion_lora.faces.progress import watch_drawing
    from diffusion_lora.generate.request import Request, parse_lora_argument

    first = _any_seed() if seed is None else seed
    width, height = _size_px(size)
    requests = [
        Request(
            prompt=prompt,
            negative_prompt=negative,
            seed=first + index,
            steps=steps,
            guidance_scale=guidance,
            width=width,
            height=height,
            sampler=sampler,
            loras=tuple(parse_lora_argument(text) for text in lora or ()),
        )
        for index in range(count)
    ]
    _check_folder(out)
    _check_files(requests[0].loras)
    console = _console()
    engine = _engine(base, device, precision)

    from diffusion_lora.generate.picture import save_pictures

    told = set[str]()
    with watch_drawing(console, "drawing") as progress:
        for _, picture in engine.stream(requests, progress=progress):
            for note in picture.notes:
                if note not in told:
                    _say(console, note)
                told.add(note)
            for path in save_pictures(out, [picture]):
                _say(console, str(path))


@app.command()
def grid(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="One prompt or several: the rows.")],
    lora: Annotated[
        list[str], typer.Option(metavar="FILE:S,S,...", help="Strengths: the columns; a second list: the rows.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE.png", help="A new file for the sheet.")] = Path("sheet.png"),
    seed: _Seed = None,
    steps: _Steps = 20,
    base: _Base = "pocket",
    guidance: _Guidance = None,
    negative: _Negative = "",
    size: _Size = None,
    sampler: _Sampler = "ddim",
    precision: _Precision = "auto",
    device: _Device = None,
) -> None:
    """Draw one sheet: prompts x strengths of a LoRA, or the strengths of one against another."""
    from diffusion_lora.faces.page import save_page
    from diffusion_lora.faces.progress import watch_drawing
    from diffusion_lora.generate.grid import grid as draw_grid
    from diffusion_lora.generate.request import Request

    uses = [_lora_strengths(text) for text in lora]
    rows, columns = _axes(prompts, [use for use in uses if len(use[1]) > 1])
    first = _any_seed() if seed is None else seed
    width, height = _size_px(size)
    request = Request(
        prompt=prompts[0],
        negative_prompt=negative,
        seed=first,
        steps=steps,
        guidance_scale=guidance,
        width=width,
        height=height,
        sampler=sampler,
        loras=tuple(use.at(strengths[0]) for use, strengths in uses if len(strengths) == 1),
    )
    _check_folder(out.parent)
    if out.exists():
        raise OutputError(f"{out} exists already: name another file with --out")
    _check_files([use for use, _ in uses])
    console = _console()
    engine = _engine(base, device, precision)
    title = prompts[0] if len(prompts) == 1 else ""
    with watch_drawing(console, "drawing") as progress:
        sheet = draw_grid(
            engine, request, rows=rows, columns=columns, title=title, subtitle=f"seed {first}", progress=progress
        )
    for note in dict.fromkeys(note for row in sheet.pictures for picture in row for note in picture.notes):
        _say(console, note)
    save_page(sheet.image, out)
    _say(console, str(out))


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="A new folder; by default demo, demo-2, ...")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few steps only: does everything work here?")] = False,
    device: _Device = None,
) -> None:
    """Train a style and a subject on the embedded base and draw three sheets, in minutes."""
    from diffusion_lora.demo import run_demo

    run_demo(out, quick=quick, device=device or "auto", console=_console())


@app.command()
def words() -> None:
    """The words that pocket, the embedded base, knows."""
    from diffusion_lora.faces.words import told_words

    print(told_words())


@app.command()
def version() -> None:
    """This program's version and those of the libraries under it."""
    from importlib.metadata import version as version_of

    import diffusion_lora

    print(f"diffusion-lora {diffusion_lora.__version__}, Python {sys.version.split()[0]}")
    for library in ("torch", "diffusers", "transformers", "bitsandbytes", "safetensors"):
        print(f"{library} {version_of(library)}")


def _config_path(name: str) -> Path:
    """A config by path (beside us, else among the shipped files) or by the bare name of a shipped one."""
    from diffusion_lora.config import resolve_path, shipped

    found = resolve_path(name, None)
    if found is None and Path(name).name == name and not Path(name).suffix:
        return shipped("configs", name)
    return found or Path(name)


def _train(run: "Run", *, resume: bool) -> None:
    from diffusion_lora.faces.progress import watch_training
    from diffusion_lora.train.trainer import train

    console = _console()
    with watch_training(console) as progress:
        path = train(run, run.config, resume=resume, progress=progress)
    _say(console, f"adapter: {path}")


def _engine(base: str, device: str | None, precision: str) -> "Engine":
    from diffusion_lora.families.family import load_base
    from diffusion_lora.generate.engine import Engine

    return Engine(load_base(base, device=device or "auto"), precision=precision)


def _lora_strengths(text: str) -> "tuple[LoraUse, tuple[float, ...]]":
    """`FILE:0,0.5,1` -> the file and its strengths; `FILE:0.8` and `FILE` have one."""
    from diffusion_lora.generate.request import parse_lora_argument

    file, _, strengths = text.rpartition(":")
    if "," not in strengths:
        use = parse_lora_argument(text)
        return use, (use.strength,)
    try:
        return parse_lora_argument(file), tuple(float(strength) for strength in strengths.split(","))
    except ValueError:
        raise PromptError(f"--lora {text!r}: {strengths!r} is not a list of numbers, as in 0,0.5,1") from None


def _axes(prompts: list[str], swept: "list[tuple[LoraUse, tuple[float, ...]]]") -> "tuple[Axis, Axis]":
    """Rows and columns of a grid: prompts x strengths for one swept adapter, strengths x strengths for two."""
    from diffusion_lora.generate.grid import prompt_axis, strength_axis

    if len(swept) == 1:
        return prompt_axis(prompts), strength_axis(*swept[0])
    if len(swept) == 2 and len(prompts) == 1:
        return strength_axis(*swept[1]), strength_axis(*swept[0])
    if len(swept) == 2:
        raise PromptError(f"two lists of strengths fill the sheet: give one prompt, not {len(prompts)}")
    raise PromptError(f"{len(swept)} LoRAs have a list of strengths: give one or two, as in FILE:0,0.5,1")


def _size_px(text: str | None) -> tuple[int, int]:
    """`"512x768"` -> (512, 768); None -> (0, 0), the base's own size."""
    if text is None:
        return 0, 0
    width, times, height = text.lower().partition("x")
    if not (times and width.isdecimal() and height.isdecimal()):
        raise PromptError(f"--size {text!r} is not understood; give width and height in pixels, as in 512x768")
    return int(width), int(height)


def _any_seed() -> int:
    return secrets.randbelow(2**32)


def _check_files(uses: "Sequence[LoraUse]") -> None:
    """Say that a LoRA cannot be opened before the base is loaded. Raises AdapterFileError."""
    from diffusion_lora.lora.header import read_header

    for use in uses:
        read_header(use.path)


def _check_folder(folder: Path) -> None:
    """Say that a folder cannot be made before minutes are spent on what should go into it. Raises OutputError."""
    for place in (folder, *folder.absolute().parents):
        if place.is_dir():
            if not os.access(place, os.W_OK):
                raise OutputError(f"the pictures cannot be written to {folder}: no permission in {place}")
            return
        if place.exists():
            raise OutputError(f"the pictures cannot be written to {folder}: {place} is a file; choose another folder")


def _say(console: "Console", text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _console() -> "Console":
    from rich.console import Console

    return Console()
