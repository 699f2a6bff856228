"""The demo: pictures described, a style and a subject trained on the embedded base, three sheets, and what to try next.

It only composes what the other rooms offer, with the shipped presets as they are; everything it prints can be done by
the commands it names at the end.
"""

import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lora.config import load_train_config, shipped
from diffusion_lora.data.folder import scan_folder
from diffusion_lora.errors import OutputError
from diffusion_lora.events import read_events
from diffusion_lora.faces.page import AdapterFacts, draw_page, save_page
from diffusion_lora.faces.progress import duration, watch_drawing, watch_training
from diffusion_lora.faces.words import told_words
from diffusion_lora.images import open_image
from diffusion_lora.run import Run, cannot_write

if TYPE_CHECKING:
    from rich.console import Console

STYLE_PROMPTS = (
    "a red cat on a sky background",
    "a big pink house on a snow background",
    "a yellow boat on a beach background",
    "a green tree and a pink flower on a meadow background",
    "a purple umbrella on a night background",
)
STYLE_STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
MIX_STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
MIX_BACKGROUND = "on a meadow background"
_PICTURES_ON_THE_PAGE = 6
_SEED = 1
_CAPTIONS_SHOWN = 4
_STYLE_RULE = r"regex: ^(.*?)(?:, \w+ style)?$ => \1, blueprint style"
"""The captioner has no word for a style that the base does not know: the trigger word takes its place."""
_QUICK = ("train.steps=3", "train.batch_size=2")


def run_demo(out: Path | None, *, quick: bool, device: str, console: "Console") -> None:
    """Train, draw, tell. `quick` takes a few steps only: it shows that everything works, not how well.

    Raises UserError as training and drawing do; OutputError if the folder exists already and holds something.
    """
    started_s = time.monotonic()
    folder = _new_folder(out)

    def say(text: str = "") -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    say("1 of 4: describing pictures")
    _caption(folder / "pictures", device, console, say)
    say("\n2 of 4: learning a style")
    style = _train("pocket-style", folder / "style", quick, device, console)
    say("\n3 of 4: learning a subject")
    subject = _train("pocket-subject", folder / "subject", quick, device, console)
    say("\n4 of 4: drawing the sheets")
    sheets = _draw_sheets(folder, style, subject, quick, device, console)
    for path, what in sheets:
        say(f"  {_shown(path)}  {what}")
    memory = peak_memory_bytes()
    told = f", {memory / 2**30:.1f} GiB of memory at the peak" if memory else ""
    say(f"\ndone in {duration(time.monotonic() - started_s)}{told}")
    say(f"\n{_what_next(style, subject)}\n\nThe words pocket knows:\n{told_words()}")


