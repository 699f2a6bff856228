"""The Train tab: pictures and their captions, six settings, and the run as it goes.

What a setting means is `config`'s, what a run tells is `runs`', how it is drawn as HTML is `runview`'s; here they are
put on the page and clicks become calls.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import gradio as gr

from diffusion_lora.config import (
    TrainConfig,
    load_train_config,
    parse_train_config,
    setting_differences,
    shipped,
    shipped_names,
    to_toml,
)
from diffusion_lora.data.folder import scan_folder
from diffusion_lora.errors import ConfigError, UserError
from diffusion_lora.families.pocket.words import pocket_words
from diffusion_lora.inbox import ask
from diffusion_lora.run import Run
from diffusion_lora.workspace import Workspace, check_name
from webui import runview, sets, settings, setview, trainhelp, who
from webui.component import component
from webui.context import Context, Links
from webui.notices import tell, warn
from webui.owners import note_owner
from webui.runs import Story
from webui.texts import KINDS, SETTINGS, TRAIN
from webui.theme import asset
from webui.words import count, duration, sentence

_RANKS = (4, 8, 16, 32, 64)
_COLUMNS = 6
"""About how many times a run is previewed when nobody said how often."""


@dataclass(frozen=True)
class Form:
    """The fields of the form, as they come from the page and in its order."""

    base: str
    dataset: str
    preset: str
    name: str
    trigger: str
    rank: float | None
    steps: float | None
    preview_every: str | None
    checkpoint_every: str | None
    batch_size: float | None
    lr: float | None
    seed: float | None
    more: dict[str, Any] | None
    """The settings beyond these: {"changed": {key: text}}."""


def train_tab(context: Context, links: Links) -> None:
    """Put the tab's parts on the page."""
    presets = _presets(context.base)
    preset = next(iter(presets))
    first = presets[preset]
    start = sets.open_set(first.dataset.path)

    with gr.Row(elem_id="train-page", equal_height=False):
        with gr.Column(elem_id="train-form"):
            thumbs = gr.HTML(
                setview.thumbs(start, links.thumbnails),
                elem_id="train-thumbs",
                apply_default_css=False,
                js_on_load=asset("thumbs.js"),
            )
            with gr.Row(elem_id="train-set"):
                dataset = gr.Dropdown(
                    sets.choices(context.workspace),
                    value=str(start.folder),
                    label="Set, or the path of a folder",
                    allow_custom_value=True,
                    elem_id="train-dataset",
                    scale=1,
                    min_width=120,
                )
                upload = gr.UploadButton(
                    "Upload", file_count="multiple", size="md", elem_id="train-upload", scale=0, min_width=84
                )
            kind = gr.Radio(
                _labels(presets),
                value=preset,
                label="What should it learn?",
                elem_id="train-preset",
                elem_classes="segments",
            )
            purpose = gr.HTML(_purpose(first), elem_id="train-purpose", apply_default_css=False)
            with gr.Row():
                name = gr.Textbox(first.output.name, label="Name", elem_id="train-name", min_width=100, max_lines=1)
                trigger = gr.Textbox(
                    first.output.trigger_word or "",
                    label="Trigger word",
                    placeholder="none",
                    elem_id="train-trigger",
                    min_width=100,
                    max_lines=1,
                )
            with gr.Row():
                base = gr.Dropdown(
                    _bases(context),
                    value=context.base,
                    label="Base",
                    allow_custom_value=True,
                    elem_id="train-base",
                    min_width=100,
                )
                steps = gr.Number(first.train.steps, label="Steps", precision=0, elem_id="train-steps", min_width=100)
            pace = gr.HTML("", elem_id="train-pace", apply_default_css=False)
            rank = gr.Radio(
                list(_RANKS), value=first.lora.rank, label="Rank", elem_id="train-rank", elem_classes="segments"
            )
            with gr.Row(elem_id="train-advice"):
                advice = gr.HTML("", elem_id="train-advice-told", apply_default_css=False)
                advise = gr.Button(TRAIN["advise"], size="sm", elem_classes="link", scale=0, elem_id="train-advise")
            with gr.Accordion("Advanced", open=False, elem_classes="fold", elem_id="train-advanced"):
                with gr.Row():
                    # Not number fields: Gradio shows an empty one as 0, which would mean never.
                    preview_every = gr.Textbox(
                        "", label="Preview every … steps", placeholder="about six times", max_lines=1, min_width=100
                    )
                    checkpoint_every = gr.Textbox(
                        "", label="Save every … steps", placeholder="as previews", max_lines=1, min_width=100
                    )
                with gr.Row():
                    batch_size = gr.Number(first.train.batch_size, label="Pictures a step", precision=0, min_width=80)
                    lr = gr.Number(first.optimizer.lr, label="Learning rate", step=0.0001, min_width=80)
                    seed = gr.Number(first.train.seed, label="Seed", precision=0, min_width=80)
                more = component(
                    "settings",
                    {"changed": {}, "preset": settings.values_of(first)},
                    elem_id="train-more",
                    facts={"declared": settings.declared(), "texts": dict(SETTINGS)},
                )
            with gr.Accordion(
                "Words that pocket knows", open=False, elem_classes="fold", elem_id="train-words"
            ) as words:
                gr.HTML(setview.words(pocket_words()), apply_default_css=False)
            with gr.Column(elem_id="train-go"):
                note = gr.HTML(setview.form_note(start), elem_id="train-note", apply_default_css=False)
                with gr.Row():
                    go = gr.Button("Train", variant="primary", elem_id="train-start", scale=2)
                    check = gr.Button(TRAIN["check"], elem_id="train-check", min_width=90)
                with gr.Row(elem_id="train-copies"):
                    as_command = gr.Button("Copy as command", size="sm", elem_classes="quiet", min_width=80)
                    as_toml = gr.Button("Copy as TOML", size="sm", elem_classes="quiet", min_width=80)

        with gr.Column(elem_id="train-side"):
            with gr.Column(elem_id="train-run", visible=False) as run_view:
                with gr.Row(elem_id="train-head"):
                    head = gr.HTML("", elem_id="train-figures", apply_default_css=False)
                    with gr.Row(elem_id="train-actions"):
                        sample = gr.Button(
                            "Sample now", size="md", visible=False, scale=0, min_width=0, elem_id="train-sample"
                        )
                        pause = gr.Button(
                            "Pause", size="md", visible=False, scale=0, min_width=0, elem_id="train-pause"
                        )
                        stop = gr.Button(
                            "Stop and save", size="md", visible=False, scale=0, min_width=0, elem_id="train-stop"
                        )
                        again = gr.Button(
                            TRAIN["again"], size="md", visible=False, scale=0, min_width=0, elem_id="train-again"
                        )
                        longer = gr.Button(
                            TRAIN["extend"], size="md", visible=False, scale=0, min_width=0, elem_id="train-extend"
                        )
                        resume = gr.Button(
                            "Resume", size="md", visible=False, scale=0, min_width=0, elem_id="train-resume"
                        )
                with gr.Row(elem_id="train-middle"):
                    chart = gr.HTML("", elem_id="train-chart", apply_default_css=False)
                    health = gr.HTML("", elem_id="train-health", apply_default_css=False)
                with gr.Column(elem_id="train-below"):
                    with gr.Row(elem_id="train-below-head"):
                        gr.HTML('<span class="caption-title">As it learns</span>', apply_default_css=False)
                        open_it = gr.Button(
                            "Open in Generate",
                            size="sm",
                            visible=False,
                            scale=0,
                            elem_id="train-open",
                            elem_classes="link",
                        )
                    previews = gr.HTML("", elem_id="train-previews", apply_default_css=False)
            with gr.Column(elem_id="train-captions", visible=False) as captions_view:
                with gr.Row(elem_id="train-captions-head"):
                    captions_title = gr.HTML(setview.set_title(start), apply_default_css=False)
                    back = gr.Button(
                        "Back to the run", size="md", visible=False, scale=0, min_width=0, elem_id="train-back"
                    )
                cards = gr.HTML(
                    setview.cards(start, links.thumbnails),
                    elem_id="train-pictures",
                    apply_default_css=False,
                    js_on_load=asset("captions.js"),
                    server_functions=[_caption_saver(context.workspace)],
                )

    # Whether the right half shows the run or the captions; empty: the run, as soon as there is one.
    view = gr.Textbox("", visible="hidden")
    # What the form filled in by itself: only that is replaced when another set is chosen.
    suggested = gr.State((first.output.name, first.output.trigger_word or ""))
    # The chosen preset once more: Gradio refuses the radio's own value while the choices of another base replace its.
    taught = gr.State(preset)
    to_copy = gr.Textbox(visible="hidden")
    form = [
        base, dataset, kind, name, trigger, rank, steps, preview_every, checkpoint_every, batch_size, lr, seed, more,
    ]  # fmt: skip
    assert len(form) == len(fields(Form))
    quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    telling: dict[str, Any] = {**quick, "queue": True, "concurrency_limit": None}

    # --- the form -----------------------------------------------------------------------------------------------------

    def set_for(preset: str, folder: str) -> Any:
        """The set that a preset was shipped with, in place of another shipped one or of none."""
        shown, other = sets.open_set(folder), sets.open_set(_preset(preset).dataset.path)
        return str(other.folder) if (shown.is_shipped or not shown.items) and other.items else gr.skip()

    def choose_base(chosen: str, current: str, folder: str) -> tuple[Any, Any, Any]:
        offered = _presets(chosen)
        value = _alike(current, offered)
        return gr.Radio(_labels(offered), value=value), gr.Accordion(visible=chosen == "pocket"), set_for(value, folder)

    base.change(choose_base, [base, taught, dataset], [kind, words, dataset], **quick)

    def choose_preset(chosen: str, kept: dict[str, Any] | None) -> list[Any]:
        config = _preset(chosen)
        return [
            config.lora.rank,
            config.train.steps,
            config.train.batch_size,
            config.optimizer.lr,
            {"changed": (kept or {}).get("changed", {}), "preset": settings.values_of(config)},
            _purpose(config),
            chosen,
        ]

    kind.change(choose_preset, [kind, more], [rank, steps, batch_size, lr, more, purpose, taught], **quick)
    # Only a click brings its set along: a set brings its preset, and the two would chase each other.
    kind.input(set_for, [kind, dataset], [dataset], **quick)

    def choose_set(
        folder: str, preset: str, name: str, trigger: str, before: tuple[str, str], base: str
    ) -> list[Any]:
        found = sets.open_set(folder)
        made_for = _made_for(found, preset)
        new = before
        if made_for:
            output = _preset(made_for).output
            new = (output.name, output.trigger_word or "")
        elif found.items:
            new = (found.name, sets.common_words(found.items))
        return [
            setview.thumbs(found, links.thumbnails),
            setview.set_title(found),
            setview.cards(found, links.thumbnails),
            setview.form_note(found),
            _alike(made_for, _presets(base)) if made_for else gr.skip(),
            new[0] if name in ("", before[0]) else gr.skip(),
            new[1] if trigger in ("", before[1]) else gr.skip(),
            new,
        ]

    chosen_set = [dataset, kind, name, trigger, suggested, base]
    shows_set = [thumbs, captions_title, cards, note, kind, name, trigger, suggested]
    dataset.change(choose_set, chosen_set, shows_set, **quick)

    def train_on(folder: str) -> tuple[Any, Any]:
        if not folder:
            return gr.skip(), gr.skip()
        return "", gr.Dropdown(sets.choices(context.workspace), value=folder)

    links.train_on.change(train_on, links.train_on, [links.train_on, dataset], **quick)

    def take(files: list[str] | None, folder: str) -> list[Any]:
        try:
            taken = sets.take_upload(
                context.workspace, [Path(file) for file in files or []], sets.open_set(folder).folder
            )
        except UserError as error:
            warn(sentence(str(error)))
            return [gr.skip(), gr.skip()]
        finally:  # what Gradio had laid down for us
            for file in files or []:
                Path(file).unlink(missing_ok=True)
        told = f"{count(taken.added, 'picture')} added to {taken.folder.name}."
        tell(" ".join([told, *(f"Left out: {reason}." for reason in taken.left_out)]))
        # The same folder again is no change to a dropdown: its pictures are shown by the second output.
        return [gr.Dropdown(sets.choices(context.workspace), value=str(taken.folder)), "captions"]

    upload.upload(take, [upload, dataset], [dataset, view], **telling).then(
        choose_set, chosen_set, shows_set, **quick
    ).then(lambda: (gr.Column(visible=False), gr.Column(visible=True)), None, [run_view, captions_view], **quick)

    def copied(event: gr.EventData) -> Any:
        return gr.Dropdown(sets.choices(context.workspace), value=str(event.folder))

    cards.select(copied, None, dataset, **quick)

    # --- the two views of the right half ------------------------------------------------------------------------------

    def shows_captions(view: str, run: str) -> bool:
        return view == "captions" or (not view and links.watch.story(run) is None)

    def to_captions() -> tuple[str, Any, Any]:
        return "captions", gr.Column(visible=False), gr.Column(visible=True)

    def to_run() -> tuple[str, Any, Any]:
        return "run", gr.Column(visible=True), gr.Column(visible=False)

    thumbs.click(to_captions, None, [view, run_view, captions_view], **quick)
    back.click(to_run, None, [view, run_view, captions_view], **quick)
    links.shown_run.change(to_run, None, [view, run_view, captions_view], **quick)

    # --- before it is begun -------------------------------------------------------------------------------------------

    def ask_rank(folder: str, base: str) -> Iterator[tuple[Any, Any]]:
        yield setview.hint(TRAIN["advising"]), gr.skip()
        try:
            found, told = trainhelp.rank_advice(context.workspace, str(sets.open_set(folder).folder), base or "pocket")
        except UserError as error:
            yield setview.hint(sentence(str(error))), gr.skip()
            return
        yield setview.hint(told), min(_RANKS, key=lambda offered: (offered < found, offered))

    advise.click(ask_rank, [dataset, base], [advice, rank], **telling)

    def check_first(*values: Any) -> Iterator[str]:
        found = sets.open_set(str(values[1] or ""))
        yield setview.told("", TRAIN["checking"])
        try:
            yield setview.told("good", trainhelp.preflight(context.workspace, _settle(context, Form(*values))))
        except UserError as error:
            yield setview.form_note(found, sentence(str(error)))

    check.click(check_first, form, note, **telling)

    def filled(config: TrainConfig, preset: str) -> list[Any]:
        """The form's fields as a configuration has them: in the order of `form`, but for base, set and preset."""
        more_of = {"changed": settings.changes(_preset(preset), config), "preset": settings.values_of(_preset(preset))}
        return [
            context.workspace.free_run_name(config.output.name),
            config.output.trigger_word or "",
            config.lora.rank if config.lora.rank in _RANKS else gr.skip(),
            config.train.steps,
            str(config.preview.every) if config.preview.every else "",
            str(config.checkpoint.every) if config.checkpoint.every else "",
            config.train.batch_size,
            config.optimizer.lr,
            config.train.seed,
            more_of,
        ]

    def like(lora: str, folder: str, base: str, preset: str) -> list[Any]:
        if not lora:
            return [gr.skip()] * (len(form) - 1)
        found = sets.open_set(folder)
        try:
            config, lost = trainhelp.config_like(context.workspace, lora, str(found.folder), base or "pocket")
        except UserError as error:
            return ["", setview.form_note(found, sentence(str(error))), *[gr.skip()] * (len(form) - 3)]
        told = " ".join([TRAIN["liked"].format(name=lora), *(sentence(line) for line in lost[:4])])
        return ["", setview.told("good", told), *filled(config, preset)]

    links.like.change(like, [links.like, dataset, base, kind], [links.like, note, *form[3:]], **telling)

    # --- starting -----------------------------------------------------------------------------------------------------

    def start_run(request: gr.Request, shown: str, *values: Any) -> list[Any]:
        with who.acting_for(request):
            return started(shown, *values)

    def started(shown: str, *values: Any) -> list[Any]:
        found = sets.open_set(str(values[1] or ""))
        try:
            config = _settle(context, Form(*values))
            run = context.workspace.free_run_name(config.output.name)
            config = _named(config, run)
            made = Run.create(context.workspace.run_folder(run), config)
            note_owner(made.folder, who.is_asking())
            context.queue.add(run)
        except UserError as error:
            return [shown, setview.form_note(found, sentence(str(error)))]
        links.watch.refresh()
        if run != str(values[3]).strip():
            tell(f"A run of that name is there already: this one is {run}.")
        return [run, setview.form_note(found)]

    go.click(start_run, [links.shown_run, *form], [links.shown_run, note], **telling)

    def copy(words: Callable[[Context, Form], str]) -> Callable[..., list[Any]]:
        def write(*values: Any) -> list[Any]:
            found = sets.open_set(str(values[1] or ""))
            try:
                text = words(context, Form(*values))
            except UserError as error:
                return ["", setview.form_note(found, sentence(str(error)))]
            tell("Copied.")
            return [text, setview.form_note(found)]

        return write

    for button, words_of in ((as_command, _command), (as_toml, _toml)):
        button.click(copy(words_of), form, [to_copy, note], **telling).then(
            None, to_copy, None, js="(text) => window.desk.copy(text)"
        )

    # --- the run ------------------------------------------------------------------------------------------------------

    def acting(act: Callable[[str], Any], told: str) -> Callable[[str, gr.Request], None]:
        def do(run: str, request: gr.Request) -> None:
            with who.acting_for(request):
                story = links.watch.story(run)
            if story is None:
                return
            try:
                act(story.name)
            except UserError as error:
                warn(sentence(str(error)))
            else:
                links.watch.refresh()
                if told:
                    tell(f"{story.name}: {told}")

        return do

    def use_settings(run: str, preset: str) -> list[Any]:
        story = links.watch.story(run)
        return [gr.skip()] * (len(form) - 3) if story is None else filled(story.config, preset)

    again.click(use_settings, [links.shown_run, kind], form[3:], **quick)

    def extend_run(run: str) -> None:
        trainhelp.extend(context.workspace, run)
        context.queue.resume(run)

    queue, runs = context.queue, context.workspace.run_folder
    for button, act, told in (
        (stop, queue.cancel, "it saves after this step, and stops."),
        (pause, queue.pause, "it saves after this step, and lets go of the device."),
        (resume, queue.resume, ""),
        (sample, lambda run: ask(runs(run), "sample"), "pictures come after this step."),
        (longer, extend_run, "it goes on for half as long again."),
    ):
        button.click(acting(act, told), links.shown_run, None, **telling)

    def open_adapter(run: str) -> tuple[Any, Any]:
        story = links.watch.story(run)
        if story is None or story.adapter is None:
            return gr.skip(), gr.skip()
        return story.adapter, gr.Tabs(selected="generate")

    open_it.click(open_adapter, links.shown_run, [links.open_adapter, links.tabs], **quick)

    # --- what moves by itself -----------------------------------------------------------------------------------------

    def story_of(draw: Callable[[Story | None], Any]) -> Callable[[str], Any]:
        return lambda run: draw(links.watch.story(run))

    def shown_when(allowed: Callable[[Story], bool], label: Callable[[Story], str]) -> Callable[[str], Any]:
        def read(run: str) -> Any:
            story = links.watch.story(run)
            if story is None or not allowed(story):
                return gr.update(visible=False)
            return gr.update(visible=True, value=label(story))

        return read

    for part, draw in (
        (head, runview.figures),
        (chart, runview.chart),
        (health, runview.health),
        (previews, lambda story: runview.previews(story, context.workspace)),
    ):
        links.pulse.feed(part, story_of(draw), [links.shown_run])
    running = "running"
    for button, allowed, label in (
        (sample, lambda story: story.state == running and bool(story.config.preview.prompts), lambda _: "Sample now"),
        (pause, lambda story: story.state == running, lambda _: "Pause"),
        (
            stop,
            lambda story: story.is_under_way,
            lambda story: "Stop and save" if story.state == running else "Cancel",
        ),
        (resume, lambda story: story.state in ("paused", "stopped", "failed"), runview.resume_label),
        (longer, lambda story: story.state == "done", lambda _: TRAIN["extend"]),
        (again, lambda story: not story.is_under_way, lambda _: TRAIN["again"]),
        (open_it, lambda story: story.adapter is not None, lambda _: "Open in Generate"),
    ):
        links.pulse.feed(button, shown_when(allowed, label), [links.shown_run])
    links.pulse.feed(
        run_view, lambda view, run: gr.update(visible=not shows_captions(view, run)), [view, links.shown_run]
    )
    links.pulse.feed(
        captions_view, lambda view, run: gr.update(visible=shows_captions(view, run)), [view, links.shown_run]
    )
    links.pulse.feed(back, lambda run: gr.update(visible=links.watch.story(run) is not None), [links.shown_run])
    links.pulse.feed(pace, lambda steps: _pace(links.watch.story(""), steps), [steps])


