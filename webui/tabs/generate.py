"""The Generate tab: the form, the stage, the film strip and the desk, and what happens between them.

The browser holds the form and the desk; Python reads them when something is to be drawn, hands the requests to the
engine, and shows what it tells. Nothing is asked of the engine before that: faders, mutes and captions move in the
browser alone. What is drawn is saved by the engine, so that closing the page loses nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from diffusion_lora.errors import UserError
from diffusion_lora.families.pocket.words import pocket_words
from diffusion_lora.generate.reading import read_request
from diffusion_lora.generate.region import BOXES
from diffusion_lora.generate.request import Request
from diffusion_lora.generate.samplers import SAMPLERS
from diffusion_lora.generate.start import UPSCALERS
from diffusion_lora.generate.wire import DrawingEvent, Drawn, Start, Step
from diffusion_lora.layouts.layout import layout_named
from diffusion_lora.lora.card import Card
from diffusion_lora.run import Run
from webui import desk, desks, knobs, stage, tables, who
from webui.component import component
from webui.context import Context, Links
from webui.desk import Form
from webui.files import Thumbnails, picture_url
from webui.gallery import Film, newest, picture_named, thumb
from webui.meetings import Meetings
from webui.notices import tell
from webui.owners import pictures_of
from webui.sources import MAX_SENT_PX, MODES, NOTHING, Source, picture_of, sent, source_of, state_of
from webui.texts import AXES, DESK, PAINT, SOURCE, STAGE

_SECONDS_BETWEEN_STEPS = 0.1
_SILENT: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
_EXAMPLES = 3

# A seed as the command line picks one.
_ROLL = "() => String(crypto.getRandomValues(new Uint32Array(1))[0])"
_COPY = """(text) => {
  document.querySelector("#generate-form").toggleAttribute("data-copied", !!text);
  if (!text) return;
  const plain = () => {
    document.querySelector("#command textarea").select();
    document.execCommand("copy");
  };
  navigator.clipboard ? navigator.clipboard.writeText(text).catch(plain) : plain();
}"""


@dataclass
class _Order:
    """What a browser last asked for; `id` is the engine's, once it has taken it."""

    id: str = ""
    cancelled: bool = False


