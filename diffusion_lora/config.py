"""The configuration of a run as frozen pydantic tables: TOML in, TOML out.

Each setting is declared once (type, range, default, description); the error messages, the file a run writes and the
forms of the faces are derived from that declaration. Wrong input is a `ConfigError` of one sentence: the key, the
value, where it came from and what is allowed; an unknown key names the nearest valid one. What a setting *does* is not
known here, and no torch is imported.
"""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from diffusion_lora.errors import ConfigError
from diffusion_lora.sweep import combinations, flattened

__all__ = [
    "TrainConfig",
    "allowed_values",
    "find_config",
    "load_train_config",
    "parse_train_config",
    "resolve_path",
    "setting_differences",
    "shipped",
    "shipped_names",
    "to_toml",
    "variants",
]

# TOML has no null, and the file in a run folder leaves nothing out: an empty text, or a zero, stands for "not set".
Text = Annotated[str | None, BeforeValidator(lambda value: None if value == "" else value)]
Word = Annotated[
    Annotated[str, Field(pattern=r"^[\w-]+$")] | None, BeforeValidator(lambda value: None if value == "" else value)
]
Gamma = Annotated[
    Annotated[float, Field(gt=0)] | None,
    BeforeValidator(lambda value: None if value == 0 and not isinstance(value, bool) else value),
]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Every = Annotated[int, Field(ge=0)]

_CALIBRATION_PROMPTS = 4  # fewer do not tell what pictures have in common


