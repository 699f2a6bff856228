"""The thread that has the base and draws, batch after batch, beside the server's event loop.

It holds the device's lock for as long as it has a base loaded. When a run wants the device, the orders at work are
drawn to their end, the base is unloaded and the lock let go; the studio comes back as soon as the device is free. Which
pictures make a batch is said by `orders`: those of different callers join where they are alike. Adapters stay in the
model between orders (`generate.shelf`). HTTP is `app`'s. Torch is imported by the thread.
"""

from __future__ import annotations

import base64
import gc
import io
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

import psutil  # type: ignore[import-untyped]
from PIL import Image

from diffusion_lora import __version__
from diffusion_lora.device_lock import POLL_S, Holder, hold, wanted
from diffusion_lora.errors import DeviceError, UserError
from diffusion_lora.generate.picture import save_pictures
from diffusion_lora.generate.request import Request
from diffusion_lora.generate.wire import (
    Cancelled,
    DrawingEvent,
    Drawn,
    End,
    EngineStatus,
    Failed,
    Preview,
    State,
    Waiting,
)
from diffusion_lora.serve.drawing import Drawing
from diffusion_lora.serve.orders import Order, Orders, next_batch
from diffusion_lora.workspace import Workspace

if TYPE_CHECKING:
    from diffusion_lora.generate.engine import Engine
    from diffusion_lora.generate.preview import Glances, Glimpse

_log = logging.getLogger(__name__)

_PREVIEW_PX, _PREVIEW_QUALITY = 512, 80
_OWN_ERROR = "The engine met an error of its own: state/engine.log in the workspace tells which."


class _GivenUp(Exception):  # noqa: N818 -- ends one drawing, from inside the engine's callbacks
    """The order was cancelled."""


class _Changed(Exception):  # noqa: N818 -- ends the waiting for the device
    """Another base is wanted, or none, or the process leaves."""