# --- presets and bases ------------------------------------------------------------------------------------------------


def _presets(base: str) -> dict[str, TrainConfig]:
    """The shipped configs that fit a base: pocket's own for pocket, else the others; by family, then kind."""
    every = {name: _preset(name) for name in shipped_names("configs")}
    kinds = [*KINDS, ""]
    order = sorted(every, key=lambda name: (_family(name), kinds.index(every[name].output.kind), name))
    return {name: every[name] for name in order if (every[name].model.base == "pocket") == (base == "pocket")}


def _preset(name: str) -> TrainConfig:
    return load_train_config(shipped("configs", name))


def _made_for(found: sets.PictureSet, preset: str) -> str:
    """The preset that a set was shipped with: the chosen one if it is that, else another; nothing for any other set."""
    names = [preset, *(name for name in shipped_names("configs") if name != preset)]
    return next((name for name in names if sets.open_set(_preset(name).dataset.path).folder == found.folder), "")


def _family(preset: str) -> str:
    return preset.rpartition("-")[0]


def _alike(preset: str, offered: dict[str, TrainConfig]) -> str:
    """This preset if it is offered, else the first offered one that teaches the same kind, else the first."""
    if preset in offered:
        return preset
    kind = _preset(preset).output.kind
    return next((name for name, config in offered.items() if config.output.kind == kind), next(iter(offered)))