class Table(BaseModel):
    """One [table]: frozen, unknown keys refused, no silent conversion ("16" is not 16), no infinities."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelTable(Table):
    """The frozen base."""

    base: str = Field(
        default="pocket", min_length=1, description="pocket, a diffusers folder, a checkpoint file, or a hub id"
    )
    revision: Text = Field(default=None, description="revision of a hub id")
    vae: Text = Field(default=None, description="an autoencoder in place of the base's own: file, folder or hub id")
    dtype: Literal["auto", "fp32", "fp16", "bf16"] = Field(
        default="auto", description="storage of the frozen weights; auto = bf16 on CUDA, else fp32"
    )
    fold: tuple[tuple[Annotated[str, Field(min_length=1)], float], ...] = Field(
        default=(), description='LoRAs that are part of the base while training, by strength: [["style", 0.8]]'
    )


Layout = Literal["auto", "flat", "subfolders", "kohya", "metadata"]


class SourceTable(Table):
    """A further folder of pictures, as one of `[[dataset.sources]]`."""

    path: str = Field(min_length=1, description="folder of pictures")
    layout: Layout = Field(default="auto", description="as dataset.layout")
    repeats: float = Field(
        default=1.0, gt=0, le=1000, description="how often each picture comes in a round; 0.5 = half of them"
    )
    weight: float = Field(default=1.0, gt=0, description="what the loss of these pictures counts")
    regularisation: bool = Field(
        default=False,
        description="keeps the base what it is (prior preservation): no trigger word, drawn as often as all others",
    )
    caption: Text = Field(default=None, description="one caption for every picture of this folder")


class DatasetTable(Table):
    """Pictures and captions."""

    path: str = Field(
        default="", description="folder of pictures, each with its caption in a text file of the same name"
    )
    sources: tuple[SourceTable, ...] = Field(
        default=(), description="more folders, each with path, repeats, weight, regularisation, layout, caption"
    )
    layout: Layout = Field(
        default="auto",
        description="of the folder: flat, subfolders, kohya (5_zib cat), metadata (.jsonl, .csv); auto looks",
    )
    caption: Text = Field(default=None, description="one caption for every picture, instead of the text files")
    caption_from: Literal["files", "folder"] = Field(
        default="files", description="folder: a picture without a caption of its own gets its folder's name"
    )
    caption_files: Annotated[tuple[Annotated[str, Field(pattern=r"^\.\w+$")], ...], Field(min_length=1)] = Field(
        default=(".txt", ".caption"), description="endings of caption files, in the order they are looked for"
    )
    caption_lines: Literal["joined", "variants"] = Field(
        default="joined", description="lines of a caption file: one caption (joined), or several to choose from"
    )
    caption_variants: int = Field(
        default=16, ge=0, description="different captions a picture has, where they vary; 0 = a new one each time"
    )
    caption_dropout: Fraction = Field(default=0.0, description="share of pictures shown without caption, for guidance")
    captions_required: bool = Field(default=True, description="a picture without caption is an error")
    add_trigger: bool = Field(default=False, description="put output.trigger_word in front of captions that lack it")
    shuffle: bool = Field(default=False, description="bring the tags of a caption into another order each time")
    separator: str = Field(default=",", min_length=1, description="what stands between tags")
    keep_first: int = Field(default=0, ge=0, description="tags in front that are neither shuffled nor dropped")
    keep_separator: Text = Field(
        default=None, description="tags in front of the first of these (say |||) and behind a second one stay"
    )
    tag_dropout: Fraction = Field(default=0.0, description="share of tags left out, each time others")
    weighted: bool = Field(
        default=False, description="(word:1.2) in a caption weighs, as in prompts; else letters"
    )
    caption_tokens: Literal[75, 150, 225] = Field(
        default=75, description="tokens that are read of a caption, in chunks of 75"
    )
    wildcards: bool = Field(default=False, description="{a|b} in a caption is one of the two, each time anew")
    flip: bool = Field(default=False, description="show pictures mirrored half of the time")
    size_px: int = Field(default=0, ge=0, description="side of the square, in pixels; 0 = the base's own")
    buckets: bool = Field(
        default=True, description="keep the shapes of pictures, at the square's area; else cut squares"
    )
    bucket_step_px: int = Field(default=0, ge=0, description="sides are multiples of this; 0 = an eighth of size_px")
    enlarge: bool = Field(
        default=True, description="pictures smaller than their bucket are enlarged; else a smaller one"
    )
    crop: Literal["centre", "random"] = Field(
        default="centre", description="which part stays of a picture's longer side"
    )
    colour_jitter: Fraction = Field(
        default=0.0, description="change brightness, contrast, saturation and hue at random by up to this share"
    )
    views: Count = Field(default=4, description="different crops and colourings of a picture, where they are random")
    mask: Literal["none", "alpha", "file"] = Field(
        default="none", description="what counts in the loss: all, the opaque part (alpha), the white of NAME.mask.png"
    )
    mask_floor: Fraction = Field(default=0.0, description="what the rest of a masked picture counts")
    cache: Literal["disk", "ram", "off"] = Field(
        default="disk", description="keep latents and encoded captions for the next run too, for this one, or not"
    )
    accept_changes: bool = Field(
        default=False, description="go on with a run although its pictures or captions have changed since it began"
    )


class LoraTable(Table):
    """The adapter."""

    start_from: Text = Field(default=None, description="a LoRA file to start from, instead of from nothing")
    rank: Count = Field(default=16, description="rank of every pair of matrices")
    alpha: float = Field(default=16.0, gt=0, description="the adapter's scale is alpha / rank")
    targets: (
        Literal["attention", "attention+mlp", "linear", "wide", "everything", "qv"]
        | Annotated[tuple[str, ...], Field(min_length=1)]
    ) = Field(
        default="attention",
        description="layers of the UNet: attention, attention+mlp, linear, wide, everything, qv, or a list of patterns",
    )
    text_targets: Literal["attention", "attention+mlp", "none"] = Field(
        default="attention", description="layers of the text encoder: attention, attention+mlp or none"
    )
    blocks: tuple[str, ...] | tuple[Literal[0, 1], ...] = Field(
        default=(),
        description="only these blocks: down, mid, up, IN04, ... or a list of 12, 17 or 26 zeros and ones; [] = all",
    )
    conv_rank: int = Field(
        default=0, ge=0, description="rank of 3 x 3 convolutions, kohya's conv_dim; 0 = that of the others"
    )
    conv_alpha: float = Field(default=0.0, ge=0, description="alpha of 3 x 3 convolutions; 0 = that of the others")
    rank_patterns: dict[str, Count] = Field(
        default={}, description="ranks of single layers, by regular expressions: {'mid_block' = 32}"
    )
    alpha_patterns: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={}, description="alphas of single layers, by regular expressions"
    )
    rslora: bool = Field(default=False, description="the scale is alpha / sqrt(rank) (rsLoRA), not alpha / rank")
    dora: Literal["off", "output", "input"] = Field(
        default="off",
        description="train magnitudes too (DoRA): output (as peft has it) or input (as A1111 and InvokeAI read it)",
    )
    initial: Literal["gaussian", "orthogonal", "pissa"] = Field(
        default="gaussian", description="start of the matrices: gaussian, orthogonal, or the base's main part (PiSSA)"
    )
    dropout: Fraction = Field(default=0.0, description="share of single numbers left out between down and up")
    rank_dropout: Fraction = Field(default=0.0, description="share of ranks left out, for each picture")
    module_dropout: Fraction = Field(default=0.0, description="share of layers trained without, for each picture")
    adaptive_rank: int = Field(
        default=0,
        ge=0,
        description="start every layer with this rank and prune to lora.rank on average, by importance; 0 = off",
    )
    adaptive_span: tuple[Fraction, Fraction] = Field(
        default=(0.1, 0.6), description="share of the steps at which that pruning begins, and at which it ends"
    )


class WordTable(Table):
    """A new word that is learned together with the adapter (pivotal tuning); rates are optimizer.word_lr and so on."""

    text: Word = Field(
        default=None, description="the word, letters and digits, as captions and prompts spell it; empty = none"
    )
    vectors: Annotated[int, Field(ge=1, le=16)] = Field(default=2, description="vectors it has in each text encoder")
    initial: Text = Field(default=None, description="words whose vectors it starts from, say person; empty = random")
    bundle: bool = Field(
        default=True, description="it goes into the LoRA file too (A1111, Forge), which diffusers then refuses"
    )


class TrainTable(Table):
    """Length, batch and arithmetic."""

    steps: Count = Field(default=1500, description="optimizer steps")
    batch_size: Count = Field(default=4, description="pictures a forward pass")
    accumulation: Count = Field(default=1, description="forward passes an optimizer step")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="bf16", description="arithmetic of the forward pass (autocast)"
    )
    checkpointing: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="activations are computed again, not kept; auto = when memory asks, and in a sweep on a large base",
    )
    memory_cap_gb: float = Field(default=0.0, ge=0, description="memory the training may take, in GB; 0 = no limit")
    seed: int = Field(default=0, ge=0, lt=2**63, description="decides start, order, timesteps and noise")
    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|cuda|cuda:\d+|mps)$", description="auto, cpu, cuda, cuda:N or mps"
    )
    threads: int = Field(default=0, ge=0, description="CPU threads; 0 = torch's own choice")


class OptimizerTable(Table):
    """How a gradient becomes a step."""

    name: Literal["adamw8bit", "adamw", "paged-adamw8bit", "lion8bit", "adafactor", "prodigy", "schedule-free"] = Field(
        default="adamw8bit",
        description="adamw8bit, paged-adamw8bit, lion8bit (bitsandbytes), adamw, adafactor, prodigy or schedule-free",
    )
    lr: float = Field(default=1e-4, ge=0, description="learning rate of the UNet's part; 0 = not trained")
    text_lr: float = Field(default=5e-5, ge=0, description="learning rate of the text encoder's part; 0 = not trained")
    text_stop_step: int = Field(
        default=0, ge=0, description="the text encoder's part stands still from this step on; 0 = it learns to the end"
    )
    schedule: Literal["cosine", "constant", "cosine-restarts", "linear", "polynomial"] = Field(
        default="cosine", description="course of the rates after the warm-up"
    )
    warmup_steps: int = Field(default=0, ge=0, description="steps over which the rates rise from 0")
    cycles: Count = Field(default=3, description="how often cosine-restarts falls from the full rate to 0")
    power: float = Field(default=2.0, gt=0, description="exponent of the polynomial schedule; 1 = linear")
    weight_decay: float = Field(default=0.01, ge=0, description="decoupled weight decay")
    betas: tuple[Fraction, Fraction] = Field(
        default=(0.9, 0.999), description="decay of the two moments (Lion's authors: 0.9, 0.99); not Adafactor's"
    )
    max_grad_norm: float = Field(default=1.0, ge=0, description="gradients are clipped to this norm; 0 = never")
    lora_plus: float = Field(
        default=1.0, gt=0, description="the up matrices learn at this many times the rate (LoRA+, say 16); 1 = off"
    )
    block_lrs: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default={}, description="blocks of the UNet that learn at this many times the rate: {'down' = 0.5, 'OUT03' = 2}"
    )
    word_lr: float = Field(default=5e-4, ge=0, description="learning rate of the learned word's vectors (word.text)")
    word_stop_step: int = Field(
        default=0, ge=0, description="the learned word stands still from this step on; 0 = it learns to the end"
    )
    ema_decay: Fraction = Field(
        default=0.0, description="the moving average of the adapter is saved, with this decay (say 0.999); 0 = its last"
    )


class LossTable(Table):
    """What is minimised, and what noise and which timesteps it is measured at."""

    kind: Literal["l2", "huber"] = Field(
        default="l2", description="l2 (squared error) or huber (pseudo-Huber: odd pixels and pictures weigh less)"
    )
    huber_c: float = Field(default=0.1, gt=0, le=1, description="where huber turns from squared to absolute, at noise")
    huber_schedule: Literal["snr", "exponential", "constant"] = Field(
        default="snr", description="how huber_c falls from 1 at the picture: snr, exponential or constant (no fall)"
    )
    min_snr_gamma: Gamma = Field(default=5.0, description="min-SNR weighting (Hang et al. 2023); 0 = off")
    debiased: bool = Field(default=False, description="debiased estimation (Yu et al. 2023), instead of min-SNR")
    noise_offset: Fraction = Field(default=0.0, description="noise that moves whole channels too, say 0.05; 0 = off")
    pyramid_noise: Fraction = Field(
        default=0.0, description="coarser noise is added, each level this many times the one before, say 0.3; 0 = off"
    )
    pyramid_levels: Count = Field(default=6, description="levels of pyramid_noise")
    input_perturbation: Fraction = Field(
        default=0.0, description="further noise on the input that the target does not know, say 0.1; 0 = off"
    )
    zero_terminal_snr: bool = Field(
        default=False, description="the last timestep is pure noise (Lin et al. 2023); for bases that predict v"
    )
    timesteps: Literal["uniform", "logit-normal", "early", "late"] = Field(
        default="uniform", description="distribution of timesteps; early ones are near the picture, late ones noise"
    )
    timestep_bias: float = Field(default=1.0, gt=0, description="how strongly early and late prefer their end")
    logit_mean: float = Field(default=0.0, description="centre of logit-normal; above 0 = later")
    logit_std: float = Field(default=1.0, gt=0, description="width of logit-normal")
    min_timestep: int = Field(default=0, ge=0, description="first timestep that is trained")
    max_timestep: int = Field(default=0, ge=0, description="first timestep that is no longer trained; 0 = all are")


class CheckpointTable(Table):
    """Saved states from which a run goes on exactly."""

    every: Every = Field(default=0, description="steps between checkpoints; 0 = only at the end and when stopped")
    keep: Count = Field(default=2, description="newest checkpoints that are kept")
    adapters: bool = Field(default=False, description="keep every checkpoint's adapter file too, for grids of them")

    def due(self, step: int) -> bool:
        """Whether one is saved after this many steps."""
        return bool(self.every) and step % self.every == 0


class PreviewTable(Table):
    """Pictures drawn while training."""

    every: Every = Field(default=0, description="steps between previews; 0 = none")
    prompts: tuple[str, ...] = Field(default=(), description="one picture for each prompt")
    steps: Count = Field(default=20, description="sampling steps")
    guidance: float = Field(default=4.0, ge=0, description="classifier-free guidance scale")
    seed: int = Field(default=1, ge=0, lt=2**63, description="picture i starts from the noise of seed + i")

    def due(self, step: int) -> bool:
        """Whether they are drawn after this many steps."""
        return bool(self.every and self.prompts) and step % self.every == 0


class ValidationTable(Table):
    """Held-out pictures, whose loss at fixed timesteps and noise tells whether what is learned holds for others too."""

    pictures: int = Field(
        default=-1, ge=-1, description="pictures held out; 0 = none, -1 = a tenth of them, from 12 pictures up"
    )
    every: Every = Field(default=0, description="steps between measurements; 0 = a twentieth of the run")
    timesteps: int = Field(default=8, ge=1, le=1000, description="timesteps at which each picture is measured")
    patience: int = Field(
        default=0, ge=0, description="stop after so many measurements without a new lowest loss; 0 = never"
    )
    result: Literal["last", "best"] = Field(
        default="last", description="the saved adapter: the last one, or that of the lowest loss (kept anyway)"
    )
    picture_looks: int = Field(
        default=-1,
        ge=-1,
        description="how often it is measured which pictures fight the rest; -1 = 3 times where that costs 5 % at most",
    )


class OutputTable(Table):
    """The adapter file."""

    name: str = Field(
        default="adapter",
        min_length=1,
        pattern=r"^[^/\\\x00-\x1f]+$",
        description="name of the adapter, fit for a file name",
    )
    trigger_word: Text = Field(default=None, description="word that calls up what was learned; kept in the file")
    kind: Literal["", "style", "subject", "character", "concept"] = Field(
        default="", description="what was learned: style, subject, character, concept or empty; kept in the file"
    )
    comment: Text = Field(default=None, description="free text, kept in the file")
    dtype: Literal["fp16", "bf16", "fp32"] = Field(default="fp16", description="storage of the saved adapter")


class CalibrationTable(Table):
    """Which strength the finished adapter is to be used at (diffusion-lora adapter calibrate)."""

    mode: Literal["off", "tell", "fold"] = Field(
        default="off",
        description="after the last step, find the strength that suits: say it in the file (tell), make it 1.0 (fold)",
    )
    prompts: tuple[str, ...] = Field(
        default=(), description="what is drawn for it; [] = everyday things, with the trigger word"
    )
    pictures: int = Field(
        default=12, ge=4, le=64, description="pictures at each strength; it costs 5 to 7 times as many"
    )
    steps: int = Field(default=10, ge=2, description="sampling steps of these")


class TrackingTable(Table):
    """The figures of a run in other programs as well, while it goes; its folder stays the truth."""

    tensorboard: bool = Field(default=False, description="event files for TensorBoard, in the run's own folder")
    wandb: Literal["off", "online", "offline"] = Field(
        default="off", description="W&B: online with the account of this machine, offline for wandb sync"
    )
    project: str = Field(default="diffusion-lora", min_length=1, description="W&B's project")


class TrainConfig(Table):
    """All that determines a training run."""

    model: ModelTable = ModelTable()
    dataset: DatasetTable
    lora: LoraTable = LoraTable()
    word: WordTable = WordTable()
    train: TrainTable = TrainTable()
    optimizer: OptimizerTable = OptimizerTable()
    loss: LossTable = LossTable()
    checkpoint: CheckpointTable = CheckpointTable()
    preview: PreviewTable = PreviewTable()
    validation: ValidationTable = ValidationTable()
    calibration: CalibrationTable = CalibrationTable()
    tracking: TrackingTable = TrackingTable()
    output: OutputTable = OutputTable()
    sweep: dict[str, tuple[Any, ...]] = Field(
        default={}, description="settings with several values: an adapter for each, trained side by side"
    )


# --- reading ----------------------------------------------------------------------------------------------------------


def load_train_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a TOML file, apply `table.key=value` overrides and check everything.

    A relative `dataset.path` (or a `model.base` that is a folder, or a LoRA's file) is looked up beside the file, in
    the working directory and among the shipped files, and made absolute; one that is found nowhere stays as written,
    for its reader to complain about.

    Raises ConfigError.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file {path}: name a TOML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration file {path} cannot be read as text: {error}") from error
    return parse_train_config(text, source=str(path), overrides=overrides, beside=path.parent)


def parse_train_config(
    text: str, *, source: str, overrides: Sequence[str] = (), beside: Path | None = None
) -> TrainConfig:
    """Like `load_train_config`, for TOML text; `source` is its name in error messages."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not valid TOML: {error}") from error
    origins: dict[str, str] = {}
    for override in overrides:
        key, value = _parse_override(override)
        origins[key] = f"--set {override}"
        _assign(tree, key, value, origin=origins[key])
    if "sweep" in tree:
        tree["sweep"] = flattened(tree["sweep"], source)
    config = _validated(tree, source, origins)
    variants(config, source=source)
    if not (config.dataset.path or config.dataset.sources):
        raise ConfigError(f"{source}: dataset.path is missing: {_field('dataset.path').description}")
    dataset_path = resolve_path(config.dataset.path, beside) if config.dataset.path else None
    sources = tuple(
        entry.model_copy(update={"path": str(resolve_path(entry.path, beside) or entry.path)})
        for entry in config.dataset.sources
    )
    base = config.model.base if config.model.base == "pocket" else resolve_path(config.model.base, beside)
    vae = resolve_path(config.model.vae, beside) if config.model.vae else None
    fold = tuple((_lora_path(file, beside), strength) for file, strength in config.model.fold)
    start_from = config.lora.start_from and _lora_path(config.lora.start_from, beside)
    sweep = {
        key: tuple(value and _lora_path(value, beside) for value in values) if key == "lora.start_from" else values
        for key, values in config.sweep.items()
    }
    return config.model_copy(
        update={
            "dataset": config.dataset.model_copy(
                update={"path": str(dataset_path or config.dataset.path), "sources": sources}
            ),
            "model": config.model.model_copy(
                update={
                    "base": str(base or config.model.base),
                    "vae": str(vae) if vae else config.model.vae,
                    "fold": fold,
                }
            ),
            "lora": config.lora.model_copy(update={"start_from": start_from}),
            "sweep": sweep,
        }
    )


