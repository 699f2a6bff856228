"""The thread that has the base and draws: one order after the other, beside the server's event loop.

It holds the device's lock for as long as it has a base loaded. When a run wants the device, the order at hand is drawn
to its end, the base is unloaded and the lock let go; the studio comes back as soon as the device is free. Adapters stay
in the model between orders (`generate.shelf`). HTTP is `app`'s. Torch is imported by the thread.
"""

from __future__ import annotations

import base64
import gc
import io
import logging
import threading
from collections import deque
from collections.abc import Callable
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
    Drawn,
    End,
    EngineStatus,
    Failed,
    Preview,
    Queued,
    State,
    Step,
    Waiting,
)
from diffusion_lora.serve.drawing import Drawing
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
        self._orders: deque[Drawing] = deque()
        self._current: Drawing | None = None
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
            for drawing in self._all():
                drawing.give_up()
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
            return bool(self._all())

    def order(self, drawing: Drawing) -> None:
        """Draw this after everything that was ordered before."""
        with self._news:
            self._orders.append(drawing)
            self._base = self._base or self._last_base
            self._notify()
            self._tell_waiting()

    def cancel(self, drawing_id: str) -> bool:
        """Give up an order: at once if it waits, else after the step at hand. False if there is none of this id."""
        with self._news:
            found = [drawing for drawing in self._all() if drawing.id == drawing_id]
            for drawing in found:
                drawing.give_up()
            self._drop_given_up()
        return bool(found)

    def load(self, base: str) -> None:
        """Take this base from now on. The order at hand is drawn with the old one."""
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
            while drawing := self._next(base):
                last = self._draw(drawing)
                with self._news:
                    self._current = None
                self._set("ready", f"{base} is ready.")
                drawing.tell(last)
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

    def _next(self, base: str) -> Drawing | None:
        """The next order as soon as there is one; None when the base has to go."""
        with self._news:
            while not self._leaving and self._base == base:
                if any(one.kind == "run" for one in wanted(self._workspace, self._device)):
                    return None
                if self._orders:
                    self._current = self._orders.popleft()
                    self._tell_waiting()
                    return self._current
                self._news.wait(POLL_S)
            return None

    def _draw(self, drawing: Drawing) -> Cancelled | Failed | End:
        """Draw one order and tell how it goes; the last word is returned. What is no UserError is raised as well."""
        assert self._engine is not None
        assert self._glances is not None
        glances = self._glances
        count, steps_done = len(drawing.requests), 0
        self._set("busy", "Drawing a picture." if count == 1 else f"Drawing {count} pictures.")

        def stepped(done: int, total: int) -> None:
            nonlocal steps_done
            steps_done = done
            if drawing.is_given_up:
                raise _GivenUp
            drawing.tell(Step(done, total))

        def glimpsed(glimpse: Glimpse) -> None:
            for place, image in glances.look(glimpse):
                drawing.tell(Preview(place, _webp(image)))
                if drawing.is_given_up:
                    raise _GivenUp

        began = perf_counter()
        glances.restart()
        watch = glimpsed if drawing.previews else None
        try:
            for index, picture in self._engine.stream(drawing.requests, progress=stepped, watch=watch):
                (path,) = save_pictures(self._workspace.pictures, [picture])
                self._status = replace(self._status, drawn=self._status.drawn + 1)
                drawing.tell(Drawn(index, self._workspace.relative(path), picture.request, picture.notes))
        except _GivenUp:
            return Cancelled()
        except UserError as error:
            return Failed(str(error))
        except Exception:
            drawing.tell(Failed(_OWN_ERROR))
            raise
        seconds = perf_counter() - began
        return End(round(seconds, 3), round(steps_done / seconds, 2))

    def _fail(self, text: str, base: str | None) -> None:
        """Tell everybody who waits for this base, then wait for somebody who wants it tried again, or another."""
        with self._news:
            self._current = None
            if self._base != base:
                return
            for drawing in self._orders:
                drawing.tell(Failed(text))
            self._orders.clear()
            asked = self._asked
        self._set("failed", text)
        self._sleep_until_asked(asked)

    def _sleep_until_asked(self, asked: int) -> None:
        with self._news:
            self._news.wait_for(lambda: self._leaving or self._asked != asked)

    def _set(self, state: State, text: str, holder: str = "", base: str | None = None) -> None:
        with self._news:
            now = self._status
            self._status = replace(now, state=state, text=text, holder=holder, base=now.base if base is None else base)
            self._tell_waiting()

    # --- with the condition held --------------------------------------------------------------------------------------

    def _all(self) -> list[Drawing]:
        return [*([self._current] if self._current else []), *self._orders]

    def _notify(self) -> None:
        self._asked += 1
        self._news.notify_all()

    def _drop_given_up(self) -> None:
        for drawing in [drawing for drawing in self._orders if drawing.is_given_up]:
            self._orders.remove(drawing)
            drawing.tell(Cancelled())
        self._tell_waiting()  # those behind have moved up

    def _tell_waiting(self) -> None:
        status = self._status
        for ahead, drawing in enumerate(self._orders, start=1 if self._current else 0):
            if status.state in ("loading", "away"):
                drawing.tell(Waiting(status.text, status.holder))
            elif ahead:
                drawing.tell(Queued(ahead))


def _webp(image: Image.Image) -> str:
    image.thumbnail((_PREVIEW_PX, _PREVIEW_PX))
    file = io.BytesIO()
    image.save(file, format="WEBP", quality=_PREVIEW_QUALITY)
    return base64.b64encode(file.getvalue()).decode()


def _main_memory() -> tuple[int, int]:
    memory = psutil.virtual_memory()
    return memory.available, memory.total
