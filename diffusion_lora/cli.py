"""The command line: every command reads its options, hands them to a library function and prints where the result lies.

Thin on purpose: what a command does is done elsewhere. Torch and the model libraries are imported inside the commands,
so that `--help` answers at once. This is the one place that turns a `UserError` into `error: ...` and exit status 2;
Ctrl-C ends with status 130. Anything else that is raised is a bug and shows its traceback.
"""

import errno
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from diffusion_lora.adapter_commands import app as adapter_app
from diffusion_lora.caption_commands import caption
from diffusion_lora.dataset_commands import app as dataset_app
from diffusion_lora.errors import ConfigError, OutputError, PromptError, RunInterrupted, ServiceError, UserError
from diffusion_lora.user_commands import app as users_app
from diffusion_lora.workshop_commands import add_to as add_workshop_commands
from diffusion_lora.workspace_commands import app as workspace_app

if TYPE_CHECKING:
    from rich.console import Console

    from diffusion_lora.config import TrainConfig
    from diffusion_lora.generate.axis import Axis
    from diffusion_lora.generate.engine import Engine
    from diffusion_lora.generate.grid import Sheet
    from diffusion_lora.generate.request import LoraUse
    from diffusion_lora.generate.tags import Find
    from diffusion_lora.jobs.store import Queue
    from diffusion_lora.run import Run
    from diffusion_lora.workspace import Workspace

_USER_ERROR, _INTERRUPTED = 2, 130
_PORT, _PORTS = 7860, 100  # the page's, and how many after it are tried

app = typer.Typer(
    help="Train LoRAs for diffusion models and mix them freely.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

queue_app = typer.Typer(help="The runs that wait, run and are done.", invoke_without_command=True)
app.add_typer(queue_app, name="queue")
app.add_typer(adapter_app, name="adapter")
app.add_typer(dataset_app, name="dataset")
add_workshop_commands(dataset_app)
app.command()(caption)
app.add_typer(workspace_app, name="workspace")
app.add_typer(users_app, name="users")

_Workspace = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Where all is kept; by default $DIFFUSION_LORA_WORKSPACE or ~/diffusion-lora."),
]
_RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's name, as `queue list` tells it.")]
_Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, as in lora.rank=8. Repeatable.")
]
_TrainConfig = Annotated[str, typer.Argument(metavar="CONFIG.toml", help="A file, or a shipped one: pocket-style.")]
_Accept = Annotated[
    bool, typer.Option("--accept-changed-data", help="Go on although pictures or captions are not what they were.")
]
_TrainSteps = Annotated[int | None, typer.Option("--steps", metavar="N", help="Short for --set train.steps=N.")]
_FromStep = Annotated[
    int | None, typer.Option("--from-step", min=1, metavar="N", help="Go on from the checkpoint of this step.")
]
_Device = Annotated[str | None, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:N or mps (mps is untested).")]
_Base = Annotated[str, typer.Option(metavar="NAME", help="pocket, a diffusers folder, a checkpoint file, or a hub id.")]
_Revision = Annotated[str | None, typer.Option(metavar="NAME", help="Of a hub id: a branch, tag or commit.")]
_Vae = Annotated[str | None, typer.Option(metavar="NAME", help="An autoencoder in place of the base's own.")]
_Seed = Annotated[int | None, typer.Option(min=0, max=2**63 - 1, help="Of the first picture; by default any, told.")]
_Steps = Annotated[int, typer.Option(min=1, max=1000, help="Sampling steps.")]
_Guidance = Annotated[float | None, typer.Option(help="Classifier-free guidance; by default what suits the base.")]
_Negative = Annotated[str, typer.Option(metavar="TEXT", help="What the picture should not show.")]
_Size = Annotated[str | None, typer.Option(metavar="WxH", help="In pixels, as in 512x768; by default the base's.")]
_Precision = Annotated[str, typer.Option(metavar="NAME", help="auto (that of the base's weights), fp32, bf16 or fp16.")]
_LoraDirs = Annotated[
    list[Path] | None,
    typer.Option(metavar="DIR", help="Where <lora:name:0.8> in a prompt finds name; by default the workspace's loras."),
]
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
    config: _TrainConfig,
    settings: _Settings = None,
    steps: _TrainSteps = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The run's folder; by default runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in DIR.")] = False,
    from_step: _FromStep = None,
    accept_changed_data: _Accept = False,
    device: _Device = None,
) -> None:
    """Train a LoRA: DIR/adapter.safetensors."""
    from diffusion_lora.run import Run

    settled = _settled(config, settings, steps, device)
    folder = out or Path("runs", settled.output.name)
    resume = resume or from_step is not None
    made = Run.resume(folder, settled) if resume else Run.create(folder, settled)
    _train(_accepting(made) if accept_changed_data else made, resume=resume, from_step=from_step)


