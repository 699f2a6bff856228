"""A few real steps before the real run: does it fit, how long will it take, what will it write?

Steps at the largest shape of the set, a checkpoint with the adapter, and previews are carried out in a folder that is
thrown away; what they took is measured and multiplied. What was encoded on the way is kept where the run will find it.
"""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import psutil  # type: ignore[import-untyped]
import torch
from torch import Tensor

from diffusion_lora.config import TrainConfig, variants
from diffusion_lora.run import Run
from diffusion_lora.train.checkpoint import save_checkpoint
from diffusion_lora.train.draws import Draw
from diffusion_lora.train.fitting import Fitting
from diffusion_lora.train.learner import Learner
from diffusion_lora.train.passes import draw_passes, forward_backward
from diffusion_lora.train.prepare import Prepared, prepare
from diffusion_lora.train.preview import draw_previews, previews_of
from diffusion_lora.train.results import write_adapters
from diffusion_lora.train.validate import Validation

_TIMED_STEPS = 3  # after one that warms up
_LOOKED_THROUGH = 4096  # steps among which those at the largest shape are looked for
_GB = 1e9


@dataclass(frozen=True)
class Preflight:
    """What was measured. Memory and disk in bytes, times in seconds; `size_px` is the largest shape, (width, height).

    `peak` is the most memory at once, of the device on CUDA, else of the process; `room` what there is for it.
    """

    steps: int
    size_px: tuple[int, int]
    device: str
    step_s: float
    preview_s: float
    previews: int
    checkpoint_s: float
    checkpoints: int
    validation_s: float
    validations: int
    peak: int
    room: int
    disk: int
    disk_free: int
    notes: tuple[str, ...]

    @property
    def total_s(self) -> float:
        """The whole run, from its first step on."""
        once = self.previews * self.preview_s + self.checkpoints * self.checkpoint_s
        return self.steps * self.step_s + once + self.validations * self.validation_s

    @property
    def problems(self) -> list[str]:
        """What keeps the run from fitting, with what to change; empty if it fits."""
        found = []
        if self.peak > self.room:
            spill = (
                "; on Windows the driver would move the rest into main memory, and every step would wait for it"
                if self.device.startswith("cuda")
                else ""
            )
            found.append(
                f"it needs {self.peak / _GB:.1f} GB of memory where {self.room / _GB:.1f} GB are free{spill}: lower "
                'train.batch_size, set train.checkpointing = "on", or lower dataset.size_px'
            )
        if self.disk > self.disk_free:
            found.append(
                f"it writes {self.disk / _GB:.2f} GB where {self.disk_free / _GB:.2f} GB of disk are free: lower "
                "checkpoint.keep, or choose another folder"
            )
        return found

    def lines(self) -> list[str]:
        """The report, a fact a line."""
        width, height = self.size_px
        parts = [f"{self.steps} steps of {self.step_s:.3g} s"]
        for count, each, noun in (
            (self.previews, self.preview_s, "previews"),
            (self.checkpoints, self.checkpoint_s, "checkpoints"),
            (self.validations, self.validation_s, "measurements of held-out pictures"),
        ):
            parts += [f"{count} {noun} of {each:.2g} s"] if count else []
        told = [
            f"measured at the largest shape, {width} x {height} px, on {self.device}",
            f"time: {_duration(self.total_s)} ({', '.join(parts)})",
            f"memory: {self.peak / _GB:.2f} GB at the peak, {self.room / _GB:.1f} GB there is",
            f"disk: {self.disk / 1e6:.1f} MB, {self.disk_free / _GB:.1f} GB free",
            *self.notes,
        ]
        return [*told, *([f"does not fit: {problem}" for problem in self.problems] or ["it fits"])]