def _labels(presets: dict[str, TrainConfig]) -> list[tuple[str, str]]:
    """ "Style", "Subject" and so on of the first family; whole names of any other."""
    first = _family(next(iter(presets)))
    return [
        (KINDS[config.output.kind][0] if _family(name) == first else name, name) for name, config in presets.items()
    ]


def _purpose(preset: TrainConfig) -> str:
    return setview.hint(KINDS[preset.output.kind][1] if preset.output.kind else "")


def _bases(context: Context) -> list[str]:
    folders = sorted(str(entry) for entry in context.workspace.bases.iterdir() if entry.is_dir())
    return list(dict.fromkeys(["pocket", context.base, *folders]))


# --- from the form to a run -------------------------------------------------------------------------------------------


def _settle(context: Context, form: Form) -> TrainConfig:
    """The configuration the form stands for. Raises UserError with a sentence about the field."""
    preset = _preset(form.preset)
    name = check_name((form.name or "").strip())
    trigger = (form.trigger or "").strip()
    steps = _whole(form.steps, "the number of steps", least=1)
    every = _interval(form.preview_every, "previews", otherwise=_nice(steps / _COLUMNS))
    saved = _interval(form.checkpoint_every, "saving", otherwise=every)
    found = sets.open_set(form.dataset or "")
    if found.problem:
        raise ConfigError(found.problem)
    items = scan_folder(found.folder, captions_required=preset.dataset.captions_required)
    own = found.folder != sets.open_set(preset.dataset.path).folder or trigger != (preset.output.trigger_word or "")
    prompts = (
        tuple(dict.fromkeys(item.caption for item in items if item.caption))[:2] if own else preset.preview.prompts
    )
    changed: dict[str, dict[str, Any]] = {
        "model": {"base": (form.base or "").strip() or "pocket"},
        "dataset": {"path": str(found.folder)},
        "lora": {"rank": int(form.rank or preset.lora.rank), "alpha": float(form.rank or preset.lora.alpha)},
        "train": {
            "steps": steps,
            "batch_size": _whole(form.batch_size, "pictures a step", least=1),
            "seed": _whole(form.seed, "the seed"),
            "device": context.device,
        },
        "optimizer": {"lr": float(form.lr if form.lr is not None else preset.optimizer.lr)},
        "checkpoint": {"every": saved},
        "preview": {"every": every, "prompts": prompts},
        "output": {"name": name, "trigger_word": trigger or None, "comment": None if own else preset.output.comment},
    }
    tables = {table: getattr(preset, table).model_copy(update=update) for table, update in changed.items()}
    # Through text and back: whatever the fields held, what is written into the folder is a configuration.
    text, beyond = to_toml(preset.model_copy(update=tables)), settings.overrides((form.more or {}).get("changed"))
    return parse_train_config(text, source="the form", overrides=beyond)