@app.command()
def preflight(
    config: _TrainConfig,
    settings: _Settings = None,
    steps: _TrainSteps = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the run would lie.")] = None,
    device: _Device = None,
) -> None:
    """Take a few real steps and tell how long the run will take, and whether it fits; nothing is left behind."""
    from diffusion_lora.errors import DeviceError
    from diffusion_lora.train.preflight import preflight as measure

    settled = _settled(config, settings, steps, device)
    console, folder = _console(), out or Path("runs", settled.output.name)
    report = measure(settled, folder=folder, progress=lambda text: _say(console, text))
    for line in report.lines():
        _say(console, line)
    if report.problems:
        raise DeviceError(report.problems[0])


config_app = typer.Typer(help="Configurations.", no_args_is_help=True)
app.add_typer(config_app, name="config")


@config_app.command("from")
def config_from(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A LoRA, a kohya_ss JSON or a OneTrainer preset.")],
    out: Annotated[Path, typer.Option(metavar="FILE.toml", help="A new file.")],
    dataset: Annotated[str | None, typer.Option(metavar="DIR", help="The folder of pictures.")] = None,
    base: Annotated[str | None, typer.Option(metavar="NAME", help="The base to train on.")] = None,
) -> None:
    """Make a configuration from another program's settings; what has no equal is listed."""
    from diffusion_lora.run import write_atomically
    from diffusion_lora.train.foreign_settings import foreign_toml, read_foreign

    if out.exists():
        raise OutputError(f"{out} exists already: name another file with --out")
    foreign = read_foreign(file, dataset=dataset, base=base)
    write_atomically(out, foreign_toml(foreign, file).encode())
    for title, lines in (("no equal here", foreign.lost), ("left to do", foreign.notes)):
        for line in lines:
            print(f"{title}: {line}")
    print(out)


