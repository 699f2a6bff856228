"""What a training run needs before its first step: base, adapter, latents, captions, schedule.

The same for a new run and for one that goes on; nothing here depends on the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from diffusion_lora.config import TrainConfig, variants
from diffusion_lora.data.cache import LatentCache
from diffusion_lora.data.dataset import Dataset
from diffusion_lora.data.folder import demand_captions, looking_for, scan_table
from diffusion_lora.data.store import cache_folder
from diffusion_lora.diffusion.schedule import NoiseSchedule
from diffusion_lora.diffusion.timesteps import timestep_range
from diffusion_lora.errors import AdapterFileError, ConfigError
from diffusion_lora.families.family import Model, load_base, pick_device
from diffusion_lora.lora.adapter import Adapter, read_adapter
from diffusion_lora.lora.adaptive import Span
from diffusion_lora.lora.bank import AdapterBank
from diffusion_lora.lora.dropout import DropoutRates
from diffusion_lora.lora.header import tensor_hash
from diffusion_lora.lora.start import start_from
from diffusion_lora.lora.trainable import Recipe, TrainableAdapter
from diffusion_lora.train.arithmetic import arithmetic, in_half, kernels
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
from diffusion_lora.train.memory import give_back
from diffusion_lora.train.reading import model_reader
from diffusion_lora.train.residency import AUTOENCODER, UNET, away, free_to_go, send_away
from diffusion_lora.workspace import workspace_of


@dataclass(frozen=True, eq=False)
class Prepared:
    """All that stays the same from step to step, but for the adapters' numbers.

    `adapters` are those that learn side by side, by their names in the [sweep]; where there is none, the one named "".
    """

    model: Model
    bank: AdapterBank
    adapters: Mapping[str, TrainableAdapter]
    dataset: Dataset
    latents: LatentCache
    schedule: NoiseSchedule
    condition: Condition  # captions -> encoded captions, one row each
    arithmetic: Callable[[], AbstractContextManager[None]]  # a new context for one forward pass
    again: Callable[[], AbstractContextManager[None]]  # and for computing a part of it again
    notes: tuple[str, ...]  # sentences the person should read
    held_out: Dataset | None = None  # pictures that are measured and not trained on
    folded: tuple[tuple[str, float], ...] = ()  # (hash, strength) of what is part of the base: the same when going on

    @property
    def adapter(self) -> TrainableAdapter:
        """The first of them: the only one where nothing is swept."""
        return next(iter(self.adapters.values()))


def prepare(
    config: TrainConfig,
    on_problem: OnProblem,
    *,
    place: Place = NOWHERE,
    on_progress: OnProgress = lambda what, done, total: None,
) -> Prepared:
    """Load the base, encode the set and put a fresh adapter in place, or one for each combination of a [sweep].

    `on_problem(picture, why)` is called for each picture that cannot be used, `on_progress(what, done, total)` now and
    then while something takes long. The folder is looked at before the base is loaded, so that the common mistakes show
    at once. For a run that has begun a checkpoint is going to fill the adapter: `lora.start_from` is not read. Raises
    UserError of every kind that these can.
    """
    workspace = workspace_of(place.folder) if place.folder else None
    shelf = workspace.loras if workspace else None
    folded = [(file, strength, _lora(file, shelf, "model.fold")) for file, strength in config.model.fold]
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
    give_back()
    keep = cache_folder(place.folder)
    with away(model, [UNET, *model.text_encoders], keep):
        material = open_material(config, model, scanned, place, on_problem, on_progress)
    give_back()
    rooms = [send_away(model, [AUTOENCODER], keep) if config.dataset.cache != "off" else None]
    give_back()
    dataset = material.dataset
    # Convolutions like it: 4 % of a step on the CPU. (The stubs of nn.Module.to do not know the keyword.)
    model.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    give_back()
    bank = AdapterBank(model.components, model.layout.title)
    told = bank.fold_in([(path.stem, adapter, strength) for _, strength, (path, adapter) in folded]) if folded else ()
    every = variants(config)
    adapters = {name: _fresh(bank, variant, model, shelf, begin=not place.began) for name, variant in every.items()}
    schedule = _schedule(config, model).to(device)
    for variant in every.values():
        timestep_range(variant.loss, schedule.timesteps)  # a range without timesteps is told before the first step
    several = len(every) > 1
    for adapter in adapters.values():
        teach(model, adapter, side_by_side=several)
    text_is_frozen = not any(text_learns(variant, adapters[name]) for name, variant in every.items())
    if text_is_frozen:
        condition = frozen_condition(config, model, dataset, place, on_progress)
    else:
        condition = learning(list(every.values()), model, list(adapters.values()))
    give_back()
    to_go = [part for part in free_to_go(config, model, text_is_frozen=text_is_frozen) if part != AUTOENCODER]
    rooms.append(send_away(model, to_go, keep))
    give_back()
    largest = max(math.prod(bucket.size) for bucket in dataset.buckets) // model.vae_factor**2
    own_notes = dict.fromkeys(note for variant in every.values() for note in _notes(variant, model, dataset))
    return Prepared(
        model=model,
        bank=bank,
        adapters=adapters,
        dataset=dataset,
        latents=material.latents,
        schedule=schedule,
        condition=condition,
        arithmetic=partial(_forward_pass, list(adapters.values()), config, device, largest, model.dtype),
        again=partial(kernels, device, largest, model.dtype, in_half(config.train, device, model.dtype)),
        notes=(*told, *material.notes, *own_notes, *(room for room in rooms if room)),
        held_out=material.held_out,
        folded=tuple((tensor_hash(path), strength) for _, strength, (path, _) in folded),
    )


def _lora(file: str, shelf: Path | None, setting: str) -> tuple[Path, Adapter]:
    """The LoRA at a path, or of this name on the workspace's shelf. AdapterFileError naming the setting."""
    path = Path(file)
    if not path.exists() and shelf is not None and path.name == file:
        path = shelf / (file if path.suffix == ".safetensors" else f"{file}.safetensors")
    if not path.exists():
        where = "" if Path(file).is_absolute() or shelf is None else f", nor a LoRA of this name in {shelf}"
        raise AdapterFileError(f"{setting}: there is no file {file}{where}")
    return path, read_adapter(path)