def _lora_path(file: str, beside: Path | None) -> str:
    """A LoRA's file made absolute where it is found; else as written, for it may be a name in the workspace."""
    return str(resolve_path(file, beside) or file)


def variants(config: TrainConfig, *, source: str = "config.toml") -> dict[str, TrainConfig]:
    """The configuration of every adapter of a run by its name in the [sweep]; {"": config} where there is none.

    Each is complete, has no sweep, and is named after the run's. Raises ConfigError for a value that is not allowed.
    """
    if not config.sweep:
        return {"": config}
    found = {}
    for name, values in combinations(config.sweep, source).items():
        tree = config.model_dump(exclude={"sweep"})
        origins = {}
        for key, value in values.items():
            table, leaf = key.split(".", 1)
            tree[table][leaf] = value
            origins[key] = f"{source}, [sweep]"
        tree["output"]["name"] = f"{config.output.name}-{name}"
        found[name] = _validated(tree, source, origins)
    return found


def _validated(tree: dict[str, Any], source: str, origins: Mapping[str, str]) -> TrainConfig:
    try:
        config = TrainConfig.model_validate(_tuples(tree))
    except ValidationError as error:
        raise ConfigError(_sentence(error, tree, source, origins)) from None
    if config.optimizer.lr == 0 and (config.optimizer.text_lr == 0 or config.lora.text_targets == "none"):
        raise ConfigError(f"{source}: optimizer.lr and optimizer.text_lr leave nothing to train: set one above 0")
    _check_adaptive(config.lora, source)
    if (why := _contradiction(config)) is not None:
        raise ConfigError(f"{source}: {why}")
    return config