@app.command()
def run(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run folder.")],
    from_step: _FromStep = None,
    accept_changed_data: _Accept = False,
) -> None:
    """Carry out the run in a folder, from its newest checkpoint if there is one."""
    from diffusion_lora.run import Run, run_kind

    if run_kind(folder) == "caption":
        from diffusion_lora.caption_commands import carry_out
        from diffusion_lora.caption_run import CaptionRun

        if from_step is not None or accept_changed_data:
            raise ConfigError("a captioning has no steps and accepts any pictures: leave these options out")
        carry_out(CaptionRun.open(folder))
        return
    made = Run.open(folder)
    _train(_accepting(made) if accept_changed_data else made, resume=True, from_step=from_step)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help='As in "a big red cat on a sky background".')],
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[:S[:T]][;KEY=VALUE]",
            help="As in style.safetensors:0.8, a file or a name; S for the UNet, T for the text encoder. Repeatable. "
            "Behind a semicolon: steps=0-0.5, blocks=down:0.5,mid:1, region=left, negative=0.",
        ),
    ] = None,
    lora_dir: _LoraDirs = None,
    region: Annotated[
        list[str] | None,
        typer.Option(metavar="PLACE=PROMPT", help="Words for a part, as in left=a cat, or NAME:0,0,0.5,1=a cat."),
    ] = None,
    combine: Annotated[str, typer.Option(metavar="NAME", help="Several LoRAs: sum, or composite.")] = "sum",
    solo: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this LoRA. Repeatable.")] = None,
    mute: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Not this LoRA. Repeatable.")] = None,
    budget: Annotated[
        float | None, typer.Option(metavar="X", help="Scale the strengths so that they sum to at most this.")
    ] = None,
    wildcards: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where __name__ in a prompt finds name.txt.")
    ] = None,
    embedding_dir: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Embeddings by name; else the workspace's embeddings/. Repeatable."),
    ] = None,
    clip_skip: Annotated[int, typer.Option(min=1, metavar="N", help="The text encoder's layer from the end.")] = 1,
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="A picture to start from (img2img).")] = None,
    strength: Annotated[
        float, typer.Option(metavar="X", help="How much of it is drawn anew, 0 to 1; also for --hires.")
    ] = 0.7,
    mask: Annotated[Path | None, typer.Option(metavar="FILE", help="Grey: white is drawn, black is kept.")] = None,
    mask_blur: Annotated[int, typer.Option(min=0, metavar="PX", help="The softness of the mask's edge.")] = 4,
    only_masked: Annotated[bool, typer.Option("--only-masked", help="Draw the mask's surroundings alone.")] = False,
    hires: Annotated[float | None, typer.Option(metavar="X", help="A second pass, so many times as large.")] = None,
    hires_steps: Annotated[int, typer.Option(min=0, metavar="N", help="Its steps, by default --steps.")] = 0,
    upscaler: Annotated[str, typer.Option(metavar="NAME", help="For --hires: latent, lanczos, or a file.")] = "latent",
    variation_seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Mixed into the seed's noise.")] = None,
    variation: Annotated[float, typer.Option(metavar="X", help="How much of --variation-seed, 0 to 1.")] = 0.0,
    tiling: Annotated[bool, typer.Option("--tiling", help="A picture whose edges meet.")] = False,
    seed: _Seed = None,
    steps: _Steps = 20,
    count: Annotated[int, typer.Option(min=1, metavar="N", help="Pictures; picture i has seed + i.")] = 1,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the pictures.")] = Path("pictures"),
    kind: Annotated[str, typer.Option("--format", metavar="NAME", help="png, jpg or webp.")] = "png",
    base: _Base = "pocket",
    revision: _Revision = None,
    vae: _Vae = None,
    guidance: _Guidance = None,
    negative: _Negative = "",
    size: _Size = None,
    sampler: _Sampler = "ddim",
    precision: _Precision = "auto",
    device: _Device = None,
) -> None:
    """Draw pictures. Each PNG carries all its settings."""
    from diffusion_lora.faces.progress import watch_drawing
    from diffusion_lora.generate.picture import check_kind
    from diffusion_lora.generate.region import parse_region_argument
    from diffusion_lora.generate.request import Request, parse_lora_argument
    from diffusion_lora.generate.stack import muted, soloed, within_budget
    from diffusion_lora.generate.start import Hires, Start
    from diffusion_lora.generate.tags import read_embeddings, read_typed_prompt

    check_kind(kind)
    if image is None and (mask is not None or only_masked):
        raise PromptError("--mask and --only-masked want a picture to start from: --image FILE")
    first = _any_seed() if seed is None else seed
    width, height = _size_px(size)
    given = tuple(_found(parse_lora_argument(text)) for text in lora or ())
    find = _lora_finder(lora_dir)
    requests = []
    for index in range(count):
        words, tagged = read_typed_prompt(prompt, first + index, find=find, wildcards=wildcards)
        (words, avoided), embeddings = read_embeddings((words, negative), embedding_dir or [_embeddings()])
        uses = muted(given + tagged, mute or ())
        uses = soloed(uses, solo) if solo else uses
        uses = uses if budget is None else within_budget(uses, budget)
        requests.append(
            Request(
                prompt=words,
                negative_prompt=avoided,
                seed=first + index,
                steps=steps,
                guidance_scale=guidance,
                width=width,
                height=height,
                sampler=sampler,
                loras=uses,
                regions=tuple(parse_region_argument(text) for text in region or ()),
                combine=combine,  # type: ignore[arg-type]  # checked by the request
                clip_skip=clip_skip,
                start=None if image is None else Start(image, strength, mask, mask_blur, only_masked),
                hires=None if hires is None else Hires(hires, strength, hires_steps, upscaler),
                variation_seed=variation_seed,
                variation_strength=variation,
                tiling=tiling,
                embeddings=embeddings,
            )
        )
    _check_folder(out)
    _check_files(list({use.path: use for request in requests for use in request.loras}.values()))
    console = _console()
    engine = _engine(console, base, device, precision, revision, vae)

    from diffusion_lora.generate.picture import save_pictures

    told = set[str]()
    with watch_drawing(console, "drawing") as progress:
        for _, picture in engine.stream(requests, progress=progress):
            for note in picture.notes:
                if note not in told:
                    _say(console, note)
                told.add(note)
            for path in save_pictures(out, [picture], kind):
                _say(console, str(path))