def _fresh(
    bank: AdapterBank, config: TrainConfig, model: Model, shelf: Path | None, *, begin: bool
) -> TrainableAdapter:
    trained = bank.add_trainable(
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
    if begin and config.lora.start_from:
        path, adapter = _lora(config.lora.start_from, shelf, "lora.start_from")
        bank.check_fits(path.stem, adapter)
        start_from(trained, adapter, str(path))
    return trained


def _schedule(config: TrainConfig, model: Model) -> NoiseSchedule:
    schedule = NoiseSchedule.from_config(model.scheduler_config)
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
    adapters: Sequence[TrainableAdapter], config: TrainConfig, device: torch.device, tokens: int, stored: torch.dtype
) -> Iterator[None]:
    for adapter in adapters:
        adapter.begin_pass()
    with arithmetic(config.train, device, tokens, stored):
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
    if config.train.precision != "fp32" and not in_half(config.train, model.device, model.dtype):
        notes.append(
            f"this processor has no instructions for {config.train.precision}: it computes in fp32, which is faster"
        )
    reader = model_reader(config.dataset, model)
    long = [item.name for index, item in enumerate(dataset.items) if reader.read(dataset.caption(index, 0)).cut]
    if long:
        notes.append(
            f"{len(long)} of {len(dataset.items)} captions are longer than the {reader.size * reader.most} tokens that "
            f"the base reads and are cut there; the first is that of {long[0]}"
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
    if config.model.fold:
        names = " and ".join(f"{Path(file).stem} at {strength:g}" for file, strength in config.model.fold)
        notes.append(f"this LoRA is made for the base with {names} in it: draw with both to see what it learned")
    if config.lora.initial == "pissa":
        notes.append("the saved file has twice the rank: it takes the part of the base off that PiSSA started from")
    for what, word in (("trigger", config.output.trigger_word), ("learned", config.word.text)):
        added = what == "trigger" and config.dataset.add_trigger
        if word and not added and not any(word.lower() in item.caption.lower() for item in dataset.items):
            notes.append(f"the {what} word {word!r} stands in no caption, so it will call up nothing")
    return tuple(notes)