def _named(config: TrainConfig, name: str) -> TrainConfig:
    return config.model_copy(update={"output": config.output.model_copy(update={"name": name})})


def _whole(value: float | None, what: str, *, least: int = 0) -> int:
    if value is None or value != int(value) or value < least:
        raise ConfigError(f"{what} is {'empty' if value is None else value}: give a whole number from {least}")
    return int(value)


def _interval(text: str | None, what: str, *, otherwise: int) -> int:
    """Steps between two of something; 0 is never, an empty field leaves the choice to us."""
    given = (text or "").strip()
    if not given.isdecimal() and given:
        raise ConfigError(f"{what} every {given!r} steps is not understood: give a whole number, or 0 for never")
    return int(given) if given else otherwise


def _nice(value: float) -> int:
    """A round number near a value: 10, 20, 50, 100, ... Not below 10: a preview takes as long as some steps."""
    candidates = [factor * 10**power for power in range(1, 8) for factor in (1, 2, 5)]
    return min(candidates, key=lambda number: abs(number - value))


def _command(context: Context, form: Form) -> str:
    """The command that makes the same run, from any folder."""
    config = _settle(context, form)
    parts = ["diffusion-lora", "train", form.preset]
    for key, (_, new) in setting_differences(_preset(form.preset), config).items():
        value = list(new) if isinstance(new, tuple) else "" if new is None else new
        parts += ["--set", f"{key}={json.dumps(value, ensure_ascii=False)}"]
    parts += ["--out", str(context.workspace.run_folder(context.workspace.free_run_name(config.output.name)))]
    return shlex.join(parts)


def _toml(context: Context, form: Form) -> str:
    return to_toml(_settle(context, form))


def _caption_saver(workspace: Workspace) -> Callable[[list[str]], dict[str, str]]:
    def save_caption(arguments: list[str]) -> dict[str, str]:
        folder, picture, caption = arguments
        try:
            return {"folder": str(sets.save_caption(workspace, Path(folder), picture, caption)), "problem": ""}
        except UserError as error:
            return {"folder": folder, "problem": sentence(str(error))}

    return save_caption


def _pace(story: Story | None, steps: float | None) -> str:
    if story is None or not story.seconds_a_step or not steps:
        return ""
    return setview.hint(f"about {duration(story.seconds_a_step * steps)} at the pace of {story.name}")