def _check_adaptive(lora: LoraTable, source: str) -> None:
    if not lora.adaptive_rank:
        return
    if lora.adaptive_rank <= lora.rank:
        raise ConfigError(
            f"{source}: lora.adaptive_rank = {lora.adaptive_rank} is where ranks start, lora.rank = {lora.rank} their "
            "average in the end: give a start above it, or 0 to leave ranks alone"
        )
    if lora.dora != "off" or lora.initial == "pissa":
        other = "lora.dora" if lora.dora != "off" else 'lora.initial = "pissa"'
        raise ConfigError(f"{source}: lora.adaptive_rank and {other} exclude each other: choose one of them")
    if not lora.adaptive_span[0] < lora.adaptive_span[1]:
        raise ConfigError(f"{source}: lora.adaptive_span = {list(lora.adaptive_span)} must rise, as in [0.1, 0.6]")


def _contradiction(config: TrainConfig) -> str | None:
    """What two settings, each allowed, cannot be together."""
    optimizer = config.optimizer
    if config.lora.dora != "off" and config.lora.initial == "pissa":
        return 'lora.dora and lora.initial = "pissa" exclude each other: choose one of them'
    if config.lora.start_from and config.lora.initial == "pissa":
        return 'lora.start_from and lora.initial = "pissa" exclude each other: choose one of them'
    if 0 < len(config.calibration.prompts) < _CALIBRATION_PROMPTS:
        return (
            f"calibration.prompts holds {len(config.calibration.prompts)}: give {_CALIBRATION_PROMPTS} or more, or [] "
            "for everyday things"
        )
    if config.word.text and optimizer.word_lr == 0:
        return "optimizer.word_lr = 0 would leave the word as it starts: set it above 0, or word.text empty"
    if config.loss.debiased and config.loss.min_snr_gamma is not None:
        return "loss.debiased and loss.min_snr_gamma both weigh the timesteps: set loss.min_snr_gamma = 0"
    if optimizer.name == "prodigy":
        keys = ("lr", "text_lr", "word_lr") if config.word.text else ("lr", "text_lr")
        low = next((key for key in keys if 0 < getattr(optimizer, key) < 0.01), None)
        if low:
            return (
                f"optimizer.{low} = {getattr(optimizer, low)} is a factor for prodigy, which finds the rate itself: "
                f"set {' and '.join(f'optimizer.{key} = 1' for key in keys)} (or text_lr = 0)"
            )
        if optimizer.lora_plus != 1 or optimizer.block_lrs:
            return "prodigy finds rates itself: set optimizer.lora_plus = 1 and optimizer.block_lrs = {}"
    if optimizer.name == "schedule-free":
        if optimizer.schedule != "constant":
            return f'schedule-free takes the place of optimizer.schedule = "{optimizer.schedule}": set it to "constant"'
        if optimizer.betas[0] == 0:
            return "optimizer.betas = [0, ...] leaves schedule-free nothing to average: set the first above 0, say 0.9"
    return None