@app.command()
def redraw(
    pictures: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Pictures, whoever drew them.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the PNG files.")] = Path("pictures"),
    base: Annotated[str | None, typer.Option(metavar="NAME", help="By default the one the picture names.")] = None,
    revision: _Revision = None,
    vae: _Vae = None,
    precision: _Precision = "auto",
    device: _Device = None,
) -> None:
    """Draw pictures again from the settings in their files: the same bytes on the same machine."""
    from diffusion_lora.generate.reading import read_picture

    read = [read_picture(path) for path in pictures]
    _check_folder(out)
    console = _console()
    engine, loaded = None, ("", "")

    from diffusion_lora.generate.picture import save_pictures

    for reading in read:
        wanted = (base or reading.request.base or "pocket", vae or reading.request.vae)
        if engine is None or wanted != loaded:
            engine, loaded = _engine(console, wanted[0], device, precision, revision, wanted[1] or None), wanted
        company = reading.company
        picture = engine.redraw(reading.request, company) if company else engine.draw([reading.request])[0]
        for path in save_pictures(out, [picture]):
            _say(console, str(path))


@app.command()
def grid(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="One prompt or several: the rows.")],
    lora: Annotated[
        list[str] | None, typer.Option(metavar="FILE:S,S,...", help="Strengths: the columns; a second list: the rows.")
    ] = None,
    rows_of: Annotated[
        str | None, typer.Option("--rows", metavar="KEY=V,V", help="What the rows vary, as in sampler=ddim,euler.")
    ] = None,
    columns_of: Annotated[
        str | None, typer.Option("--columns", metavar="KEY=V,V", help="As in strength:NAME=0,1 or seed=1,2.")
    ] = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="A first column without any LoRA.")] = False,
    folder: Annotated[
        Path | None, typer.Option("--cells", metavar="DIR", help="Keep each picture and a page there.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE.png", help="A new file for the sheet.")] = Path("sheet.png"),
    seed: _Seed = None,
    steps: _Steps = 20,
    base: _Base = "pocket",
    revision: _Revision = None,
    vae: _Vae = None,
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
    from diffusion_lora.generate.axes import with_baseline
    from diffusion_lora.generate.grid import grid as draw_grid
    from diffusion_lora.generate.request import Request

    uses = [_lora_strengths(text) for text in lora or ()]
    rows, columns = _grid_axes(prompts, [use for use in uses if len(use[1]) > 1], rows_of, columns_of)
    columns = with_baseline(columns) if baseline else columns
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
    engine = _engine(console, base, device, precision, revision, vae)
    title = prompts[0] if len(prompts) == 1 else ""
    with watch_drawing(console, "drawing") as progress:
        sheet = draw_grid(
            engine, request, rows=rows, columns=columns, title=title, subtitle=f"seed {first}", progress=progress,
            cells=folder,
        )  # fmt: skip
    for note in dict.fromkeys(note for row in sheet.pictures for picture in row for note in picture.notes):
        _say(console, note)
    save_page(sheet.image, out)
    if folder is not None:
        _say(console, str(_save_sheet_page(folder, sheet, rows, columns, title, f"seed {first}")))
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
def ui(
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, metavar="N", help=f"By default {_PORT}, or the next free one.")
    ] = None,
    workspace: _Workspace = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only serve; open no browser.")] = False,
    base: _Base = "pocket",
    device: _Device = None,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST", help="Let other machines in, as 0.0.0.0 does. Needs --auth.")
    ] = None,
    auth: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Ask everybody for a login; `users add` makes the file.")
    ] = None,
) -> None:
    """Open the page in a browser: train, generate, queue."""
    from diffusion_lora.workspace import Workspace

    if listen is not None and auth is None:
        raise ServiceError(
            f"--listen {listen} lets other machines in, who could then use this one: add --auth FILE, "
            "made by `diffusion-lora users add NAME`"
        )
    if auth is not None:
        from diffusion_lora.accounts import read_users

        read_users(auth)  # a file that is not there is told before anything is started
    place = Workspace.open(workspace)
    free = _free_port(listen or "127.0.0.1", port)
    if port is None and free != _PORT:
        print(f"port {_PORT} is taken: the page is on {free}")

    from webui.app import serve_page

    serve_page(
        place,
        port=free,
        open_browser=not no_browser,
        base=_from_anywhere(base),
        device=device or "auto",
        listen=listen,
        accounts=auth,
    )


