"""What a run learns from: its pictures as latents and its captions as the base reads them, made before the first step.

Everything a run will draw is known ahead (`data.batches`), so everything it needs is encoded ahead, and kept by what it
was made from: the next run, or the same one after a kill, finds it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion_lora.config import DatasetTable, TrainConfig
from diffusion_lora.data.cache import LatentCache, TextCache
from diffusion_lora.data.check import check
from diffusion_lora.data.dataset import Dataset, open_dataset
from diffusion_lora.data.fingerprint import check_fingerprint
from diffusion_lora.data.folder import Scanned
from diffusion_lora.data.held_out import hold_out
from diffusion_lora.data.problems import Problem, by_kind
from diffusion_lora.data.store import TensorStore, cache_folder
from diffusion_lora.data.views import Shown
from diffusion_lora.errors import ConfigError
from diffusion_lora.families.family import Conditioning, Model, encode_image
from diffusion_lora.train.reading import encode_captions
from diffusion_lora.train.residency import AUTOENCODER, at_work
from diffusion_lora.train.widened import widened_where_needed

PROGRESS_EVERY_S = 5.0
_PROBE_LATENTS = 8  # the side of the little picture by which an autoencoder is known

Condition = Callable[[Sequence[str]], Conditioning]
OnProblem = Callable[[str, str], None]
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Place:
    """The run's folder, if there is one, and whether the run has begun before.

    `processes` carry it out together; one that `follows` finds in the folder what the first has left there.
    """

    folder: Path | None = None
    began: bool = False
    processes: int = 1
    follows: bool = False


NOWHERE = Place()


@dataclass(frozen=True, eq=False)
class Material:
    """The data set, its latents, and sentences the person should read."""

    dataset: Dataset
    held_out: Dataset | None  # pictures that are not trained on, but measured
    latents: LatentCache
    notes: tuple[str, ...]


def open_material(
    config: TrainConfig,
    model: Model,
    scanned: Scanned,
    place: Place,
    on_problem: OnProblem,
    on_progress: OnProgress,
) -> Material:
    """Look at every picture and encode what the run will draw.

    Raises ConfigError for sizes that do not fit the base; DatasetError; RunError for a set that has changed since the
    run began; OutputError.
    """
    table, factor = config.dataset, model.vae_factor
    size_px = picture_size_px(config, model)
    if table.bucket_step_px % factor:
        raise ConfigError(
            f"dataset.bucket_step_px = {table.bucket_step_px} does not fit the base {config.model.base}: "
            f"it must be a multiple of {factor}"
        )
    kept = cache_folder(place.folder)
    problems: list[Problem] = []
    dataset = open_dataset(
        config,
        size_px=size_px,
        factor=factor,
        indices=kept / "pictures" if table.cache == "disk" else None,
        report=problems.append,
        progress=paced("looking at pictures", on_progress),
        scanned=scanned,
    )
    for problem in problems:
        if problem.left_out:
            on_problem(problem.picture, problem.text)
    notes = _told([*(problem for problem in problems if not problem.left_out), *check(dataset)])
    if place.folder is not None:
        changed = check_fingerprint(
            place.folder, dataset, began=place.began or place.follows, accept=table.accept_changes
        )
        notes += [changed] if changed else []
    latents = LatentCache(
        partial(_encode_pictures, model),
        encoder=_identity([model.vae], _autoencoder_probe(model)) if table.cache == "disk" else "",
        factor=factor,
        keep=table.cache,
        store=TensorStore(kept / "latents"),
        mask_floor=table.mask_floor,
    )
    dataset, held_out = hold_out(dataset, config.validation.pictures)
    shown = [*shown_in(dataset, config, place.processes), *(held_out.plain_views() if held_out else ())]
    latents.fill(shown, paced("encoding pictures", on_progress))
    return Material(dataset, held_out, latents, tuple(notes))


def picture_size_px(config: TrainConfig, model: Model) -> int:
    """The side of the square whose area every picture has. Raises ConfigError for one that does not fit the base."""
    size_px = config.dataset.size_px or model.size_px
    if size_px % model.vae_factor:
        raise ConfigError(
            f"dataset.size_px = {size_px} does not fit the base {config.model.base}: "
            f"it must be a multiple of {model.vae_factor}"
        )
    return size_px


def frozen_condition(
    config: TrainConfig, model: Model, dataset: Dataset, place: Place, on_progress: OnProgress
) -> Condition:
    """Captions through a frozen text encoder: every variant that the run will draw is encoded now and kept."""
    keep = config.dataset.cache
    encode = partial(_encode_frozen, model, config.dataset)
    texts = TextCache(
        encode,
        encoder=_identity(model.text_encoders.values(), encode(["a (probe:1.5), 1", ""]).values())
        if keep == "disk"
        else "",
        keep=keep,
        store=TensorStore(cache_folder(place.folder) / "texts"),
    )
    texts.fill(captions_in(dataset, config, place.processes), paced("encoding captions", on_progress))
    return lambda captions: Conditioning(texts(captions)).to(model.device)


def shown_in(dataset: Dataset, config: TrainConfig, processes: int = 1) -> list[Shown]:
    """Every view that a run of so many processes draws."""
    count = config.train.batch_size * config.train.accumulation * processes
    most = len(dataset.items) * dataset.chances.views * (2 if dataset.chances.flip else 1)
    found: dict[Shown, None] = {}
    for step in range(config.train.steps):
        found |= dict.fromkeys(dataset.shown(dataset.select(step, count)))
        if len(found) == most:  # there are no others
            break
    return list(found)


def captions_in(dataset: Dataset, config: TrainConfig, processes: int = 1) -> set[str]:
    """Every caption that a run of so many processes draws."""
    count = config.train.batch_size * config.train.accumulation * processes
    variants = [
        dataset.chances.variants if dataset.rules_of(item).varies(item.captions) else 1 for item in dataset.items
    ]
    most = sum(variants) if all(variants) else None
    drawn: set[tuple[int, int]] = set()
    for step in range(config.train.steps):
        chosen = dataset.select(step, count)
        drawn |= {(i, v if variants[i] != 1 else 0) for i, v in zip(chosen.indices, chosen.variants, strict=True)}
        if len(drawn) == most:
            break
    return {dataset.caption(index, variant) for index, variant in drawn} | {""}


def paced(what: str, on_progress: OnProgress) -> Callable[[int, int], None]:
    """A receiver of (done, total) that passes on, once a few seconds have gone by, what is still being done."""
    last_s = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= PROGRESS_EVERY_S:
            last_s = time.monotonic()
            on_progress(what, done, total)

    return show


def _encode_pictures(model: Model, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """A cache entry that has to be made again may find the autoencoder away."""
    with at_work(model, [AUTOENCODER]):
        return encode_image(model, x_BCHW)


@torch.no_grad()
def _encode_frozen(model: Model, table: DatasetTable, captions: Sequence[str]) -> Mapping[str, Tensor]:
    """Outside the arithmetic of a forward pass: what is kept has the encoder's own precision."""
    with (
        torch.autocast(model.device.type, enabled=False),
        widened_where_needed(model.device, model.dtype),
        at_work(model, list(model.text_encoders)),
    ):
        return encode_captions(model, table, captions).tensors


def _autoencoder_probe(model: Model) -> tuple[Tensor, Tensor]:
    side = _PROBE_LATENTS * model.vae_factor
    ramp = torch.linspace(-1, 1, side)
    return encode_image(
        model, torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side), ramp.outer(ramp)])[None]
    )


def _identity(parts: Iterable[nn.Module], probe: Iterable[Tensor]) -> str:
    """Which encoder this is: SHA-256 over all its weights, and over what it makes of a probe, which shows whatever else
    bears on it: scale, precision, an adapter."""
    digest = hashlib.sha256()
    for part in parts:
        for name, tensor in part.state_dict().items():
            digest.update(name.encode())
            digest.update(_bytes(tensor))
    for tensor in probe:
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _told(problems: Sequence[Problem]) -> list[str]:
    """A sentence for each kind of problem that does not keep a picture out."""
    return [
        f"{found[0].text}" + (f" ({kind}: {len(found) - 1} more like it)" if len(found) > 1 else "")
        for kind, found in by_kind(problems).items()
        if kind != "no caption"  # told with the other captions
    ]