def resolve_path(path: str, beside: Path | None) -> Path | None:
    """Where a relative path exists: beside the config, in the working directory, among the shipped files; else None."""
    given = Path(path).expanduser()
    if given.is_absolute():
        return given
    roots = [Path.cwd(), _shipped_root()] if beside is None else [beside, Path.cwd(), _shipped_root()]
    return next(((root / given).resolve() for root in roots if (root / given).exists()), None)


def find_config(name: str) -> Path:
    """The file of this name, or else the shipped config of this name, such as `pocket-style`.

    Raises ConfigError naming the shipped ones.
    """
    path = Path(name).expanduser()
    return path if path.exists() else shipped("configs", path.name if path.parent.name == "configs" else name)


def shipped(kind: Literal["configs", "datasets"], name: str) -> Path:
    """A config (with or without .toml) or sample set that comes with the package, from a checkout or a wheel.

    Raises ConfigError naming what there is.
    """
    folder = _shipped_root() / kind
    for candidate in (folder / name, folder / f"{name}.toml"):
        if candidate.exists():
            return candidate
    there = ", ".join(shipped_names(kind)) or "none"
    raise ConfigError(f"there is no {kind[:-1]} {name!r}, neither a path nor shipped ({there})")


def shipped_names(kind: Literal["configs", "datasets"]) -> list[str]:
    """What `shipped` finds of a kind, in order."""
    return sorted(entry.stem for entry in (_shipped_root() / kind).glob("*"))


