"""What a training leaves behind: the adapter's file, or those of a sweep with a table that compares them."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusion_lora.data.dataset import Dataset
from diffusion_lora.errors import AdapterFileError
from diffusion_lora.events import read_events
from diffusion_lora.lora.adapter import Adapter, read_adapter, write_adapter, write_word
from diffusion_lora.lora.calibrated import note_calibration
from diffusion_lora.lora.metadata import TrainingFacts, training_metadata
from diffusion_lora.lora.set_metadata import FolderFacts
from diffusion_lora.run import Run
from diffusion_lora.sweep import comparison
from diffusion_lora.train.calibrate import calibrate, write_folded
from diffusion_lora.train.learner import Learner
from diffusion_lora.train.material import picture_size_px
from diffusion_lora.train.prepare import Prepared
from diffusion_lora.train.residency import at_work

_LAST = 0.25  # share of the steps over which losses are compared: one step's loss says little


def write_adapters(run: Run, ready: Prepared, learners: Sequence[Learner], step: int) -> None:
    """Write every adapter that has not diverged. Raises OutputError."""
    for learner in learners:
        if learner.diverged_at is None:
            adapter = write_adapter_of(run, ready, learner, step, run.adapter_file(learner.name))
            for word, vectors in adapter.words.items():
                write_word(vectors, run.embedding_path(word, learner.name))


def keep_adapters(run: Run, ready: Prepared, learners: Sequence[Learner], step: int) -> None:
    """Write every adapter as it is after `step` steps beside the checkpoints, under a name of its own. Raises
    OutputError."""
    for learner in learners:
        if learner.diverged_at is None:
            name = f"{run.adapter_file(learner.name).stem}-step-{step:08d}.safetensors"
            write_adapter_of(run, ready, learner, step, run.folder / "checkpoints" / name)


def write_adapter_of(run: Run, ready: Prepared, learner: Learner, step: int, path: Path) -> Adapter:
    """Write what is to be kept of one adapter after `step` steps to this file; the adapter. Raises OutputError."""
    metadata = training_metadata(learner.config, _facts(run, ready, learner, step))
    with learner.optimizer.averaged():
        adapter = ready.bank.export(learner.adapter.name, metadata)
    kept = adapter if learner.config.word.bundle else replace(adapter, words={})
    write_adapter(kept, path, learner.config.output.dtype)
    return adapter


def tell_comparison(run: Run, learners: Sequence[Learner], tell: Callable[..., None]) -> None:
    """The `sweep` event and its table in the log; nothing where nothing is swept.

    For each adapter: its settings; loss and gradient norm, means over the last quarter of the steps; `change`, the
    Frobenius norm of all it adds to the base's weights; parameters, bytes and path of its file.
    """
    if len(learners) == 1:
        return
    told = [event["adapters"] for event in read_events(run.folder) if event["kind"] == "step"]
    told = told[-max(1, math.ceil(_LAST * len(told))) :]
    rows = [_row(run, learner, told) for learner in learners]
    tell("sweep", rows=rows)
    for line in comparison(rows):
        run.log(line)


def _row(run: Run, learner: Learner, told: Sequence[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    settings = {key: getattr(getattr(learner.config, key.split(".")[0]), key.split(".")[1]) for key in run.config.sweep}
    row = {"name": learner.name, "settings": settings, "diverged_at": learner.diverged_at}
    if learner.diverged_at is not None:
        return row
    own = [adapters[learner.name] for adapters in told if learner.name in adapters]
    norms = [number["grad_norm"] for number in own if not isinstance(number["grad_norm"], str)]
    path = run.adapter_file(learner.name)
    with learner.optimizer.averaged():
        layers = learner.adapter.adapter().layers.values()
    return row | {
        "loss": sum(number["loss"] for number in own) / len(own),
        "grad_norm": sum(norms) / max(1, len(norms)),
        "change": math.sqrt(sum(layer.norm() ** 2 for layer in layers)),
        "parameters": learner.adapter.report.parameters,
        "bytes": path.stat().st_size,
        "path": path.name,
    }


def _folders(dataset: Dataset) -> list[FolderFacts]:
    return [
        FolderFacts(
            name=source.folder.name,
            captions=[item.caption for item in dataset.items if item.source == number],
            repeats=source.repeats,
            weight=source.weight,
            regularisation=source.regularisation,
        )
        for number, source in enumerate(dataset.sources)
    ]


def _facts(run: Run, ready: Prepared, learner: Learner, step: int) -> TrainingFacts:
    return TrainingFacts(
        layout=ready.model.layout,
        base_name=ready.model.name,
        base_hash=ready.model.weights_hash,
        prediction_type=ready.schedule.prediction,
        optimizer=learner.optimizer.name,
        size_px=picture_size_px(learner.config, ready.model),
        folders=_folders(ready.dataset),
        buckets=Counter(place.bucket for place in ready.dataset.places),
        steps=step,
        started_at=next(event["time"] for event in read_events(run.folder, current=False) if event["kind"] == "start"),
        finished_at=time.time(),
        layers=[layer.facts for layer in learner.adapter.layers.values()],
    )


def tell_calibration(
    run: Run, ready: Prepared, learners: Sequence[Learner], step: int, tell: Callable[..., None]
) -> None:
    """Find the strength that suits each finished file, if `calibration.mode` wants it; say it in the file, beside it
    and as a `calibration` event. An adapter that moves nothing has none, which is told. Raises OutputError."""
    table = run.config.calibration
    if table.mode == "off":
        return
    looks = f"{len(table.prompts) or table.pictures} pictures at 5 to 7 strengths"
    tell("note", text=f"the strength that suits is looked for with {looks} (calibration.mode)")
    for learner in learners:
        if learner.diverged_at is not None:
            continue
        path, which = run.adapter_file(learner.name), {"adapter": learner.name} if learner.name else {}
        try:
            adapter = read_adapter(path)
            with at_work(ready.model, list(ready.model.text_encoders)):
                found = calibrate(
                    ready.model, ready.bank, adapter,
                    prompts=table.prompts, pictures=table.pictures, steps=table.steps,
                )  # fmt: skip
        except AdapterFileError as error:
            tell("note", text=f"no strength is proposed for {path.name}: {error}")
            continue
        facts, folded = found.facts(ready.model.weights_hash), False
        if table.mode == "fold":
            try:
                write_folded(adapter, path, facts)
                folded = True
            except AdapterFileError as error:  # DoRA
                tell("note", text=str(error))
        if not folded:
            note_calibration(path, facts)
        tell(
            "calibration",
            step=step,
            path=path.name,
            strength=facts["strength"],
            folded=folded,
            looks=facts["looks"],
            seconds=round(found.seconds, 1),
            text=found.sentence,
            **which,
        )