@app.command()
def serve(workspace: _Workspace = None, base: _Base = "pocket", device: _Device = None) -> None:
    """The engine of a workspace: a process that keeps a base loaded and draws for the page, which starts it itself."""
    from diffusion_lora.serve.process import serve as serve_engine
    from diffusion_lora.workspace import Workspace

    serve_engine(Workspace.open(workspace), base=base, device=device or "auto")


@app.command()
def worker(workspace: _Workspace = None) -> None:
    """The worker of a workspace: it has the queue's runs carried out. Page and queue start it themselves."""
    from diffusion_lora.jobs.worker import work
    from diffusion_lora.workspace import Workspace

    if not work(Workspace.open(workspace)):
        print("another worker is at work on this workspace")


@queue_app.callback()
def queue_of(context: typer.Context, workspace: _Workspace = None) -> None:
    if context.invoked_subcommand is None:
        queue_list(workspace)
    elif workspace is not None:  # `queue --workspace DIR list` is `queue list --workspace DIR`
        context.default_map = {context.invoked_subcommand: {"workspace": str(workspace)}}


@queue_app.command("list")
def queue_list(workspace: _Workspace = None) -> None:
    """All runs: at work, waiting in their order, ended."""
    from diffusion_lora.faces.queue import told_queue

    queue = _queue(workspace)
    print(told_queue(queue.workspace, queue.jobs()))


@queue_app.command("add")
def queue_add(
    config: _TrainConfig,
    settings: _Settings = None,
    steps: _TrainSteps = None,
    device: _Device = None,
    workspace: _Workspace = None,
) -> None:
    """Make a run in the workspace, named as its adapter, and queue it."""
    from diffusion_lora.run import Run

    settled = _settled(config, settings, steps, device)
    queue = _queue(workspace)
    name = queue.workspace.free_run_name(settled.output.name)
    run = Run.create(queue.workspace.run_folder(name), settled)
    queue.add(name)
    _carry_on(queue.workspace)
    print(f"queued: {name} ({run.folder})")


@queue_app.command("cancel")
def queue_cancel(run: _RunName, workspace: _Workspace = None) -> None:
    """Take a waiting run out of the line; a running one saves and stops."""
    job = _queue(workspace).cancel(run)
    print(f"{run} is out of the line" if job.state == "stopped" else f"{run} saves and stops after its step")


@queue_app.command("pause")
def queue_pause(run: _RunName, workspace: _Workspace = None) -> None:
    """Like cancel, for a run that is to go on later: the next one has its turn."""
    job = _queue(workspace).pause(run)
    print(f"{run} is paused" if job.state == "paused" else f"{run} saves and pauses after its step")


@queue_app.command("retry")
def queue_retry(run: _RunName, workspace: _Workspace = None) -> None:
    """Let a run that was paused, stopped or failed go on from its newest checkpoint."""
    queue = _queue(workspace)
    queue.resume(run)
    _carry_on(queue.workspace)
    print(f"{run} waits for its turn")


@queue_app.command("remove")
def queue_remove(run: _RunName, workspace: _Workspace = None) -> None:
    """Take a run off the queue and move its folder into the trash."""
    place = _queue(workspace).remove(run)
    print(f"{run} is removed" + (f"; its folder is now {place}" if place else ""))