class Studio:
    """The engine and its orders. `start` once; the other methods may be called from any thread and return at once."""

    def __init__(self, workspace: Workspace, base: str, device: str) -> None:
        self._workspace = workspace
        self._asked_device = device
        self._device = ""  # unknown until torch is there
        self._memory: Callable[[], tuple[int, int]] = _main_memory
        self._news = threading.Condition()  # guards what follows, down to the blank line
        self._base: str | None = base  # the one wanted; None: none until somebody asks
        self._last_base = base
        self._asked = 0  # how often an order, a base or nothing was asked for
        self._orders = Orders()
        self._leaving = False

        self._engine: Engine | None = None
        self._glances: Glances | None = None
        self._loads_before = 0  # by engines that are gone
        self._status = EngineStatus("loading", "The engine is starting.", base=base, version=__version__)
        self._thread = threading.Thread(target=self._work, name="studio", daemon=True)

    # --- from outside -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to load the base."""
        self._thread.start()

    def leave(self) -> None:
        """Give up every order; the thread ends after the step at hand."""
        with self._news:
            self._leaving = True
            for order in self._orders:
                order.drawing.give_up()
            self._drop_given_up()
            self._news.notify_all()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread's end, so long at most."""
        self._thread.join(timeout_s)

    def status(self) -> EngineStatus:
        """What the studio does, as of now."""
        free_bytes, total_bytes = self._memory()
        engine = self._engine
        loads = self._loads_before + (engine.loads if engine else 0)
        return replace(self._status, free_bytes=free_bytes, total_bytes=total_bytes, loads=loads)

    @property
    def is_busy(self) -> bool:
        """Whether an order is being drawn or waits."""
        with self._news:
            return bool(self._orders)

    def order(self, drawing: Drawing) -> None:
        """Draw this after everything that was ordered before."""
        with self._news:
            self._orders.add(drawing)
            self._base = self._base or self._last_base
            self._notify()
            self._tell_waiting()

    def cancel(self, drawing_id: str) -> bool:
        """Give up an order: at once if it waits, else after the step at hand. False if there is none of this id."""
        with self._news:
            found = [order.drawing for order in self._orders if order.drawing.id == drawing_id]
            for drawing in found:
                drawing.give_up()
            self._drop_given_up()
        return bool(found)

    def load(self, base: str) -> None:
        """Take this base from now on. Orders at work are drawn with the old one."""
        with self._news:
            self._base = self._last_base = base
            self._notify()

    def unload(self) -> None:
        """Let go of base and device until somebody orders a picture or a base."""
        with self._news:
            self._base = None
            self._notify()

    # --- the thread: the base and the device --------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._leaving:
            asked, base = self._asked, self._base
            try:
                if not self._device:
                    self._find_device()
                if base is None:
                    self._set("away", "No base is loaded; the next picture loads it.")
                    self._sleep_until_asked(asked)
                else:
                    waiting = partial(self._look_up, base)
                    with hold(self._workspace, self._device, "engine", base, on_wait=waiting):
                        self._serve(base)
            except _Changed:
                continue
            except UserError as error:
                self._fail(str(error), base)
            except Exception:
                _log.exception("an error of the engine's own")
                self._fail(_OWN_ERROR, base)

    def _find_device(self) -> None:
        import torch

        from diffusion_lora.families.family import pick_device

        place = pick_device(self._asked_device)
        threads = torch.get_num_threads()
        name = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
        if place.type == "cuda":
            name = torch.cuda.get_device_name(place)
            self._memory = lambda: torch.cuda.mem_get_info(place)
        self._device = str(place)
        self._status = replace(self._status, device=self._device, device_name=name)

    def _look_up(self, base: str, holder: Holder | None) -> None:
        """While the device is another's: say whose, and stop waiting when `base` is not wanted any more."""
        if self._leaving or self._base != base:
            raise _Changed
        if holder is not None:
            who = str(holder)
            self._set("away", f"{who[0].upper()}{who[1:]} has the device; pictures wait for it.", holder.name)

    def _serve(self, base: str) -> None:
        """Draw orders with this base until a run wants the device, or another base is asked for."""
        self._set("loading", f"{base} is loading.", base=base)
        try:
            self._load(base)
            self._set("ready", f"{base} is ready.")
            while batch := self._next(base):
                self._draw(batch)
        finally:
            self._unload()

    def _load(self, base: str) -> None:
        import torch

        from diffusion_lora.families.family import load_base
        from diffusion_lora.generate.engine import Engine
        from diffusion_lora.generate.preview import Glances

        try:
            model = load_base(base, device=self._device)
        except torch.OutOfMemoryError:
            raise DeviceError(f"{self._device} has not enough memory for {base}; close what else uses it") from None
        self._engine = Engine(model)
        glances = self._glances = Glances()

        def learn_cost(glimpse: Glimpse) -> None:
            for _ in glances.look(glimpse, always=True):
                pass

        # The first pass through a model costs more than those that follow: nobody should wait for it.
        list(self._engine.stream([Request(width=64, height=64, steps=3)], watch=learn_cost))
        self._status = replace(self._status, base_hash=model.weights_hash)

    def _unload(self) -> None:
        import torch

        if self._engine is not None:
            self._loads_before += self._engine.loads
            self._engine.close()
            self._engine = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not self._leaving:
            self._set("away", "The engine lets go of the device.")

    # --- the thread: orders -------------------------------------------------------------------------------------------

    def _next(self, base: str) -> list[tuple[Order, int]]:
        """The pictures of the next batch, as soon as there are some; none when the base has to go."""
        assert self._engine is not None
        while True:
            with self._news:
                stays = self._base == base and not any(
                    one.kind == "run" for one in wanted(self._workspace, self._device)
                )
                new = [order for order in self._orders.waiting if stays and not order.ready]
            for order in new:
                self._make_ready(order)
            with self._news:
                for order in [order for order in self._orders.at_work if order.drawing.is_given_up]:
                    self._orders.close(order, Cancelled())
                if self._leaving:
                    return []
                # What was begun is drawn to its end first, whoever else wants the device.
                ready = [order for order in self._orders if order.began is not None or (stays and order.ready)]
                if batch := next_batch(ready, self._engine.at_once):
                    for order in _owners(batch):
                        order.batch_begins([place for owner, place in batch if owner is order])
                    self._tell_waiting()
                    return batch
                if not stays:
                    return []
                if not self._orders:
                    self._news.wait(POLL_S)

    def _make_ready(self, order: Order) -> None:
        """Fill in what the model decides; an order that asks for what is not there ends here, and no other with it."""
        assert self._engine is not None
        try:
            order.make_ready([self._engine.resolved(request) for request in order.requests])
        except UserError as error:
            self._close(order, Failed(str(error)))

    def _draw(self, batch: Sequence[tuple[Order, int]]) -> None:
        """Draw a batch and tell how it goes. What is no UserError is raised as well."""
        orders = _owners(batch)
        count = len(batch)
        self._set("busy", "Drawing a picture." if count == 1 else f"Drawing {count} pictures.")
        try:
            left = self._draw_together(batch)
            # Of several callers one asked for what cannot be drawn: the others get their pictures all the same.
            for order in _owners(left):
                if rest := self._draw_together([picture for picture in left if picture[0] is order]):
                    raise RuntimeError(f"{len(rest)} pictures of one order were left")
        except Exception:
            for order in orders:
                self._close(order, Failed(_OWN_ERROR))
            raise
        ended = [(order, _last(order, perf_counter())) for order in orders if not order.left and not order.ended]
        self._be_ready()
        for order, last in ended:
            self._close(order, last)

    def _draw_together(self, batch: Sequence[tuple[Order, int]]) -> list[tuple[Order, int]]:
        """Draw pictures as one batch; those are returned that were not drawn because one of them cannot be.

        An order that is alone in the batch and cannot be drawn is told so, and ends; so are those that were given up.
        """
        assert self._engine is not None
        assert self._glances is not None
        engine, glances, orders = self._engine, self._glances, _owners(batch)
        left = list(batch)

        def stepped(done: int, total: int) -> None:
            self._let_go(orders)
            for order in orders:
                if not order.ended:
                    order.stepped(done, total, engine.at_once)

        def glimpsed(glimpse: Glimpse) -> None:
            rows = [row for row, index in enumerate(glimpse.places) if batch[index][0].drawing.previews]
            for index, image in glances.look(glimpse.of(rows)):
                order, place = batch[index]
                if not order.ended:
                    order.drawing.tell(Preview(place, _webp(image)))
                self._let_go(orders)

        requests = [order.requests[place] for order, place in batch]
        with self._news:
            later = [order.requests[place] for order in self._orders.at_work for place in order.left]
        watch = glimpsed if any(order.drawing.previews for order in orders) else None
        glances.restart()
        try:
            for index, picture in engine.stream(requests, progress=stepped, watch=watch, beside=later):
                order, place = batch[index]
                left.remove((order, place))
                if order.ended:
                    continue
                (path,) = save_pictures(self._workspace.pictures / order.drawing.owner, [picture])
                self._status = replace(self._status, drawn=self._status.drawn + 1)
                order.paths[place] = path
                order.drawing.tell(Drawn(place, self._workspace.relative(path), picture.request, picture.notes))
        except _GivenUp:
            self._be_ready()
            for order in orders:
                self._close(order, Cancelled())
        except UserError as error:
            if len(orders) > 1:
                return [picture for picture in left if not picture[0].ended]
            self._be_ready()
            self._close(orders[0], Failed(str(error)))
        return []

    def _let_go(self, orders: Sequence[Order]) -> None:
        """Tell those whose drawing was given up; raises _GivenUp when that is everybody."""
        if all(order.ended or order.drawing.is_given_up for order in orders):
            raise _GivenUp
        for order in orders:
            if order.drawing.is_given_up:
                self._close(order, Cancelled())

    def _be_ready(self) -> None:
        """Before somebody is told the last word, so that whoever then asks does not find the engine busy with it."""
        self._set("ready", f"{self._status.base} is ready.")

    def _fail(self, text: str, base: str | None) -> None:
        """Tell everybody who waits for this base, then wait for somebody who wants it tried again, or another."""
        with self._news:
            if self._base != base:
                return
            for order in list(self._orders):
                self._orders.close(order, Failed(text))
            asked = self._asked
        self._set("failed", text)
        self._sleep_until_asked(asked)

    def _close(self, order: Order, last: DrawingEvent) -> None:
        with self._news:
            self._orders.close(order, last)

    def _sleep_until_asked(self, asked: int) -> None:
        with self._news:
            self._news.wait_for(lambda: self._leaving or self._asked != asked)

    def _set(self, state: State, text: str, holder: str = "", base: str | None = None) -> None:
        with self._news:
            now = self._status
            self._status = replace(now, state=state, text=text, holder=holder, base=now.base if base is None else base)
            self._tell_waiting()

    # --- with the condition held --------------------------------------------------------------------------------------

    def _notify(self) -> None:
        self._asked += 1
        self._news.notify_all()

    def _drop_given_up(self) -> None:
        self._orders.drop_given_up()
        self._tell_waiting()  # those behind have moved up

    def _tell_waiting(self) -> None:
        status = self._status
        if status.state not in ("loading", "away"):
            self._orders.tell_places()
            return
        for order in self._orders.waiting:
            order.drawing.tell(Waiting(status.text, status.holder))


def _owners(batch: Sequence[tuple[Order, int]]) -> list[Order]:
    return list(dict.fromkeys(order for order, _ in batch))


def _last(order: Order, now: float) -> End | Failed:
    """The last word to an order all of whose pictures are drawn; what is made of them is told before."""
    assert order.began is not None
    seconds = now - order.began
    if order.drawing.finish is not None:
        try:
            order.drawing.tell(order.drawing.finish(order.paths))
        except UserError as error:
            return Failed(str(error))
    return End(round(seconds, 3), round(order.steps_done / seconds, 2))


def _webp(image: Image.Image) -> str:
    image.thumbnail((_PREVIEW_PX, _PREVIEW_PX))
    file = io.BytesIO()
    image.save(file, format="WEBP", quality=_PREVIEW_QUALITY)
    return base64.b64encode(file.getvalue()).decode()


def _main_memory() -> tuple[int, int]:
    memory = psutil.virtual_memory()
    return memory.available, memory.total