def _shipped_root() -> Path:
    package = Path(__file__).resolve().parent
    installed = package / "_shipped"
    return installed if installed.is_dir() else package.parent


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    key, text = key.strip(), text.strip()
    if not equals or key.removeprefix("sweep.").count(".") != 1:
        raise ConfigError(f"--set {override!r} is not of the form table.key=value, as in --set lora.rank=8")
    try:
        return key, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key, text  # a bare word: --set optimizer.name=adamw


def _assign(tree: dict[str, Any], key: str, value: Any, *, origin: str) -> None:
    table_name, leaf = key.split(".", 1)
    table = tree.setdefault(table_name, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{origin}: {table_name!r} is a plain value in the file, not a [{table_name}] table")
    table[leaf] = value


def _tuples(value: Any) -> Any:
    """Lists as tuples, all the way down: strict tables hold nothing that can be changed."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


# --- error sentences --------------------------------------------------------------------------------------------------


def _fields() -> Iterator[tuple[str, str, FieldInfo]]:
    for table_name, table in TrainConfig.model_fields.items():
        if table_name == "sweep":  # not settings of its own, but values of others
            continue
        assert isinstance(table.annotation, type)
        assert issubclass(table.annotation, Table)
        for leaf, field in table.annotation.model_fields.items():
            yield table_name, leaf, field


def _sentence(error: ValidationError, tree: Mapping[str, Any], source: str, origins: Mapping[str, str]) -> str:
    # A misspelt key often makes another one "missing": the spelling is what to mend.
    problem = min(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden")
    place = [str(part) for part in problem["loc"]]
    key = ".".join(place[:2])
    origin = origins.get(key, source)
    if problem["type"] == "extra_forbidden":
        return _unknown_key(place, origin)
    if problem["type"] == "missing" and len(place) <= 2:
        wanted = "dataset.path" if key == "dataset" else key
        return f"{origin}: {wanted} is missing: {_field(wanted).description}"
    if len(place) == 1:
        return f"{origin}: [{key}] must be a table, not {problem['input']!r}"
    value = json.dumps(tree[place[0]][place[1]], ensure_ascii=False, default=str)
    return f"{origin}: {key} = {value} is not allowed: it must be {allowed_values(key)} ({_field(key).description})"


def _unknown_key(place: Sequence[str], origin: str) -> str:
    leaves = {f"{table}.{leaf}": leaf for table, leaf, _ in _fields()}
    if len(place) == 1:
        tables = list(TrainConfig.model_fields)
        near = difflib.get_close_matches(place[0], tables, n=1, cutoff=0.5)
        owners = [key for key, leaf in leaves.items() if leaf == place[0]]
        hint = f"did you mean [{near[0]}]?" if near else f"did you mean {owners[0]}?" if owners else ""
        return f"{origin}: unknown table or key {place[0]!r}; {hint or 'the tables are ' + ', '.join(tables)}"
    key = ".".join(place[:2])
    if len(place) > 2:  # in a table of a list, as dataset.sources has
        near = difflib.get_close_matches(place[-1], list(SourceTable.model_fields), n=1, cutoff=0.0)
        return f"{origin}: unknown key {place[-1]!r} in {key}; did you mean {near[0]!r}?"
    siblings = [full for full in leaves if full.startswith(place[0] + ".")]
    elsewhere = [full for full, leaf in leaves.items() if leaf == place[1]]
    near = elsewhere or difflib.get_close_matches(key, siblings, n=1, cutoff=0.0)
    return f"{origin}: unknown key {key!r}; did you mean {near[0]!r}?"


def _field(key: str) -> FieldInfo:
    return next(field for table, leaf, field in _fields() if f"{table}.{leaf}" == key)


def allowed_values(key: str) -> str:
    """What a setting may be, in words, from its declaration: `"lora.rank"` -> `"a whole number, at least 1"`."""
    field = _field(key)
    return _allowed(field.annotation, field.metadata)


def _allowed(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        own = chain.from_iterable(x.metadata if isinstance(x, FieldInfo) else [x] for x in arguments[1:])
        return _allowed(arguments[0], [*own, *metadata])
    if origin is Literal:
        return "one of " + ", ".join(json.dumps(value) for value in arguments)
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return f"a list, each item {_allowed(arguments[0])}"
        kinds = list(dict.fromkeys(_allowed(argument) for argument in arguments))
        if len(kinds) > 1:
            return f"a list of {' and '.join(kinds)}"
        return f"a list of {len(arguments)}, each {kinds[0]}"
    if origin is dict:
        return f"a table {{ 'pattern' = value }}, each value {_allowed(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Table):
        return "a table { " + ", ".join(f"{key} = ..." for key in annotation.model_fields) + " }"
    if arguments:  # a union; None is the empty text or zero, not something to offer
        return ", or ".join(_allowed(option, metadata) for option in arguments if option is not type(None))
    noun = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[annotation]
    limits = [limit for item in metadata if (limit := _limit(item))]
    return ", ".join([noun, *limits])


def _limit(item: Any) -> str:
    match item:
        case Ge():
            return f"at least {item.ge}"
        case Gt():
            return f"above {item.gt}"
        case Le():
            return f"at most {item.le}"
        case Lt():
            return f"below {item.lt}"
        case MinLen():
            return "not empty"
    return ""  # a pattern says nothing to a reader; the description does


# --- writing ----------------------------------------------------------------------------------------------------------


def to_toml(config: TrainConfig) -> str:
    """The complete configuration as TOML, every setting with its description; `parse_train_config(to_toml(c)) == c`."""
    lines: list[str] = []
    previous = None
    for table, leaf, field in _fields():
        if table != previous:
            lines += ([""] if lines else []) + [f"[{table}]"]
            previous = table
        setting = f"{leaf} = {_toml_value(getattr(getattr(config, table), leaf), field)}"
        comment = f"# {field.description}"
        lines += [f"{setting:<40}  {comment}"] if len(setting) <= 60 else [comment, setting]
    if config.sweep:
        lines += ["", f"[sweep]  # {TrainConfig.model_fields['sweep'].description}"]
        lines += [f"{key} = {_toml_value(values, _field(key))}" for key, values in config.sweep.items()]
    return "\n".join(lines) + "\n"


def setting_differences(old: TrainConfig, new: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """The settings in which two configurations differ: key -> (old value, new value)."""
    pairs = {
        f"{table}.{leaf}": (getattr(getattr(old, table), leaf), getattr(getattr(new, table), leaf))
        for table, leaf, _ in _fields()
    }
    pairs["sweep"] = (old.sweep, new.sweep)
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def as_toml(key: str, value: Any) -> str:
    """A value of the setting `key`, or of "sweep", as it stands in a file."""
    if key == "sweep":
        return "{ " + ", ".join(f'"{swept}" = {as_toml(swept, values)}' for swept, values in value.items()) + " }"
    return _toml_value(value, _field(key))


def _toml_value(value: Any, field: FieldInfo) -> str:
    if value is None:
        return "0.0" if "float" in str(field.annotation) else '""'
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml_value(item, field) for item in value) + "]"
    if isinstance(value, Table):
        fields = type(value).model_fields
        return "{ " + ", ".join(f"{key} = {_toml_value(getattr(value, key), fields[key])}" for key in fields) + " }"
    if isinstance(value, dict):
        pairs = [f"{_toml_value(key, field)} = {_toml_value(item, field)}" for key, item in value.items()]
        return "{ " + ", ".join(pairs) + " }" if pairs else "{}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        assert math.isfinite(value)
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)