@app.command()
def words() -> None:
    """The words that pocket, the embedded base, knows."""
    from diffusion_lora.faces.words import told_words

    print(told_words())


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run folder.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="By default DIR/report.html; the picture lies beside it.")
    ] = None,
) -> None:
    """Tell a run on one page, and in one picture: curves, health, previews, strength, spectrum, captions, settings."""
    from diffusion_lora.faces.page import save_page
    from diffusion_lora.faces.run_report import Learned, run_report
    from diffusion_lora.faces.run_sheet import draw_run
    from diffusion_lora.run import Run, write_atomically

    run, learned = Run.open(folder), None
    if run.adapter_path.exists():
        from diffusion_lora.lora.adapter import read_adapter
        from diffusion_lora.lora.advice import advice, needs_of
        from diffusion_lora.lora.spectrum import SHARES, spectrum

        found = spectrum(read_adapter(run.adapter_path))
        learned = Learned(found, advice(needs_of(found), notes=found.notes), SHARES)
    path = out or folder / "report.html"
    write_atomically(path, run_report(run, learned).encode())
    picture = path.with_suffix(".png")
    save_page(draw_run(run, learned), picture)
    print(path)
    print(picture)


@app.command()
def doctor(device: _Device = None, workspace: _Workspace = None) -> None:
    """What this machine can do, what is missing, and the command that mends it."""
    from diffusion_lora.train.doctor import examine, lines
    from diffusion_lora.workspace import Workspace

    console = _console()
    wanting = lines(examine(device or "auto", Workspace.at(workspace).root), lambda text: _say(console, text))
    _say(console, f"{wanting} of these want something done" if wanting else "all is well")


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


def _settled(config: str, settings: list[str] | None, steps: int | None, device: str | None) -> "TrainConfig":
    from diffusion_lora.config import load_train_config

    overrides = list(settings or [])
    overrides += [f"train.steps={steps}"] if steps is not None else []
    overrides += [f"train.device={device}"] if device is not None else []
    return load_train_config(_config_path(config), overrides)


def _accepting(run: "Run") -> "Run":
    """The run, for this once content with a data set that has changed: its config.toml says what it said."""
    from diffusion_lora.run import Run

    table = run.config.dataset.model_copy(update={"accept_changes": True})
    return Run(run.folder, run.config.model_copy(update={"dataset": table}))


def _train(run: "Run", *, resume: bool, from_step: int | None = None) -> None:
    from diffusion_lora.faces.progress import watch_training
    from diffusion_lora.train.carry_out import carry_out
    from diffusion_lora.train.team import is_leader

    console = _console()
    with watch_training(console) as progress:
        path = carry_out(run, resume=resume, from_step=from_step, progress=progress)
    if is_leader():
        _say(console, f"adapter: {path}")


def _queue(workspace: Path | None) -> "Queue":
    from diffusion_lora.jobs.store import Queue
    from diffusion_lora.workspace import Workspace

    return Queue(Workspace.open(workspace))


def _carry_on(workspace: "Workspace") -> None:
    """See to it that a worker is there for what was queued."""
    from diffusion_lora.jobs.launch import ensure_worker

    ensure_worker(workspace)


def _free_port(host: str, port: int | None) -> int:
    """The port asked for, or the first free one from the page's own on. Raises ServiceError."""
    import socket

    for candidate in [port] if port is not None else range(_PORT, _PORT + _PORTS):
        try:
            family = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0][0]
            with socket.socket(family, socket.SOCK_STREAM) as listener:
                if os.name == "posix":  # a port whose last connections are still fading away is free
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((host, candidate))
        except socket.gaierror:
            raise ServiceError(f"--listen {host}: there is no such address on this machine") from None
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise ServiceError(f"--listen {host}: there is no such address on this machine") from None
            if port is not None:
                raise ServiceError(
                    f"port {port} cannot be used ({error.strerror}): name another with --port, or leave --port away"
                ) from None
        else:
            return candidate
    raise ServiceError(f"the ports {_PORT} to {_PORT + _PORTS - 1} are all taken: name another with --port")


def _from_anywhere(base: str) -> str:
    """A folder or file as an absolute path, for processes that run in another folder; names stay names."""
    path = Path(base).expanduser()
    return str(path.resolve()) if base != "pocket" and path.exists() else base


def _engine(
    console: "Console", base: str, device: str | None, precision: str, revision: str | None, vae: str | None
) -> "Engine":
    from diffusion_lora.families.family import load_base
    from diffusion_lora.generate.engine import Engine

    model = load_base(base, device=device or "auto", revision=revision, vae=vae)
    if base != "pocket":
        _say(console, f"base: {model.name}, {model.kind}")
    for note in model.notes:
        _say(console, note)
    return Engine(model, precision=precision)