class _Generate:
    """What the handlers of one page share: the context, and the order each browser session waits for."""

    def __init__(self, context: Context, thumbnails: Thumbnails) -> None:
        self._context = context
        self._small = thumbnails.url
        self._workspace = context.workspace
        self._orders: dict[str, _Order] = {}
        self.film = Film(context.workspace, thumbnails.url)
        self._meetings = Meetings(context.workspace)

    # --- drawing ---

    def draw(self, request: gr.Request, *values: Any) -> Iterator[Any]:
        """Draw what form and desk say. Yields the stage and the film strip."""
        form, state, source = self._read(values, who.of(request))
        yield from self._drawn(
            lambda: stage.Stage(
                source().of(desk.requests_of(form, desk.channels_of(state), self._workspace)), self._url
            ),
            request,
        )

    def sweep(self, asked: gr.EventData, request: gr.Request, *values: Any) -> Iterator[Any]:
        """Draw one channel at several strengths, as one batch."""
        form, state, source = self._read(values, who.of(request))

        def swept() -> stage.Stage:
            wanted = desk.sweep_of(asked._data or {})
            requests = desk.sweep_requests(form, desk.channels_of(state), wanted, self._workspace)
            return stage.Stage(source().of(requests), self._url, wanted)

        yield from self._drawn(swept, request)

    def grid(self, asked: gr.EventData, request: gr.Request, *values: Any) -> Iterator[Any]:
        """Draw a table of pictures along two axes, and a sheet of them."""
        form, state, source = self._read(values, who.of(request))

        def table() -> stage.Stage:
            found = tables.table_of(
                form, desk.channels_of(state), tables.grid_of(asked._data or {}), self._workspace
            )
            found = tables.begun(found, source())
            return stage.Stage(found.requests, self._url, table=found)

        yield from self._drawn(table, request)

    def cancel(self, request: gr.Request) -> None:
        """Give up what this browser waits for; it takes effect within a step."""
        order = self._orders.get(_session(request))
        if order:
            order.cancelled = True
            if order.id:
                self._context.engine.cancel(order.id)

    def _read(self, values: tuple[Any, ...], user: str) -> tuple[Form, Any, Callable[[], Source]]:
        """Form, channels, and what the picture begins with, which may turn out to be a mistake."""
        *form, state, source = values
        return _form(tuple(form)), state, partial(source_of, source, self._workspace, user)

    def _drawn(self, ask: Callable[[], stage.Stage], request: gr.Request) -> Iterator[Any]:
        session = _session(request)
        self.cancel(request)  # a new order takes the place of the one before
        order = self._orders[session] = _Order()
        try:
            try:
                shown = ask()
            except UserError as error:
                yield stage.trouble(str(error)), gr.skip()
                return
            yield from self._follow(order, session, shown, who.of(request))
        finally:
            if self._orders.get(session) is order:
                del self._orders[session]

    def _follow(self, order: _Order, session: str, shown: stage.Stage, user: str) -> Iterator[Any]:
        yield shown.value(), gr.skip()
        told = 0.0
        with closing(self._asked(shown, user)) as events:
            for event in events:
                if self._orders.get(session) is not order:
                    return
                if isinstance(event, Start):
                    order.id = event.id
                    if order.cancelled:
                        self._context.engine.cancel(event.id)
                    continue
                shown.take(event)
                if isinstance(event, Step) and time.monotonic() - told < _SECONDS_BETWEEN_STEPS:
                    continue
                told = time.monotonic()
                yield shown.value(), self.film.value(user) if isinstance(event, Drawn) else gr.skip()

    def _asked(self, shown: stage.Stage, user: str) -> Generator[DrawingEvent, None, None]:
        engine = self._context.engine
        if shown.table is None:
            return engine.generate(shown.requests, previews=True, owner=user)
        table = shown.table
        asked = table.asked
        return engine.grid(
            table.request, asked.rows, asked.columns, title=table.request.prompt, theme=asked.theme, owner=user
        )

    # --- what was drawn ---

    def start(self, _asked: Any = None) -> dict[str, Any]:
        """What a page shows at first: the newest picture, or how to begin."""
        for picture in newest(pictures_of(self._workspace, who.is_asking()))[:1]:
            return self._earlier(picture)
        if self._context.base != "pocket":
            return stage.empty(["Nothing drawn yet", "Say what the picture should show, then Generate."])
        words = pocket_words()
        examples = [
            f"a {words.colours[3 * turn]} {words.objects[9 * turn + 2]} on a {words.backgrounds[2 * turn]} background"
            for turn in range(_EXAMPLES)
        ]
        return stage.empty(
            ["Nothing drawn yet", "Say what the picture should show, then Generate. pocket knows a toy world:"],
            examples,
        )

    def select(self, asked: gr.EventData, request: gr.Request) -> dict[str, Any]:
        """A picture of the film strip on the stage."""
        try:
            return self._earlier(self._picture(_name(asked), who.of(request)))
        except UserError as error:
            return stage.trouble(str(error))

    def restore(self, asked: gr.EventData, request: gr.Request) -> list[Any]:
        """The settings of the picture on the stage."""
        try:
            back = self._restored(self._picture(_name(asked), who.of(request)), who.of(request))
        except UserError as error:
            return _unchanged(stage.trouble(str(error)))
        if (asked._data or {}).get("mode") == "upscale":
            back[-2] = {**NOTHING, **back[-2], "mode": "upscale"}
        return back

    def drop(self, file: str | None, request: gr.Request) -> list[Any]:
        """The settings of a picture from outside; the file field is empty again for the next."""
        if file is None:
            return [None, *_unchanged(gr.skip())]
        try:
            return [None, *self._restored(Path(file), who.of(request))]
        except UserError as error:
            # The upload's own folder says nothing to a person.
            return [None, *_unchanged(stage.trouble(str(error).replace(str(Path(file).parent) + "/", "")))]

    def command_of(self, name: str) -> str:
        """The command that draws a picture of the film strip again."""
        try:
            request = read_request(self._picture(str(name), who.is_asking()))
        except UserError as error:
            return f"# {error}"
        return desk.command(request, device=self._context.device, file_of=self._file_of)

    def command(self, request: gr.Request, *values: Any) -> tuple[Any, Any]:
        """The command that draws what form and desk say."""
        form, state, source = self._read(values, who.of(request))
        try:
            requests = source().of(desk.requests_of(form, desk.channels_of(state), self._workspace))
        except UserError as error:
            return "", stage.trouble(str(error))
        text = desk.command(
            requests[0],
            count=len(requests),
            base=self._context.base,
            device=self._context.device,
            seeded=form.seed.strip() not in ("", "-1"),
            file_of=self._file_of,
        )
        return text, gr.skip()

    # --- what it begins with ---

    def picture(self, name: Any) -> dict[str, Any]:
        """A picture of the film strip, to begin with."""
        user = who.is_asking()
        path = self._picture(str(name), user)
        return picture_of(path, self._workspace, user, picture_url(self._workspace, path))

    def keep(self, data: Any) -> dict[str, Any]:
        """A picture from the person's own machine, to begin with."""
        path = sent(data, self._workspace)
        return picture_of(path, self._workspace, who.is_asking(), self._small(path))

    def _file_of(self, mask: str) -> Path:
        return sent(mask, self._workspace)

    # --- the desk ---

    def loras(self, _asked: Any = None) -> dict[str, Any]:
        """What can be added to the desk, and what to do where there is nothing."""
        return {
            "title": "No LoRA yet",
            "text": f"Train one, or put .safetensors files into {self._workspace.loras}",
            "loras": [
                {
                    "name": card.name,
                    "problem": _short(card),
                    "weight": card.preferred_weight,
                    **desk.facts(card, self._thumb(card.name)),
                }
                for card in self._context.engine.adapters()
            ],
        }

    def meetings(self, asked: Any) -> dict[str, Any]:
        """What the LoRAs on the desk do to each other."""
        return self._meetings.of(asked or {})

    def open_adapter(self, name: str, prompt: str, state: Any) -> list[Any]:
        """Put a LoRA that another tab names on the desk, with words to begin with where the prompt is empty."""
        if not name:
            return [gr.skip()] * 3
        cards = {card.name: card for card in self._context.engine.adapters()}
        entries = [entry for entry in state or [] if entry.get("name") != name]
        entries.append(desk.strip(desk.Channel(name), cards.get(name), self._thumb(name)))
        return ["", prompt if (prompt or "").strip() else self._first_prompt(name, cards), entries]

    def save_desk(self, name: str, state: Any) -> tuple[Any, Any]:
        """Keep the desk under a name."""
        try:
            kept = desks.save(self._workspace, name or "", state)
        except UserError as error:
            return gr.skip(), stage.trouble(str(error))
        tell(f"The desk is kept as {kept}.")
        return gr.Dropdown(desks.names(self._workspace), value=kept), gr.skip()

    def load_desk(self, name: str) -> tuple[Any, Any]:
        """Put a saved desk in the place of the present one."""
        cards = {card.name: card for card in self._context.engine.adapters()}
        try:
            channels = desk.channels_of(desks.load(self._workspace, name or ""))
        except UserError as error:
            return gr.skip(), stage.trouble(str(error))
        return [desk.strip(one, cards.get(one.name), self._thumb(one.name)) for one in channels], gr.skip()

    def _first_prompt(self, name: str, cards: dict[str, Card]) -> str:
        """What the run of this LoRA drew its previews with, else the trigger word."""
        try:
            prompts = Run.open(self._workspace.run_folder(name)).config.preview.prompts
        except UserError:
            prompts = ()
        return prompts[0] if prompts else (cards[name].trigger_word if name in cards else "")

    def _picture(self, name: str, user: str) -> Path:
        return picture_named(pictures_of(self._workspace, user), name)

    def _thumb(self, name: str) -> str | None:
        return thumb(self._workspace, name, self._small)

    def _restored(self, picture: Path, user: str) -> list[Any]:
        cards = {card.name: card for card in self._context.engine.adapters()}
        request = read_request(picture)
        found = desk.restore(request, list(cards.values()), base=self._context.engine.status().base)
        strips = [desk.strip(channel, cards.get(channel.name), self._thumb(channel.name)) for channel in found.channels]
        source, missing = state_of(request, self._workspace, user, self._small)
        told = (*found.told, missing) if missing else found.told
        ours = picture.is_relative_to(self._workspace.pictures)
        shown = self._earlier(picture, told) if ours else self._foreign(request, told)
        return [*astuple(found.form), strips, source, shown]

    def _earlier(self, picture: Path, notes: tuple[str, ...] = ()) -> dict[str, Any]:
        src = picture_url(self._workspace, picture)
        try:
            return stage.earlier(picture, read_request(picture), src, notes)
        except UserError:
            # Somebody else's picture in the folder: it can be seen, if not drawn again.
            return stage.earlier(picture, Request(prompt=picture.name), src, notes)

    def _foreign(self, request: Request, notes: tuple[str, ...]) -> dict[str, Any]:
        return {
            **stage.empty(["The settings are back", "Generate draws the picture again."]),
            "title": request.prompt,
            "notes": list(notes),
        }

    def _url(self, path: str) -> str:
        return picture_url(self._workspace, self._workspace.root / path)


