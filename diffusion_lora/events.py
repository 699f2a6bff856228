"""What happens in a run, as facts: one JSON object a line in `events.jsonl`; one process appends, anybody reads.

Every event has `time` (Unix seconds) and `kind`; a process that runs in front of somebody hands each event to its
`Progress` as well, so a progress bar and a reader of the folder see the same facts. The kinds of a training run:

    waiting     device, holder {kind, name}, text: another has the device; over with the next event
    start       steps, batch_size, pictures, device, precision, optimizer, layers, parameters, share (of the base, in %)
    note        text: one sentence for the person
    problem     picture, text: a picture that was left out, and why
    preparing   what, done, total: pictures or captions are being looked at or encoded, told every few seconds
    resume      step: everything recorded after that step is superseded
    step        step, loss, lr, text_lr, grad_norm, pictures_per_s, seconds_left (in this process, from its own pace);
                of a sweep loss and grad_norm are means, and adapters {name: {loss, grad_norm}} tells each one's own
    ranks       step, total, least, most: rank rows of all layers, and of the narrowest and widest, after a cut; adapter
                says whose in a sweep
    warning     step, about, text (, adapter): health, what was seen and what to change; each `about` once
    validation  step, loss (mean over held-out pictures at fixed timesteps and noise), best (none was lower before: the
                adapter is kept as best.safetensors), pictures (, adapters {name: loss})
    pictures    step, scores (of all: log of the loss with the caption over that without, at fixed noise), names,
                first [{picture, score, z}]: those that fight the rest most, by the looks so far
    parity      step, path, difference, agrees (, adapter): the file, read again, against the adapter in training: the
                largest difference of latents drawn with each, as a share of their range (null: it cannot be read)
    calibration step, path, strength (that suits the file), folded (into alpha: 1 is that strength now), looks
                [[strength, effect, content]], seconds, text (, adapter)
    preview     step, paths (relative to the folder)
    checkpoint  step, path
    stop        step, reason: the run ended early; what there is of the adapter is written
    pause       step, reason: the same, to go on later
    sweep       rows [{name, settings, loss, grad_norm, change, parameters, bytes, path, diverged_at}] compares adapters
    end         step, path, seconds
    published   path (relative to the workspace), sha256, adapter (its name in a sweep): it was put among the LoRAs
    failed      text: why the run ended; "died: ..." is a bug, its traceback is in log.txt

Of a captioning:

    waiting, problem, failed as above; problem has about, too
    start       captioner, model, device, pictures (, processes)
    captioning  done, total, written: pictures looked at, and captions that came of them
    stop, pause written, reason: what was written stays
    end         written

The last of stop, pause, end and failed says what became of a run whose process is gone.

Writing belongs to `run.Run.emit`. No torch here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diffusion_lora.errors import RunError

Event = Mapping[str, Any]
Progress = Callable[[Event], None]


_LASTING = ("step", "ranks", "warning", "validation", "pictures", "preview", "checkpoint")


def ignore(event: Event) -> None:
    """The `Progress` of a run that nobody watches."""


def read_events(folder: Path, *, current: bool = True) -> list[dict[str, Any]]:
    """All events of a run folder in the order written; none if it has not started.

    With `current` the story reads as if the run had never been interrupted: what was recorded after the step of a
    checkpoint that was later resumed is left out (it happened again), and so are the starts, notes and stops of
    earlier processes (the last one says them again). A line torn by a crash is not an event.

    Raises RunError if there is no such folder.
    """
    path = folder / "events.jsonl"
    if not folder.is_dir():
        raise RunError(f"there is no run folder {folder}")
    events: list[dict[str, Any]] = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # torn by a crash: the writer that came after it began a new line
        if current and event["kind"] == "resume":
            events = [past for past in events if past["kind"] in _LASTING and past["step"] <= event["step"]]
        events.append(event)
    return events
