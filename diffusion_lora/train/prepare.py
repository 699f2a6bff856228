"""What a training run needs before its first step: base, adapter, latents, captions, schedule.

The same for a new run and for one that goes on; nothing here depends on the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from diffusion_lora.config import TrainConfig
from diffusion_lora.data.cache import LatentCache
from diffusion_lora.data.dataset import Dataset
from diffusion_lora.data.folder import demand_captions, looking_for, scan_table
from diffusion_lora.diffusion.schedule import NoiseSchedule
from diffusion_lora.diffusion.timesteps import timestep_range
from diffusion_lora.errors import ConfigError
from diffusion_lora.families.family import Model, load_base, pick_device, tokens
from diffusion_lora.lora.adaptive import Span
from diffusion_lora.lora.bank import AdapterBank
from diffusion_lora.lora.dropout import DropoutRates
from diffusion_lora.lora.trainable import Recipe, TrainableAdapter
from diffusion_lora.train.arithmetic import arithmetic
from diffusion_lora.train.conditioning import learning, teach, text_learns, words_to_learn
from diffusion_lora.train.material import (
    NOWHERE,
    Condition,
    OnProblem,
    OnProgress,
    Place,
    frozen_condition,
    open_material,
)


@dataclass(frozen=True, eq=False)
class Prepared:
    """All that stays the same from step to step, but for the adapter's numbers."""

    model: Model
    bank: AdapterBank
    adapter: TrainableAdapter
    dataset: Dataset
    latents: LatentCache
    schedule: NoiseSchedule
    condition: Condition  # captions -> encoded captions, one row each
    arithmetic: Callable[[], AbstractContextManager[None]]  # a new context for one forward pass
    notes: tuple[str, ...]  # sentences the person should read


def prepare(
    config: TrainConfig,
    on_problem: OnProblem,
    *,
    place: Place = NOWHERE,
    on_progress: OnProgress = lambda what, done, total: None,
) -> Prepared:
    """Load the base, encode the set and put a fresh adapter in place.

    `on_problem(picture, why)` is called for each picture that cannot be used, `on_progress(what, done, total)` now and
    then while something takes long. The folder is looked at before the base is loaded, so that the common mistakes show
    at once. Raises UserError of every kind that these can.
    """
    scanned = scan_table(config.dataset)
    demand_captions(scanned, looking_for(config.dataset), required=config.dataset.captions_required)
    device = pick_device(config.train.device)
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    model = load_base(
        config.model.base,
        device=config.train.device,
        dtype=_base_dtype(config, device),
        revision=config.model.revision,
        vae=config.model.vae,
    )
    material = open_material(config, model, scanned, place, on_problem, on_progress)
    dataset = material.dataset
    # Convolutions like it: 4 % of a step on the CPU. (The stubs of nn.Module.to do not know the keyword.)
    model.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    bank = AdapterBank(model.components, model.layout.title)
    adapter = bank.add_trainable(
        config.output.name,
        config.lora.rank,
        config.lora.alpha,
        config.lora.targets,
        config.lora.text_targets,
        seed=config.train.seed,
        blocks=config.lora.blocks,
        recipe=_recipe(config),
        words=words_to_learn(config, model),
    )
    teach(model, adapter.words)
    schedule = _schedule(config, model).to(device)
    largest = max(math.prod(bucket.size) for bucket in dataset.buckets) // model.vae_factor**2
    return Prepared(
        model=model,
        bank=bank,
        adapter=adapter,
        dataset=dataset,
        latents=material.latents,
        schedule=schedule,
        condition=learning(config, model, adapter)
        if text_learns(config, adapter)
        else frozen_condition(config, model, dataset, place, on_progress),
        arithmetic=partial(_forward_pass, adapter, config, device, largest),
        notes=(*material.notes, *_notes(config, model, dataset)),
    )


def _schedule(config: TrainConfig, model: Model) -> NoiseSchedule:
    schedule = NoiseSchedule.from_config(model.scheduler_config)
    timestep_range(config.loss, schedule.timesteps)  # a range without timesteps is told before the first step
    return schedule.ending_in_noise() if config.loss.zero_terminal_snr else schedule


def _recipe(config: TrainConfig) -> Recipe:
    table = config.lora
    return Recipe(
        rs=table.rslora,
        dora=table.dora,
        initial=table.initial,
        conv_rank=table.conv_rank,
        conv_alpha=table.conv_alpha,
        ranks=table.rank_patterns,
        alphas=table.alpha_patterns,
        dropout=DropoutRates(table.dropout, table.rank_dropout, table.module_dropout),
        up_apart=config.optimizer.lora_plus != 1.0,
        blocks_apart=tuple(config.optimizer.block_lrs),
        adaptive_rank=table.adaptive_rank,
        span=Span(*table.adaptive_span),
    )


@contextmanager
def _forward_pass(adapter: TrainableAdapter, config: TrainConfig, device: torch.device, tokens: int) -> Iterator[None]:
    adapter.begin_pass()
    with arithmetic(config.train, device, tokens):
        yield


def _base_dtype(config: TrainConfig, device: torch.device) -> str:
    """The storage of the frozen weights: on CUDA that of the arithmetic, elsewhere fp32 unless asked for."""
    if config.model.dtype == "auto":
        return config.train.precision if device.type == "cuda" else "fp32"
    if config.train.precision == "fp32" and config.model.dtype != "fp32":
        raise ConfigError(
            f'model.dtype = "{config.model.dtype}" needs train.precision = "bf16" or "fp16": '
            "fp32 arithmetic on half-precision weights would gain nothing"
        )
    return config.model.dtype


def _notes(config: TrainConfig, model: Model, dataset: Dataset) -> tuple[str, ...]:
    notes = list(model.notes)
    long = [item.name for item in dataset.items if tokens(model, item.caption) > model.max_tokens]
    if long:
        notes.append(
            f"{len(long)} of {len(dataset.items)} captions are longer than the {model.max_tokens} tokens that the base "
            f"reads and are cut there; the first is that of {long[0]}"
        )
    bare = sum(not item.caption for item in dataset.items)
    if bare:
        notes.append(f"{bare} of {len(dataset.items)} pictures have no caption and are learned without one")
    if config.lora.dora != "off":
        others = "A1111 and InvokeAI know those of inputs" if config.lora.dora == "output" else "peft those of outputs"
        notes.append(
            f"DoRA with magnitudes of {config.lora.dora}s is not the same everywhere: {others} only, "
            "and diffusers reads kohya's files with them as plain LoRAs"
        )
    if config.lora.initial == "pissa":
        notes.append("the saved file has twice the rank: it takes the part of the base off that PiSSA started from")
    for what, word in (("trigger", config.output.trigger_word), ("learned", config.word.text)):
        added = what == "trigger" and config.dataset.add_trigger
        if word and not added and not any(word.lower() in item.caption.lower() for item in dataset.items):
            notes.append(f"the {what} word {word!r} stands in no caption, so it will call up nothing")
    return tuple(notes)
