"""The metadata of a trained adapter: what other programs read in the header, from the configuration and a few facts.

Two vocabularies: kohya's `ss_*`, by which web UIs tell the model family, show tags and find alias and settings, and
modelspec 1.0.1 (https://github.com/Stability-AI/ModelSpec). All values are strings. The hashes over the tensors are
`adapter.write_adapter`'s; nothing is read from disk here.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from diffusion_lora.config import LossTable, TrainConfig
from diffusion_lora.layouts.layout import LAYOUTS, Layout
from diffusion_lora.lora.set_metadata import FolderFacts, set_metadata

T = TypeVar("T")

_SCHEDULES = {"cosine-restarts": "cosine_with_restarts"}  # kohya's words, where ours are others


@dataclass(frozen=True)
class LayerFacts:
    """Rank and alpha of one layer as the file has it; `is_conv` when its kernel is larger than 1 x 1."""

    rank: int
    alpha: float
    is_conv: bool = False


@dataclass(frozen=True)
class TrainingFacts:
    """What a training knows beyond its configuration.

    `base_hash` is the SHA-256 of the base's weights, "" if unknown; `folders` are the sources of pictures, `buckets`
    counts the pictures of each (width, height); `optimizer` is what really ran; times are unix seconds; `layers` are
    those of the file; `prediction_type` is the scheduler's ("epsilon", "v_prediction").
    """

    layout: Layout
    base_name: str
    base_hash: str
    prediction_type: str
    optimizer: str
    size_px: int
    folders: Sequence[FolderFacts]
    buckets: Mapping[tuple[int, int], int]
    steps: int
    started_at: float
    finished_at: float
    layers: Sequence[LayerFacts]


def training_metadata(config: TrainConfig, facts: TrainingFacts) -> dict[str, str]:
    """The header's metadata of the adapter that this run made; a pure function of its arguments."""
    return _kohya(config, facts) | _modelspec(config, facts)


def completed(
    metadata: Mapping[str, str], layout: Layout | None, rank: int | None, alpha: float, kinds: Sequence[str]
) -> dict[str, str]:
    """The metadata with what every program needs to know an adapter by, where it is missing or for another family.

    AUTOMATIC1111 takes a file that says nothing of SDXL or SD 2 for SD 1, and hides it from those who run SDXL.
    """
    plain = tuple(kinds) == ("LoRA",)
    known = {
        "ss_network_module": "networks.lora" if plain else "lycoris.kohya",
        "ss_network_dim": "None" if rank is None else str(rank),
        "ss_network_alpha": str(alpha),
        "ss_network_args": json.dumps({} if plain else {"algo": kinds[0].lower()}),
    }
    complete = known | dict(metadata)
    if layout in LAYOUTS:
        base = complete.get("ss_base_model_version", "")
        if not base or base.startswith("sdxl") != layout.kohya_base.startswith("sdxl"):
            complete["ss_base_model_version"] = layout.kohya_base
        complete["ss_v2"] = str(layout.kohya_v2)
    elif layout is not None:  # a width that nobody else has says nothing against what the trainer wrote
        complete = {"ss_base_model_version": layout.kohya_base, "ss_v2": str(layout.kohya_v2)} | complete
    return complete