def generate_tab(context: Context, links: Links) -> None:
    """Build the tab and connect its parts."""
    page = _Generate(context, links.thumbnails)
    layout = layout_named(context.base)
    side, guidance = (layout.size_px, layout.guidance_scale) if layout else (0, 0)  # 0: the base's own
    samplers = [(_title(sampler.a1111, sampler.a1111_schedule), sampler.name) for sampler in SAMPLERS.values()]

    with gr.Column(elem_id="generate-page"):
        with gr.Column(elem_id="generate-form", variant="panel"):
            prompt = gr.Textbox(
                label="Prompt", lines=3, max_lines=8, elem_id="prompt", placeholder="What the picture should show"
            )
            negative = gr.Textbox(label="Leave out", lines=1, max_lines=4, elem_id="negative")
            with gr.Row(elem_classes="fields"):
                width = gr.Number(label="Width", value=side, precision=0, step=8, elem_id="width", min_width=60)
                height = gr.Number(label="Height", value=side, precision=0, step=8, elem_id="height", min_width=60)
                pictures = gr.Number(label="Pictures", value=1, precision=0, minimum=1, elem_id="count", min_width=60)
            with gr.Row(elem_classes="fields"):
                steps = gr.Number(label="Steps", value=20, precision=0, minimum=1, elem_id="steps", min_width=60)
                scale = gr.Number(label="Guidance", value=guidance, step=0.5, elem_id="guidance", min_width=60)
            with gr.Row(elem_classes="fields"):
                sampler = gr.Dropdown(samplers, value="ddim", label="Sampler", elem_id="sampler", min_width=60, scale=3)
                with gr.Column(elem_id="seed-place", min_width=60, scale=2):
                    seed = gr.Textbox(label="Seed", placeholder="any", max_lines=1, elem_id="seed")
                    roll = gr.Button("Roll", elem_id="seed-roll", elem_classes="quiet", size="sm")
            source = component(
                "source",
                dict(NOTHING),
                elem_id="source",
                server=[page.picture, page.keep],
                facts={
                    "texts": SOURCE, "modes": MODES, "nothing": NOTHING, "boxes": BOXES, "upscalers": UPSCALERS,
                    "most_px": MAX_SENT_PX,
                },
                also=["paint"],
            )
            with gr.Accordion("Saved desks", open=False, elem_classes="fold", elem_id="desks"):
                desk_name = gr.Dropdown(
                    desks.names(context.workspace), label="Name", allow_custom_value=True, elem_id="desk-name"
                )
                with gr.Row():
                    keep = gr.Button("Save this desk", size="sm", min_width=90, elem_id="desk-save")
                    fetch = gr.Button("Open it", size="sm", min_width=90, elem_id="desk-open")
            drop = gr.File(
                label="Drop a picture here", type="filepath", elem_id="drop-settings", show_label=False, height=46
            )
            with gr.Column(elem_id="generate-actions"):
                go = gr.Button("Generate", variant="primary", elem_id="generate-go")
                cancel = gr.Button("Cancel", elem_id="generate-cancel")
                copy = gr.Button("Copy as command", elem_id="copy-command", elem_classes="quiet", size="sm")
                line = gr.Textbox(show_label=False, container=False, lines=2, elem_id="command", interactive=True)
        shown = component(
            "stage", stage.empty(()), elem_id="stage", server=[page.start, page.command_of], facts={"texts": STAGE}
        )
        strip = component("gallery", None, elem_id="gallery")
        strips = component(
            "desk",
            [],
            elem_id="desk",
            server=[page.loras, knobs.looked_at, page.meetings],
            facts={
                "texts": {**PAINT, **DESK}, "blocks": knobs.BLOCKS, "steps": knobs.STEPS, "axes": AXES,
                "most": desk.MAX_PICTURES, "boxes": BOXES,
            },
            also=["paint"],
        )

    form: list[Any] = [prompt, negative, width, height, pictures, steps, scale, sampler, seed]
    order: dict[str, Any] = {"concurrency_limit": None, "trigger_mode": "multiple", **_SILENT}
    go.click(page.draw, [*form, strips, source], [shown, strip], **order)
    strips.sweep(page.sweep, [*form, strips, source], [shown, strip], **order)
    strips.grid(page.grid, [*form, strips, source], [shown, strip], **order)
    cancel.click(page.cancel, queue=False, **_SILENT)

    roll.click(None, None, seed, js=_ROLL, **_SILENT)
    copied = copy.click(page.command, [*form, strips, source], [line, shown], **_SILENT)
    copied.then(None, line, None, js=_COPY, **_SILENT)
    keep.click(page.save_desk, [desk_name, strips], [desk_name, shown], **_SILENT)
    fetch.click(page.load_desk, desk_name, [strips, shown], **_SILENT)
    strip.select(page.select, None, shown, **_SILENT)
    shown.restore(page.restore, None, [*form, strips, source, shown], **_SILENT)
    drop.upload(page.drop, drop, [drop, *form, strips, source, shown], **_SILENT)
    links.open_adapter.change(
        page.open_adapter, [links.open_adapter, prompt, strips], [links.open_adapter, prompt, strips], **_SILENT
    )
    links.pulse.feed(strip, page.film.value)


def _form(values: tuple[Any, ...]) -> Form:
    prompt, negative, width, height, pictures, steps, guidance, sampler, seed = values
    return Form(
        prompt or "", negative or "", width, height, pictures, steps, guidance, sampler or "ddim", str(seed or "")
    )


def _unchanged(shown: Any) -> list[Any]:
    """Nothing for form, desk and what it begins with, `shown` for the stage."""
    return [*[gr.skip()] * 11, shown]


def _short(card: Card) -> str:
    """What is wrong with a file, without the folders above it: the list says where they are."""
    return card.problem.replace(str(card.path), card.path.name)


def _title(name: str, schedule: str) -> str:
    return name if schedule == "Automatic" else f"{name} {schedule}"


def _name(asked: gr.EventData) -> str:
    return str((asked._data or {}).get("name", ""))


def _session(request: gr.Request) -> str:
    return request.session_hash or ""