def peak_memory_bytes() -> int | None:
    """The most memory this process has held so far; None where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _new_folder(out: Path | None) -> Path:
    """The folder asked for, or the first of demo, demo-2, ... that is free."""
    if out is not None:
        if out.is_dir() and any(out.iterdir()):
            raise OutputError(f"{out} is not empty: name another folder with --out, or leave --out away")
        return out
    number = 1
    while (folder := Path("demo" if number == 1 else f"demo-{number}")).exists():
        number += 1
    return folder


def _caption(folder: Path, device: str, console: "Console", say: Callable[[str], None]) -> None:
    """Describe a copy of the style set's pictures, and show a few captions beside those that came with them."""
    from diffusion_lora.caption.carry_out import carry_out_run
    from diffusion_lora.caption_config import caption_config
    from diffusion_lora.caption_run import CaptionRun
    from diffusion_lora.data.edits import HISTORY
    from diffusion_lora.faces.captioning import watch_captioning
    from diffusion_lora.jobs.launch import run_together

    pictures = sorted(shipped("datasets", "pocket-style").glob("*.png"))
    try:
        folder.mkdir(parents=True)
        for picture in pictures:
            shutil.copyfile(picture, folder / picture.name)
    except OSError as error:
        raise cannot_write(folder, error) from error
    settings = {"folder": str(folder.absolute()), "rules": [_STYLE_RULE], "device": device}
    run = CaptionRun.beside(folder.absolute() / HISTORY / "runs", caption_config(settings, "the demo"))
    with watch_captioning(console) as progress:
        carry_out_run(run, run_together, progress)
    for picture in pictures[:: len(pictures) // _CAPTIONS_SHOWN]:
        came_with = picture.with_suffix(".txt").read_text(encoding="utf-8").strip()
        said = (folder / picture.name).with_suffix(".txt").read_text(encoding="utf-8").strip()
        say(f"  {picture.name}: {said}")
        say(f"    came with: {came_with}")


def _train(preset: str, folder: Path, quick: bool, device: str, console: "Console") -> Run:
    from diffusion_lora.train.trainer import train

    overrides = [f"train.device={device}", *(_QUICK if quick else ())]
    run = Run.create(folder, load_train_config(shipped("configs", preset), overrides))
    with watch_training(console) as progress:
        train(run, run.config, resume=False, progress=progress)
    return run


def _draw_sheets(
    folder: Path, style: Run, subject: Run, quick: bool, device: str, console: "Console"
) -> list[tuple[Path, str]]:
    """The three sheets, each with what it shows."""
    from diffusion_lora.families.family import load_base
    from diffusion_lora.generate.axis import prompt_axis, strength_axis
    from diffusion_lora.generate.engine import Engine
    from diffusion_lora.generate.grid import grid
    from diffusion_lora.generate.request import LoraUse, Request

    engine = Engine(load_base(style.config.model.base, device=device))
    request = Request(seed=_SEED, steps=2 if quick else 20)
    style_use = LoraUse(style.config.output.name, style.adapter_path)
    subject_use = LoraUse(subject.config.output.name, subject.adapter_path)
    prompts = [_joined(prompt, _word(style)) for prompt in STYLE_PROMPTS]
    both = _joined(f"{_word(subject)} {MIX_BACKGROUND}", _word(style))
    with watch_drawing(console, "style") as progress:
        strengths = grid(
            engine,
            request,
            rows=prompt_axis(prompts[:1] if quick else prompts),
            columns=strength_axis(style_use, STYLE_STRENGTHS, "strength of the style"),
            title="One style, from nothing to too much",
            subtitle=f"Every picture of a row has the same seed; 0 is {engine.model.name} alone.",
            progress=progress,
        )
    with watch_drawing(console, "style x subject") as progress:
        mix = grid(
            engine,
            replace(request, prompt=both),
            rows=strength_axis(subject_use, MIX_STRENGTHS[::4] if quick else MIX_STRENGTHS, "strength of the subject"),
            columns=strength_axis(style_use, MIX_STRENGTHS, "strength of the style"),
            title="Two adapters, a mix for every picture",
            subtitle=f"“{both}”, drawn as mixed batches: one seed, every cell its own gates.",
            progress=progress,
        )
    facts = [_facts(style), _facts(subject)]
    seconds = duration(sum(fact.train_s for fact in facts))
    page = draw_page("What was trained", f"Two adapters on {engine.model.name}, {seconds} of training in all.", facts)
    sheets = (
        ("style-strengths.png", strengths.image, "prompts x strength of the style"),
        ("style-x-subject.png", mix.image, "strength of the style x strength of the subject"),
        ("adapters.png", page, "what was trained: files, sizes, loss curves"),
    )
    for name, image, _ in sheets:
        save_page(image, folder / name)
    return [(folder / name, what) for name, _, what in sheets]


def _facts(run: Run) -> AdapterFacts:
    events = read_events(run.folder)
    start = next(event for event in events if event["kind"] == "start")
    end = next(event for event in events if event["kind"] == "end")
    config = run.config
    items = scan_folder(Path(config.dataset.path), caption=config.dataset.caption, captions_required=False)
    return AdapterFacts(
        name=config.output.name,
        file=_shown(run.adapter_path),
        rank=config.lora.rank,
        alpha=config.lora.alpha,
        layers=start["layers"],
        parameters=start["parameters"],
        share_percent=start["share"],
        size_bytes=run.adapter_path.stat().st_size,
        train_s=end["seconds"],
        trigger_word=config.output.trigger_word,
        losses=[(event["step"], event["loss"]) for event in events if event["kind"] == "step"],
        pictures=[open_image(item.path) for item in items[:_PICTURES_ON_THE_PAGE]],
    )


def _what_next(style: Run, subject: Run) -> str:
    style_file, subject_file = (shlex.quote(_shown(run.adapter_path)) for run in (style, subject))
    alone = shlex.quote(_joined("a big green fish on a sunset background", _word(style)))
    both = shlex.quote(_joined(f"{_word(subject)} on a beach background", _word(style)))
    return "\n".join(
        (
            "Try next:",
            f"  diffusion-lora generate {alone} --lora {style_file}:0.8 --count 4",
            f"  diffusion-lora generate {both} --lora {style_file}:0.8 --lora {subject_file}:0.8",
            f"  diffusion-lora grid {both} --lora {style_file}:-1,0,1,2 --lora {subject_file}:0,1",
            "  diffusion-lora train pocket-style --set dataset.path=FOLDER --set output.name=NAME",
        )
    )


def _word(run: Run) -> str:
    """What calls up a trained adapter in a prompt."""
    return run.config.output.trigger_word or ""


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _shown(path: Path) -> str:
    """A path as somebody in this folder would type it."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(absolute)
