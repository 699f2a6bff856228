"""What a training run needs before its first step: base, adapter, latents, captions, schedule.

The same for a new run and for one that goes on; nothing here depends on the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from diffusion_lora.config import TrainConfig
from diffusion_lora.data.cache import LatentCache, cache_latents
from diffusion_lora.data.folder import scan_folder
from diffusion_lora.diffusion.schedule import NoiseSchedule
from diffusion_lora.diffusion.timesteps import timestep_range
from diffusion_lora.errors import ConfigError
from diffusion_lora.families.family import (
    Conditioning,
    Model,
    encode_image,
    encode_text,
    load_base,
    pick_device,
    tokens,
)
from diffusion_lora.lora.adaptive import Span
from diffusion_lora.lora.bank import AdapterBank
from diffusion_lora.lora.dropout import DropoutRates
from diffusion_lora.lora.trainable import Recipe, TrainableAdapter
from diffusion_lora.train.arithmetic import arithmetic


@dataclass(frozen=True, eq=False)
class Prepared:
    """All that stays the same from step to step, but for the adapter's numbers."""

    model: Model
    bank: AdapterBank
    adapter: TrainableAdapter
    cache: LatentCache
    schedule: NoiseSchedule
    condition: Callable[[Sequence[str]], Conditioning]  # captions -> encoded captions, one row each
    arithmetic: Callable[[], AbstractContextManager[None]]  # a new context for one forward pass
    notes: tuple[str, ...]  # sentences the person should read


def prepare(config: TrainConfig, on_problem: Callable[[str, str], None]) -> Prepared:
    """Load the base, encode the set and put a fresh adapter in place.

    `on_problem(picture, why)` is called for each picture that cannot be read. The folder is looked at before the base
    is loaded, so that the common mistakes show at once. Raises UserError of every kind that these can.
    """
    items = scan_folder(
        Path(config.dataset.path),
        caption=config.dataset.caption,
        captions_required=config.dataset.captions_required,
    )
    device = pick_device(config.train.device)
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    model = load_base(
        config.model.base,
        device=config.train.device,
        dtype=_base_dtype(config, device),
        revision=config.model.revision,
    )
    size_px = config.dataset.size_px or model.size_px
    if size_px % model.vae_factor:
        raise ConfigError(
            f"dataset.size_px = {size_px} does not fit the base {config.model.base}: "
            f"it must be a multiple of {model.vae_factor}"
        )
    cache = cache_latents(
        items,
        partial(encode_image, model),
        size_px=size_px,
        flip=config.dataset.flip,
        on_problem=lambda item, why: on_problem(item.name, why),
    )
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
    )
    schedule = _schedule(config, model).to(device)
    text_is_trained = "te" in adapter.segments and config.optimizer.text_lr > 0
    captions = {item.caption for item in cache.items} | {""}
    condition = partial(_encode_distinct, model) if text_is_trained else _encoded_once(model, sorted(captions))
    return Prepared(
        model=model,
        bank=bank,
        adapter=adapter,
        cache=cache,
        schedule=schedule,
        condition=condition,
        arithmetic=partial(_forward_pass, adapter, config, device, cache.mean[0, 0, 0].numel()),
        notes=_notes(config, model, cache),
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
def _forward_pass(
    adapter: TrainableAdapter, config: TrainConfig, device: torch.device, tokens: int
) -> Iterator[None]:
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


def _encode_distinct(model: Model, captions: Sequence[str]) -> Conditioning:
    """Each distinct caption goes through the text encoder once, with gradients."""
    rows = {caption: row for row, caption in enumerate(dict.fromkeys(captions))}
    return encode_text(model, list(rows))[[rows[caption] for caption in captions]]


def _encoded_once(model: Model, captions: Sequence[str]) -> Callable[[Sequence[str]], Conditioning]:
    """With a frozen text encoder every caption is encoded here, once for the whole run."""
    rows = {caption: row for row, caption in enumerate(captions)}
    with torch.no_grad():
        encoded = encode_text(model, captions)

    return lambda wanted: encoded[[rows[caption] for caption in wanted]]


def _notes(config: TrainConfig, model: Model, cache: LatentCache) -> tuple[str, ...]:
    notes = []
    long = [item.name for item in cache.items if tokens(model, item.caption) > model.max_tokens]
    if long:
        notes.append(
            f"{len(long)} of {len(cache.items)} captions are longer than the {model.max_tokens} tokens that the base "
            f"reads and are cut there; the first is that of {long[0]}"
        )
    bare = sum(not item.caption for item in cache.items)
    if bare:
        notes.append(f"{bare} of {len(cache.items)} pictures have no caption and are learned without one")
    if config.lora.dora != "off":
        others = "A1111 and InvokeAI know those of inputs" if config.lora.dora == "output" else "peft those of outputs"
        notes.append(
            f"DoRA with magnitudes of {config.lora.dora}s is not the same everywhere: {others} only, "
            "and diffusers reads kohya's files with them as plain LoRAs"
        )
    if config.lora.initial == "pissa":
        notes.append("the saved file has twice the rank: it takes the part of the base off that PiSSA started from")
    word = config.output.trigger_word
    if word and not any(word in item.caption for item in cache.items):
        notes.append(f"the trigger word {word!r} stands in no caption, so it will call up nothing")
    return tuple(notes)