def _kohya(config: TrainConfig, facts: TrainingFacts) -> dict[str, str]:
    pictures_per_step = config.train.batch_size * config.train.accumulation
    places = sum(len(folder.captions) * folder.repeats for folder in facts.folders if not folder.regularisation)
    places *= 2 if any(folder.regularisation for folder in facts.folders) else 1
    steps_per_epoch = max(1, math.ceil(places / pictures_per_step))
    dim, alpha = _rank_and_alpha(config, facts)
    values = {
        # always kept, whatever else is left out
        "ss_v2": facts.layout.kohya_v2,
        "ss_base_model_version": facts.layout.kohya_base,
        "ss_network_module": "networks.lora" if config.lora.dora == "off" else "lycoris.kohya",
        "ss_network_dim": dim,
        "ss_network_alpha": alpha,
        "ss_network_args": json.dumps(_network_arguments(config, facts)),
        "ss_network_dropout": config.lora.dropout or None,
        # identity
        "ss_output_name": config.output.name,
        "ss_training_comment": config.output.comment or _on_top_of(config),
        "ss_training_started_at": facts.started_at,
        "ss_training_finished_at": facts.finished_at,
        "ss_sd_model_name": facts.base_name,
        "ss_new_sd_model_hash": facts.base_hash or None,
        "ss_clip_skip": None,
        # rates and course
        "ss_learning_rate": config.optimizer.lr,
        "ss_unet_lr": config.optimizer.lr,
        "ss_text_encoder_lr": config.optimizer.text_lr,
        "ss_optimizer": facts.optimizer,
        "ss_lr_scheduler": _SCHEDULES.get(config.optimizer.schedule, config.optimizer.schedule),
        "ss_lr_warmup_steps": config.optimizer.warmup_steps,
        "ss_max_grad_norm": config.optimizer.max_grad_norm,
        "ss_mixed_precision": "no" if config.train.precision == "fp32" else config.train.precision,
        "ss_seed": config.train.seed,
        "ss_steps": facts.steps,
        "ss_max_train_steps": config.train.steps,
        "ss_epoch": -(-facts.steps // steps_per_epoch),
        "ss_num_epochs": -(-config.train.steps // steps_per_epoch),
        "ss_num_batches_per_epoch": steps_per_epoch,
        "ss_batch_size_per_device": config.train.batch_size,
        "ss_total_batch_size": pictures_per_step,
        "ss_gradient_accumulation_steps": config.train.accumulation,
        # data
        "ss_resolution": (facts.size_px, facts.size_px),
        **set_metadata(config.dataset, facts.folders, facts.buckets),
    }
    return {key: str(value) for key, value in (values | _loss(config.loss)).items()}


def _on_top_of(config: TrainConfig) -> str | None:
    """What was part of the base in this training, and has to be there again for the adapter to act as it did."""
    folded = [f"{Path(file).stem}:{strength:g}" for file, strength in config.model.fold]
    return f"trained on top of {', '.join(folded)}" if folded else None


def _loss(loss: LossTable) -> dict[str, object]:
    """What is minimised, in kohya's words; None where it says so of what is off."""
    huber = loss.kind == "huber"
    return {
        "ss_loss_type": loss.kind,
        "ss_huber_c": loss.huber_c if huber else None,
        "ss_huber_schedule": loss.huber_schedule if huber else None,
        "ss_min_snr_gamma": loss.min_snr_gamma,
        "ss_debiased_estimation": loss.debiased,
        "ss_noise_offset": loss.noise_offset or None,
        "ss_multires_noise_iterations": loss.pyramid_levels if loss.pyramid_noise else None,
        "ss_multires_noise_discount": loss.pyramid_noise or None,
        "ss_ip_noise_gamma": loss.input_perturbation or None,
        "ss_zero_terminal_snr": loss.zero_terminal_snr,
        "ss_timestep_sampling": loss.timesteps,
        "ss_min_timestep": loss.min_timestep or None,
        "ss_max_timestep": loss.max_timestep or None,
    }


def _rank_and_alpha(config: TrainConfig, facts: TrainingFacts) -> tuple[int | str, float]:
    """Of the layers that are no convolutions, where there are such: what most of them have in the file.

    Adapted ranks are "Dynamic", as kohya's own resizing says of mixed ones.
    """
    layers = [layer for layer in facts.layers if not layer.is_conv] or list(facts.layers)
    dim = _commonest(layer.rank for layer in layers)
    return "Dynamic" if config.lora.adaptive_rank else dim, _commonest(layer.alpha for layer in layers)


def _commonest(values: Iterable[T]) -> T:
    return Counter(values).most_common(1)[0][0]


def _network_arguments(config: TrainConfig, facts: TrainingFacts) -> dict[str, str]:
    """What kohya's `--network_args` would say, and LyCORIS's where kohya has no word for it; only what was used.

    Told of convolutions is what the file has, whether a preset, a pattern or `conv_rank` brought them.
    """
    lora = config.lora
    conv = [layer for layer in facts.layers if layer.is_conv]
    said: dict[str, object] = {
        "algo": "lora" if lora.dora != "off" else None,
        "conv_dim": _commonest(layer.rank for layer in conv) if conv else None,
        "conv_alpha": _commonest(layer.alpha for layer in conv) if conv else None,
        "rank_dropout": lora.rank_dropout or None,
        "module_dropout": lora.module_dropout or None,
        "rs_lora": lora.rslora or None,
        "dora_wd": lora.dora != "off" or None,
        "wd_on_output": lora.dora == "output" if lora.dora != "off" else None,
        "loraplus_lr_ratio": config.optimizer.lora_plus if config.optimizer.lora_plus != 1 else None,
        "block_lrs": json.dumps(config.optimizer.block_lrs) if config.optimizer.block_lrs else None,
        "ema_decay": config.optimizer.ema_decay or None,
        "blocks": ", ".join(map(str, lora.blocks)) or None,
        "rank_patterns": json.dumps(lora.rank_patterns) if lora.rank_patterns else None,
        "alpha_patterns": json.dumps(lora.alpha_patterns) if lora.alpha_patterns else None,
        "initial": lora.initial if lora.initial != "gaussian" else None,
        "adaptive_rank": lora.adaptive_rank or None,
        "adaptive_budget": lora.rank if lora.adaptive_rank else None,
    }
    return {key: str(value) for key, value in said.items() if value is not None}


def _modelspec(config: TrainConfig, facts: TrainingFacts) -> dict[str, str]:
    values = {
        "sai_model_spec": "1.0.1",
        "architecture": facts.layout.modelspec + "/lora",
        "implementation": "diffusers",
        "title": config.output.name,
        "resolution": f"{facts.size_px}x{facts.size_px}",
        "date": datetime.fromtimestamp(facts.finished_at, UTC).isoformat(timespec="seconds"),
        "prediction_type": "v" if facts.prediction_type == "v_prediction" else facts.prediction_type,
        "description": config.output.comment,
        "trigger_phrase": config.output.trigger_word or config.word.text,
        "tags": config.output.kind,
    }
    return {f"modelspec.{key}": value for key, value in values.items() if value}
