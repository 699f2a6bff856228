"""Ctrl-C and SIGTERM as a request that is answered between two steps, where the state is whole. No torch."""

from __future__ import annotations

import shlex
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from diffusion_lora.errors import RunInterrupted
from diffusion_lora.run import Run


def interrupted(run: Run, step: int) -> RunInterrupted:
    """The sentence of a run that was asked to end at a step, with everything saved."""
    go_on = f"diffusion-lora run {shlex.quote(str(run.folder))}"
    return RunInterrupted(f"stopped and saved at step {step} of {run.config.train.steps}; go on with: {go_on}")


class StopRequest:
    """`with StopRequest() as stop:` sets `stop.requested` at the first signal; the second one acts as it always did.

    Signals reach the main thread only; elsewhere nothing is installed and `requested` stays False.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on_signal) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
