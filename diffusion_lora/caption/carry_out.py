"""Carry out a captioning run: take its folder, have the device, describe, tell in its events what became of it.

    one process       the model is loaded here, and heard after every batch
    several           each does its part as a run of its own in RUN/shards/; what they tell is summed up here

Whoever looks at the folder sees one run either way, and can stop it through its inbox. Who starts processes is not
known here: that is handed in.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from diffusion_lora.caption.captioner import Options
from diffusion_lora.caption.work import Order, Outcome, carry_out
from diffusion_lora.caption_config import CaptionConfig, CaptionTable
from diffusion_lora.caption_run import CaptionRun
from diffusion_lora.data.problems import Problem
from diffusion_lora.data.rules import Shape, parse_rule
from diffusion_lora.data.sources import Source, expand
from diffusion_lora.device_lock import Holder, hold
from diffusion_lora.errors import CaptionerError, OutputError, RunInterrupted, UserError
from diffusion_lora.events import Event, Progress, ignore, read_events
from diffusion_lora.inbox import taken
from diffusion_lora.run import log
from diffusion_lora.workspace import Workspace, workspace_of

Together = Callable[[Sequence[Path], Callable[[], object]], object]
"""Carries out the runs in these folders, a process each, and waits for them; meanwhile it calls what is given. When
that raises, the processes are stopped first."""

_TELL_EVERY_S = 1.0


class _AskedError(Exception):
    """Somebody asked for this end, through the inbox."""


def carry_out_run(run: CaptionRun, together: Together, progress: Progress = ignore) -> Outcome:
    """Describe the pictures that a run's configuration means.

    Raises UserError as `work.carry_out` does; RunError, leaving no trace in the folder, if a process is at work in it;
    RunInterrupted when it was asked to stop.
    """
    # What lies in the inbox was meant for an earlier process; it is cleared before anybody could speak to this one.
    with run.lock(lambda: taken(run.folder)):
        return _Work(run, together, progress).done()


def show_run(config: CaptionConfig, show: Callable[[str, str, str], None], progress: Progress = ignore) -> Outcome:
    """The same as a dry run: nothing is written, and no run is needed. Raises UserError."""
    return _describe(config.caption, progress, show)


def shape_of(rules: Sequence[str], prefix: str, form: Any, max_tokens: int, base: str) -> Shape:
    """What becomes of captions. Raises ConfigError, BaseModelError."""
    said = tuple(map(parse_rule, rules))
    if not max_tokens:
        return Shape(said, prefix, form)
    from diffusion_lora.families.reading import load_base_tokenizer

    tokenizer = load_base_tokenizer(base)
    return Shape(said, prefix, form, max_tokens,
                 lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids))  # fmt: skip


class _Work:
    """One attempt at a run."""

    def __init__(self, run: CaptionRun, together: Together, progress: Progress) -> None:
        self._run, self._together, self._progress = run, together, progress
        self._table = run.config.caption
        self._written, self._told_s = 0, 0.0

    def done(self) -> Outcome:
        with self._end_told():
            expand(Source(Path(self._table.folder), self._table.layout))  # told before torch is loaded
            workspace = workspace_of(self._run.folder)
            if workspace is None:
                outcome = self._describe()
            else:
                with self._device(workspace):
                    outcome = self._describe()
            self._tell("end", written=outcome.written)
            return outcome

    def _describe(self) -> Outcome:
        return self._describe_together() if self._table.processes > 1 else _describe(self._table, self._hear)

    def _tell(self, kind: str, **fields: Any) -> None:
        self._progress(self._run.tell(kind, **fields))

    def _hear(self, event: Event) -> None:
        """What the work tells goes into the folder, its progress now and then; and who asked for an end is heard."""
        kind, fields = event["kind"], {key: value for key, value in event.items() if key != "kind"}
        if kind == "end":
            return  # told when the device is free again
        if kind != "captioning":
            self._tell(kind, **fields)
            return
        self._written = event["written"]
        if time.monotonic() - self._told_s > _TELL_EVERY_S or event["done"] == event["total"]:
            self._told_s = time.monotonic()
            self._tell(kind, **fields)
        else:
            self._progress(event)
        self._listen()

    def _listen(self) -> None:
        asked = taken(self._run.folder)
        for ending in ("stop", "pause"):
            if ending in asked:
                raise _AskedError(ending)

    def _describe_together(self) -> Outcome:
        """The parts, each a run; a new attempt has new folders, for a process of an earlier one may still live."""
        count, shards = self._table.processes, self._run.folder / "shards"
        attempt = 1 + max((int(folder.name.split("-")[0]) for folder in shards.glob("*-*")), default=0)
        parts = []
        for number in range(count):
            table = self._table.model_copy(update={"processes": 1, "shard": (number, count)})
            parts.append(CaptionRun.create(shards / f"{attempt}-{number}", CaptionConfig(caption=table)))
        problems: list[Problem] = []
        heard = [0] * count

        def look() -> None:
            of: list[dict[str, Any]] = []
            for number, part in enumerate(parts):
                events = read_events(part.folder)
                newest: dict[str, Any] = {}
                for event in events:
                    newest[event["kind"]] = event
                for event in events[heard[number] :]:
                    if event["kind"] == "problem":
                        problems.append(Problem(event.get("about", "problem"), event["picture"], event["text"]))
                        self._tell("problem", **{key: event[key] for key in event if key not in ("time", "kind")})
                heard[number] = len(events)
                of.append(newest)
            starts = [newest["start"] for newest in of if "start" in newest]
            if len(starts) == count:
                if not self._told_s:
                    told = {key: starts[0][key] for key in ("captioner", "model", "device")}
                    pictures = sum(start["pictures"] for start in starts)
                    self._tell("start", **told, pictures=pictures, processes=count)
                now = [newest.get("captioning", {}) for newest in of]
                done, written = (sum(each.get(key, 0) for each in now) for key in ("done", "written"))
                if time.monotonic() - self._told_s > _TELL_EVERY_S:
                    self._told_s, self._written = time.monotonic(), written
                    total = sum(start["pictures"] for start in starts)
                    self._tell("captioning", done=done, total=total, written=written)
            self._listen()

        self._together([part.folder for part in parts], look)
        look()
        written = 0
        for part in parts:
            last = read_events(part.folder)[-1:]
            if not last or last[0]["kind"] != "end":
                told = str(last[0].get("text", "")) if last else ""
                raise CaptionerError(
                    f"one of {count} processes ended badly: {told or 'it died'}; more in {part.folder / 'console.txt'}"
                )
            written += last[0]["written"]
        return Outcome(written, problems)

    @contextmanager
    def _device(self, workspace: Workspace) -> Iterator[None]:
        """Have the device; while another has it, say so and go on listening."""
        from diffusion_lora.families.device import pick_device

        device = str(pick_device(self._table.device))
        told: Holder | None = None

        def waiting(holder: Holder | None) -> None:
            nonlocal told
            if holder is not None and holder != told:
                told = holder
                who = {"kind": holder.kind, "name": holder.name}
                self._tell("waiting", device=device, holder=who, text=f"waiting for {device}: {holder} has it")
            self._listen()

        with hold(workspace, device, "run", self._run.folder.name, on_wait=waiting):
            yield

    @contextmanager
    def _end_told(self) -> Iterator[None]:
        """Whatever ends the run is told in its events."""
        try:
            yield
        except _AskedError as asked:
            self._stopped(str(asked))
        except (KeyboardInterrupt, RunInterrupted):
            self._stopped("stop")
        except Exception as error:
            text = str(error) if isinstance(error, UserError) else f"died: {type(error).__name__}: {error}"
            with suppress(OutputError):  # a full disk may be the very reason: the sentence is on its way up
                self._tell("failed", text=text)
                if not isinstance(error, UserError):
                    log(self._run.folder, traceback.format_exc())
            raise

    def _stopped(self, ending: str) -> NoReturn:
        told = f"{self._written:,} captions are written"
        self._tell(ending, written=self._written, reason=f"asked to {ending}")
        how = "paused" if ending == "pause" else "stopped"
        raise RunInterrupted(f"{how}: {told}; the same command goes on") from None


def _describe(table: CaptionTable, progress: Progress, show: Callable[[str, str, str], None] | None = None) -> Outcome:
    from diffusion_lora.caption.find import open_captioner

    order = Order(
        Path(table.folder), table.policy, shape_of(table.rules, table.prefix, table.form, table.max_tokens, table.base),
        table.layout, table.batch, table.shard,
    )  # fmt: skip
    expand(Source(order.folder, order.layout))
    model = open_captioner(table.captioner, _options(table))
    try:
        return carry_out(order, model, _asked(table), progress, show)
    finally:
        model.close()


def _options(table: CaptionTable) -> Options:
    return Options(
        device=table.device, quantised=table.quantise, prompt=table.prompt, new_tokens=table.new_tokens,
        revision=table.revision or None, threshold=table.threshold, character_threshold=table.character_threshold,
        blacklist=table.blacklist, ratings=table.ratings,
    )  # fmt: skip


def _asked(table: CaptionTable) -> dict[str, Any]:
    """What tells one order from another, as JSON: what may be otherwise when the same work goes on is left out."""
    leaves = set(CaptionTable.model_fields) - {"folder", "layout", "batch", "device", "processes", "shard", "quantise"}
    told = {key: value for key, value in table.model_dump().items() if key in leaves}
    if not table.max_tokens:
        told["base"] = ""
    listed = {key: list(value) if isinstance(value, tuple) else value for key, value in told.items()}
    return {"what": "caption", **listed}
