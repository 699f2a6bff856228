"""Does the file draw what the training showed? The exported adapter is read again and drawn with, beside the one in
training: same prompts, same noise.

Loading is another path than training: names, alphas and precision have been through the file, and the layers are those
of the drawing engine (`AdapterBank.load`). In fp32 the two agree to rounding; an fp16 or bf16 file differs by what it
cannot hold, which is told.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffusion_lora.config import PreviewTable, TrainConfig
from diffusion_lora.errors import AdapterFileError
from diffusion_lora.families.learned_words import add_word
from diffusion_lora.lora.adapter import read_adapter
from diffusion_lora.lora.header import read_header, tensor_hash
from diffusion_lora.run import Run
from diffusion_lora.train.conditioning import taught
from diffusion_lora.train.learner import Learner
from diffusion_lora.train.outcome import Tell
from diffusion_lora.train.prepare import Prepared
from diffusion_lora.train.preview import preview_latents, previews_of, save_previews
from diffusion_lora.train.residency import at_work

_NAME = "the exported file"
_STEPS = 8  # sampling steps where no previews are wanted, and the drawing is for the comparison alone
_LIMITS = {"fp32": 1e-4, "fp16": 0.02, "bf16": 0.1}
"""Largest difference of latents, as a share of their range, by what the file stores."""

_HALF_BASE = 0.05  # where the base itself computes in half precision


@dataclass(frozen=True)
class Parity:
    """`difference` is the largest one between the latents, as a share of their range; `problem` what is wrong, if so.

    `latents` are those drawn with the file, [B, C, H, W]; None if it could not be read.
    """

    difference: float
    problem: str
    latents: Tensor | None


def check_parity(ready: Prepared, config: TrainConfig, learner: Learner, path: Path, table: PreviewTable) -> Parity:
    """Compare the adapter in training, as it would be saved now, with the one in a file that was made from it."""
    several = len(ready.adapters) > 1
    half = ready.model.unet.dtype != torch.float32
    # The training's own precision would hide, in its rounding, what is looked for.
    exact: Callable[[], AbstractContextManager[None]] | None = None if half else nullcontext
    words = taught(learner.adapter, side_by_side=several)
    with learner.optimizer.averaged(), ready.bank.mix({learner.adapter.name: 1.0}):
        expected = preview_latents(ready, config, words, table, exact)
    try:
        adapter = read_adapter(path)
        told, found = read_header(path).metadata.get("sshs_model_hash"), tensor_hash(path)
        ready.bank.load(_NAME, adapter)
    except AdapterFileError as error:
        return Parity(float("inf"), str(error), None)
    try:
        for word, vectors in adapter.words.items():
            words[word] = f"{_NAME} {word}"
            add_word(ready.model, words[word], {part: one.to(ready.model.device) for part, one in vectors.items()})
        with ready.bank.mix({_NAME: 1.0}):
            latents = preview_latents(ready, config, words, table, exact)
    finally:
        ready.bank.unload(_NAME)
    span = float(expected.max() - expected.min()) or 1.0
    difference = float((latents - expected).abs().max()) / span
    limit = max(_LIMITS[config.output.dtype], _HALF_BASE if half else 0.0)
    problem = ""
    if told is not None and told != found:
        problem = "its numbers are not those that were written (their hash is another)"
    elif not difference <= limit:
        problem = f"what it draws differs by {100 * difference:.2g} % of the range, where {100 * limit:g} % is rounding"
    return Parity(difference, problem, latents)


def tell_parity(run: Run, ready: Prepared, learner: Learner, step: int, tell: Tell) -> list[str]:
    """The `parity` event of one adapter that was just written, and a warning where its file is not what was trained.

    The last previews, where the run draws any at its end, are those drawn with the file; their names are returned.
    """
    config, path = run.config, run.adapter_file(learner.name)
    table = previews_of(config, ready)
    shown = config.preview.due(step)
    if not shown:
        table = table.model_copy(update={"prompts": table.prompts[:1], "steps": min(_STEPS, table.steps)})
    with at_work(ready.model, list(ready.model.text_encoders)):  # the file's layers go where the model's are
        parity = check_parity(ready, learner.config, learner, path, table)
    which = {"adapter": learner.name} if learner.name else {}
    told = parity.difference if parity.latents is not None else None
    tell("parity", step=step, path=path.name, difference=told, agrees=not parity.problem, **which)
    if parity.problem:
        text = (
            f"the file {path.name}, read again, is not what was trained: {parity.problem}; see to the disk, then have "
            f"it written again with: diffusion-lora run {run.folder}"
        )
        tell("warning", step=step, about="parity", text=text, **which)
    return save_previews(run, ready, parity.latents, step, learner.name) if shown and parity.latents is not None else []