def preflight(config: TrainConfig, *, folder: Path, progress: Callable[[str], None] = lambda text: None) -> Preflight:
    """Measure a run that would lie in `folder`, which is not made.

    Raises UserError as a run would: DeviceError for one that does not fit under `train.memory_cap_gb`.
    """
    progress("preparing base and pictures")
    ready = prepare(config, on_problem=lambda picture, why: None)
    device = ready.model.device
    learners = [Learner.of(name, own, ready.adapters[name], device) for name, own in variants(config).items()]
    notes: list[str] = []
    fitting = Fitting(config.train, ready, tell=notes.append)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    free_before = _room(device)
    held_before = _held(device)
    steps = largest_steps(config, ready, 1 + _TIMED_STEPS)
    progress(f"taking {len(steps)} steps")

    def one_pass(draw: Draw, share: float) -> Tensor:
        return forward_backward(ready, learners, draw, share)

    with tempfile.TemporaryDirectory(prefix="diffusion-lora-preflight-") as place, ready.bank.side_by_side():
        run = Run.create(Path(place) / "run", config)
        run.emit("start")  # the adapter's header tells when its training began
        times = [_timed(partial(_step, step, ready, learners, fitting, one_pass), device) for step in steps]
        progress("saving, and drawing previews")
        checkpoint_s = _timed(lambda: _save(run, ready, learners, fitting), device)
        disk = sum(path.stat().st_size for path in run.folder.rglob("*") if path.is_file())
        saved = sum(path.stat().st_size for path in (run.folder / "checkpoints").iterdir())
        table = previews_of(config, ready)
        preview_s = _timed(lambda: draw_previews(run, ready, table, 1), device) if table.prompts else 0.0
        validation = Validation(run, config, ready, learners, lambda kind, **fields: None)
        validations = 0
        validation_s = 0.0
        if ready.held_out is not None:
            validation_s = _timed(lambda: validation.look(0), device)
            validations = 1 + math.ceil(config.train.steps / validation.every)
    every = config.preview.every if config.preview.prompts else 0
    checkpoints = -(-config.train.steps // config.checkpoint.every) if config.checkpoint.every else 1
    size = max((bucket.size for bucket in ready.dataset.buckets), key=math.prod)
    return Preflight(
        steps=config.train.steps,
        size_px=size,
        device=str(device),
        step_s=median(times[1:] or times),
        preview_s=preview_s,
        previews=config.train.steps // every if every else 0,
        checkpoint_s=checkpoint_s,
        checkpoints=checkpoints,
        validation_s=validation_s,
        validations=validations,
        peak=_peak(device),
        room=free_before + held_before,
        # While a checkpoint is written the oldest one is still there.
        disk=disk + saved * min(checkpoints, config.checkpoint.keep),
        disk_free=shutil.disk_usage(next(one for one in (folder, *folder.absolute().parents) if one.is_dir())).free,
        notes=tuple(notes),
    )


def largest_steps(config: TrainConfig, ready: Prepared, wanted: int) -> list[int]:
    """The first steps of a run that see its largest shape, at most `wanted`; never none."""
    largest = max(math.prod(bucket.size) for bucket in ready.dataset.buckets)
    found = []
    for step in range(_LOOKED_THROUGH):
        if math.prod(ready.dataset.select(step, 1).size) == largest:
            found.append(step)
            if len(found) == wanted:
                break
    return found or [0]


def _step(
    step: int,
    ready: Prepared,
    learners: list[Learner],
    fitting: Fitting,
    one_pass: Callable[[Draw, float], Tensor],
) -> None:
    for learner in learners:
        learner.begin(step)
    fitting.losses(draw_passes(step, ready, learners, (0, 1)), one_pass, learners)
    for learner in learners:
        learner.update(step, learner.clip()[0])


def _save(run: Run, ready: Prepared, learners: list[Learner], fitting: Fitting) -> None:
    save_checkpoint(run, 1, learners, fitting.state(), ready.folded, keep=1)
    write_adapters(run, ready, learners, 1)


def _timed(act: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    act()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _room(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _held(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    return int(psutil.Process().memory_info().rss)


def _peak(device: torch.device) -> int:
    """The most memory at once: what torch took of a CUDA device, else what the process held in its life so far."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most if sys.platform == "darwin" else most * 1024)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.2g} s"
