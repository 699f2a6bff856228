"""Carry out the run in a folder, from taking it to putting its adapter among the workspace's LoRAs.

    take the folder -> wait for the device -> train -> publish

Where several processes carry a run out together (`team`), this is for the first of them; the others only train.
A run in a workspace shares its device and is published under its name; one that lies elsewhere does neither. Whatever
ends a run is told in its events, so that whoever looks at the folder later knows. What happens between the first step
and the last is the trainer's. Torch is loaded only once the folder is taken.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from diffusion_lora.config import variants
from diffusion_lora.device_lock import Holder, hold
from diffusion_lora.errors import OutputError, RunInterrupted, UserError
from diffusion_lora.events import Progress, ignore, read_events
from diffusion_lora.inbox import taken
from diffusion_lora.lora.calibrated import calibrated_strength
from diffusion_lora.lora.header import read_header
from diffusion_lora.run import Run
from diffusion_lora.sidecar import write_notes
from diffusion_lora.train.interrupt import interrupted
from diffusion_lora.train.team import is_leader
from diffusion_lora.workspace import Workspace, check_name, sha256, workspace_of

Tell = Callable[..., None]


def carry_out(run: Run, *, resume: bool, from_step: int | None = None, progress: Progress = ignore) -> Path:
    """Train and return the adapter's file: the published one in a workspace, else `RUN/adapter.safetensors`. Of a sweep
    every adapter is published, and the first one's file returned.

    Raises UserError as `trainer.train` does; RunError, leaving no trace in the folder, if a process is at work in it.
    A run that was asked to stop (not one asked to pause) is published as far as it got, and then raises RunInterrupted.
    """
    if not is_leader():
        return _train(run, resume, from_step, ignore)
    workspace = workspace_of(run.folder)

    def tell(kind: str, **fields: Any) -> None:
        progress(run.emit(kind, **fields))
        run.log("  ".join([kind, *(f"{key}: {value}" for key, value in fields.items())]))

    # What lies in the inbox was meant for an earlier process; it is cleared before anybody could speak to this one.
    with run.lock(lambda: taken(run.folder)), _end_told(run, tell):
        if workspace is None:
            return _train(run, resume, from_step, progress)
        for variant in variants(run.config).values():
            check_name(variant.output.name)  # before hours are spent on what could then not be published
        try:
            with _device(workspace, run, tell):
                _train(run, resume, from_step, progress)
        except RunInterrupted:
            if _last_ending(run) == "stop":
                _publish(workspace, run, tell)
            raise
        return _publish(workspace, run, tell)[0]


def _train(run: Run, resume: bool, from_step: int | None, progress: Progress) -> Path:
    from diffusion_lora.train.trainer import train

    return train(run, run.config, resume=resume, from_step=from_step, progress=progress)


@contextmanager
def _end_told(run: Run, tell: Tell) -> Iterator[None]:
    """See to it that a run that ends badly says so. Interruptions have been told by whoever answered the request."""
    try:
        yield
    except RunInterrupted:
        raise
    except KeyboardInterrupt:  # before the first step or after the last one: the trainer was not there to answer
        tell("stop", step=_saved_step(run), reason="asked to stop")
        raise
    except Exception as error:
        text = str(error) if isinstance(error, UserError) else f"died: {type(error).__name__}: {error}"
        with suppress(OutputError):  # a full disk may be the very reason: the sentence that matters is on its way up
            tell("failed", text=text)
            if not isinstance(error, UserError):
                run.log(traceback.format_exc())
        raise


@contextmanager
def _device(workspace: Workspace, run: Run, tell: Tell) -> Iterator[None]:
    """Have the device of a run; while another has it, say so and go on listening."""
    from diffusion_lora.families.device import pick_device

    device = str(pick_device(run.config.train.device))
    told: Holder | None = None

    def waiting(holder: Holder | None) -> None:
        nonlocal told
        if holder is not None and holder != told:
            told = holder
            who = {"kind": holder.kind, "name": holder.name}
            tell("waiting", device=device, holder=who, text=f"waiting for {device}: {holder} has it")
        asked = taken(run.folder)
        for ending in ("stop", "pause"):
            if ending in asked:
                step = _saved_step(run)
                tell(ending, step=step, reason=f"asked to {ending}")
                raise interrupted(run, step)

    with hold(workspace, device, "run", run.folder.name, on_wait=waiting):
        yield


def _publish(workspace: Workspace, run: Run, tell: Tell) -> list[Path]:
    """Put the adapters there are among the LoRAs, each in place of what this run had put there before."""
    earlier = {
        event.get("adapter", ""): (workspace.root / event["path"], str(event["sha256"]))
        for event in read_events(run.folder, current=False)
        if event["kind"] == "published"
    }
    paths = []
    for variant, config in variants(run.config).items():
        file, name, before = run.adapter_file(variant), config.output.name, earlier.get(variant)
        if not file.exists():  # stopped before its first save, or one of a sweep that diverged
            continue
        path = workspace.publish(file, name, earlier=before)
        if path.stem != name and (before is None or path != before[0]):
            tell("note", text=f"there is a LoRA {name} already: this one is called {path.stem}")
        if strength := calibrated_strength(read_header(path).metadata):
            write_notes(path, {"preferred_weight": strength})
        which = {"adapter": variant} if variant else {}
        tell("published", path=workspace.relative(path), sha256=sha256(path), **which)
        paths.append(path)
    return paths


def _last_ending(run: Run) -> str:
    kinds = [event["kind"] for event in read_events(run.folder) if event["kind"] in ("stop", "pause")]
    return kinds[-1] if kinds else ""


def _saved_step(run: Run) -> int:
    saved = [event["step"] for event in read_events(run.folder) if event["kind"] == "checkpoint"]
    return int(saved[-1]) if saved else 0