def _lora_strengths(text: str) -> "tuple[LoraUse, tuple[float, ...]]":
    """`FILE:0,0.5,1` -> the file and its strengths; `FILE:0.8` and `FILE` have one."""
    from diffusion_lora.generate.request import parse_lora_argument

    file, _, strengths = text.rpartition(":")
    if "," not in strengths:
        use = _found(parse_lora_argument(text))
        return use, (use.strength,)
    try:
        return _found(parse_lora_argument(file)), tuple(float(strength) for strength in strengths.split(","))
    except ValueError:
        raise PromptError(f"--lora {text!r}: {strengths!r} is not a list of numbers, as in 0,0.5,1") from None


def _found(use: "LoraUse") -> "LoraUse":
    """What is no path of a file may be the name of a LoRA in the workspace. Raises WorkspaceError."""
    from diffusion_lora.adopted import lora_path
    from diffusion_lora.workspace import Workspace

    return replace(use, path=lora_path(Workspace.at(), use.path, beside=Path()))


def _axes(prompts: list[str], swept: "list[tuple[LoraUse, tuple[float, ...]]]") -> "tuple[Axis, Axis]":
    """Rows and columns of a grid: prompts x strengths for one swept adapter, strengths x strengths for two."""
    from diffusion_lora.generate.axis import prompt_axis, strength_axis

    if len(swept) == 1:
        return prompt_axis(prompts), strength_axis(*swept[0])
    if len(swept) == 2 and len(prompts) == 1:
        return strength_axis(*swept[1]), strength_axis(*swept[0])
    if len(swept) == 2:
        raise PromptError(f"two lists of strengths fill the sheet: give one prompt, not {len(prompts)}")
    raise PromptError(f"{len(swept)} LoRAs have a list of strengths: give one or two, as in FILE:0,0.5,1")


def _lora_finder(folders: list[Path] | None) -> "Find":
    """Where tags look for their LoRAs: in the folders given, else in the workspace and what it adopted."""
    from diffusion_lora.adopted import find_model
    from diffusion_lora.generate.tags import in_folders
    from diffusion_lora.workspace import Workspace

    return in_folders(folders) if folders else lambda name: find_model(Workspace.at(), "loras", name).path


def _embeddings() -> Path:
    from diffusion_lora.workspace import Workspace

    return Workspace.at().embeddings


def _grid_axes(
    prompts: list[str],
    swept: "list[tuple[LoraUse, tuple[float, ...]]]",
    rows: str | None,
    columns: str | None,
) -> "tuple[Axis, Axis]":
    """The axes asked for by name; else those that prompts and lists of strengths mean."""
    from diffusion_lora.generate.axes import parse_axis
    from diffusion_lora.generate.axis import prompt_axis, strength_axis

    if rows is None and columns is None:
        return _axes(prompts, swept)
    if len(swept) > 1 or (swept and rows and columns) or (rows and len(prompts) > 1):
        raise PromptError("a sheet has two axes, and more were asked for: give one value to all but two")
    along = None if columns is None else parse_axis(columns, _found)
    down = parse_axis(rows, _found) if rows else prompt_axis(prompts) if along is None or not swept else None
    return down or strength_axis(*swept[0]), along or (strength_axis(*swept[0]) if swept else prompt_axis(prompts))


def _save_sheet_page(folder: Path, sheet: "Sheet", rows: "Axis", columns: "Axis", title: str, subtitle: str) -> Path:
    from diffusion_lora.faces.sheet_page import sheet_page
    from diffusion_lora.generate.grid import cell_name
    from diffusion_lora.generate.infotext import write_infotext
    from diffusion_lora.run import write_atomically

    cells = [
        [(cell_name(row, column), write_infotext(picture.request)) for column, picture in enumerate(pictures)]
        for row, pictures in enumerate(sheet.pictures)
    ]
    page = sheet_page(
        cells, row_labels=rows.labels, column_labels=columns.labels, corner=f"{rows.title} \\ {columns.title}",
        title=title, subtitle=subtitle,
    )  # fmt: skip
    write_atomically(folder / "index.html", page.encode())
    return folder / "index.html"


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
