"""OneTrainer's presets as our settings. Names and meanings: OneTrainer, `modules/util/config/TrainConfig.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_lora.train.foreign import Translation, share, whole, yes

_OPTIMIZERS = {
    "ADAMW": "adamw", "ADAMW_8BIT": "adamw8bit", "LION_8BIT": "lion8bit", "ADAFACTOR": "adafactor",
    "PRODIGY": "prodigy", "SCHEDULE_FREE_ADAMW": "schedule-free",
}  # fmt: skip
_NEAREST = {"ADAM": "adamw", "ADAM_8BIT": "adamw8bit", "LION": "lion8bit", "PRODIGY_PLUS_SCHEDULE_FREE": "prodigy"}
_SCHEDULES = {
    "CONSTANT": "constant", "LINEAR": "linear", "COSINE": "cosine", "COSINE_WITH_RESTARTS": "cosine-restarts",
    "COSINE_WITH_HARD_RESTARTS": "cosine-restarts", "ADAFACTOR": "constant",
}  # fmt: skip
_PRECISIONS = {"FLOAT_32": "fp32", "TFLOAT_32": "fp32", "FLOAT_16": "fp16", "BFLOAT_16": "bf16"}
_FAMILIES = ("STABLE_DIFFUSION_15", "STABLE_DIFFUSION_20", "STABLE_DIFFUSION_21", "STABLE_DIFFUSION_XL_10_BASE")

_NAMES_WITHOUT_EFFECT = """
    __version workspace_dir cache_dir debug_mode debug_dir tensorboard tensorboard_expose tensorboard_port
    validation validate_after validate_after_unit continue_last_backup include_train_config base_model_hash compile
    latent_caching clear_cache_before_training dataloader_threads train_device temp_device output_model_destination
    output_model_format sample_after sample_after_unit samples sample_definition_file_name sample_image_format
    samples_to_tensorboard non_ema_sampling backup_after backup_after_unit rolling_backup rolling_backup_count
    backup_before_save save_every save_every_unit save_skip_first save_filename_prefix weight_dtype
    fallback_train_dtype vae prior lora_model_name lora_weight_dtype embedding_weight_dtype optimizer_defaults
    layer_filter_preset secrets gradient_checkpointing layer_offload_fraction enable_async_offloading
    enable_activation_offloading concepts only_cache multi_gpu device_indexes tensorboard_always_on
    learning_rate_scaler custom_learning_rate_scheduler scheduler_params text_encoder_2 text_encoder_3
    text_encoder_4 unet transformer transformer embeddings cloud latent_caching preserve_embedding_norm
    circular_mask_generation
"""
_WITHOUT_EFFECT = frozenset(_NAMES_WITHOUT_EFFECT.split())
_OFF = {
    "training_method": "LORA", "peft_type": "LORA", "ema": "OFF", "loss_scaler": "NONE", "mse_strength": 1.0,
    "force_circular_padding": False, "dynamic_timestep_shifting": False, "timestep_shift": 1.0, "frames": "25",
    "max_noising_strength": 1.0, "noising_weight": 0.0, "noising_bias": 0.0, "gamma": 5.0, "loss_weight_strength": 5.0,
    "align_prop": False, "attention_mechanism": "SDP", "learning_rate_min_factor": 0.0,
    "normalize_masked_area_loss": False,
    "embedding_learning_rate": None, "prior_attention_mask": False, "ema_update_step_interval": 5, "ema_decay": 0.999,
    "unmasked_probability": 0.1, "unmasked_weight": 0.1, "aspect_ratio_bucketing": True, "vb_loss_strength": 1.0,
}  # fmt: skip


def from_preset(preset: Mapping[str, Any]) -> Translation:
    """The settings of a preset or of a saved configuration."""
    told = Translation(preset)
    if (family := told.get("model_type")) not in (None, *_FAMILIES):
        told.lose("model_type", "models of this family are not trained here")
    elif family:
        told.notes.append(f"it is for {family}: model.base must be of this family")
    for key, ours, convert in (
        ("base_model_name", "model.base", str), ("learning_rate", "optimizer.lr", float),
        ("batch_size", "train.batch_size", whole), ("lora_rank", "lora.rank", whole),
        ("lora_alpha", "lora.alpha", float),
        ("gradient_accumulation_steps", "train.accumulation", whole), ("dropout_probability", "lora.dropout", share),
        ("learning_rate_scheduler", "optimizer.schedule", lambda word: _SCHEDULES[str(word)]),
        ("learning_rate_cycles", "optimizer.cycles", lambda value: max(1, round(float(value)))),
        ("train_dtype", "train.precision", lambda word: _PRECISIONS[str(word)]),
        ("output_dtype", "output.dtype", lambda word: _PRECISIONS[str(word)]),
        ("clip_grad_norm", "optimizer.max_grad_norm", float), ("offset_noise_weight", "loss.noise_offset", share),
        ("perturbation_noise_weight", "loss.input_perturbation", share), ("seed", "train.seed", whole),
        ("rescale_noise_scheduler_to_zero_terminal_snr", "loss.zero_terminal_snr", yes),
        ("aspect_ratio_bucketing", "dataset.buckets", yes),
    ):  # fmt: skip
        told.take(key, ours, convert)
    told.settings.setdefault("lora.rank", 16)
    told.settings.setdefault("lora.alpha", 1.0)
    told.take("resolution", "dataset.size_px", _resolution)
    if told.get("lora_decompose", yes):
        told.settings["lora.dora"] = "output" if told.get("lora_decompose_output_axis", yes) else "input"
    told.get("lora_decompose_norm_epsilon"), told.get("lora_decompose_output_axis")
    _parts(told)
    _course(told)
    _loss(told)
    if told.get("masked_training", yes):
        told.settings["dataset.mask"] = "file"
        told.take("unmasked_weight", "dataset.mask_floor", share)
        told.notes.append("masks are named NAME.mask.png here, NAME-masklabel.png there")
    if (filter_ := told.get("layer_filter")) is not None:
        told.settings["lora.targets"] = [part.strip() for part in str(filter_).split(",") if part.strip()]
    if told.get("ema") in ("GPU", "CPU"):
        told.take("ema_decay", "optimizer.ema_decay", share)
    told.get("ema_decay")
    found = preset.get("concepts") or []
    paths = [str(one["path"]) for one in found if isinstance(one, dict) and one.get("path")]
    if paths:
        told.settings["dataset.path"] = paths[0]
    if len(paths) > 1:
        told.notes.append(f"{len(paths)} concepts: add the others to dataset.sources ({', '.join(paths[1:])})")
    if (file := told.get("concept_file_name")) is not None and not paths:
        told.notes.append(f"its pictures are listed in {file}: set dataset.path to their folder")
    told.finish(_WITHOUT_EFFECT, _OFF)
    return told


def _parts(told: Translation) -> None:
    """UNet and text encoder: which of them learn, and how fast."""
    unet = told.given.get("unet") or told.given.get("prior") or {}
    text = told.given.get("text_encoder") or {}
    told.get("text_encoder", dict)
    rate = told.settings.get("optimizer.lr", 1e-4)
    if isinstance(unet, dict):
        told.settings["optimizer.lr"] = float(unet.get("learning_rate") or rate) if unet.get("train", True) else 0.0
    learns = isinstance(text, dict) and bool(text.get("train", True))
    told.settings["optimizer.text_lr"] = float(text.get("learning_rate") or rate) if learns else 0.0
    told.settings["lora.text_targets"] = "attention+mlp" if learns else "none"
    told.settings["lora.targets"] = "everything"
    if isinstance(text, dict):
        if text.get("dropout_probability"):
            told.settings["dataset.caption_dropout"] = float(text["dropout_probability"])
        if learns and text.get("stop_training_after") and text.get("stop_training_after_unit") == "STEP":
            told.settings["optimizer.text_stop_step"] = int(text["stop_training_after"])
        elif learns and text.get("stop_training_after") and text.get("stop_training_after_unit") != "NEVER":
            told.notes.append(
                f"the text encoder learned for {text['stop_training_after']} epochs: set optimizer.text_stop_step"
            )
    second = told.given.get("text_encoder_2") or {}
    rates = [one.get("learning_rate") for one in (text, second) if isinstance(one, dict)]
    if len(rates) == 2 and rates[1] and rates[0] != rates[1]:
        told.lost.append("text_encoder_2.learning_rate: all text encoders learn at one rate here")
    skip = told.get("text_encoder_layer_skip", whole)
    if skip:
        told.lose("text_encoder_layer_skip", "captions are read by the layer that the base says")


def _course(told: Translation) -> None:
    """Optimizer, schedule and length."""
    table = told.get("optimizer", lambda value: dict(value) if isinstance(value, dict) else {"optimizer": str(value)})
    if table:
        name = str(table.get("optimizer") or "ADAMW")
        if name in _OPTIMIZERS:
            told.settings["optimizer.name"] = _OPTIMIZERS[name]
        else:
            told.settings["optimizer.name"] = _NEAREST.get(name, "adamw8bit")
            told.lost.append(f"optimizer = {name!r}: {told.settings['optimizer.name']} is taken, the nearest there is")
        if table.get("weight_decay") is not None:
            told.settings["optimizer.weight_decay"] = float(table["weight_decay"])
        if table.get("beta1") is not None and table.get("beta2") is not None:
            told.settings["optimizer.betas"] = (float(table["beta1"]), float(table["beta2"]))
    if told.settings.get("optimizer.name") == "prodigy":
        for key in ("optimizer.lr", "optimizer.text_lr"):
            if 0 < told.settings[key] < 0.01:
                told.settings[key] = 1.0
    if told.settings.get("optimizer.name") == "schedule-free":
        told.settings["optimizer.schedule"] = "constant"
    warmup = told.get("learning_rate_warmup_steps", float)
    if warmup and warmup >= 1:
        told.settings["optimizer.warmup_steps"] = round(warmup)
    elif warmup:
        told.notes.append(f"the warm-up took {100 * warmup:g} % of the steps: set optimizer.warmup_steps")
    epochs = told.get("epochs", whole)
    if epochs:
        told.notes.append(f"{epochs} epochs: set train.steps to epochs x pictures / batch (1500 until then)")


def _loss(told: Translation) -> None:
    strength = told.get("loss_weight_strength", float)
    match told.get("loss_weight_fn"):
        case "MIN_SNR_GAMMA":
            told.settings["loss.min_snr_gamma"] = strength or 5.0
        case "DEBIASED_ESTIMATION":
            told.settings |= {"loss.debiased": True, "loss.min_snr_gamma": 0.0}
        case None | "CONSTANT":
            told.settings["loss.min_snr_gamma"] = 0.0
        case _:
            told.settings["loss.min_snr_gamma"] = 0.0
            told.lose("loss_weight_fn", "timesteps weigh the same")
    match told.get("timestep_distribution"):
        case None | "UNIFORM":
            pass
        case "LOGIT_NORMAL":
            told.settings["loss.timesteps"] = "logit-normal"
            told.take("noising_bias", "loss.logit_mean", float)
            told.take("noising_weight", "loss.logit_std", lambda value: 1.0 + float(value))
        case _:
            told.lose("timestep_distribution", "timesteps are drawn evenly")
    others = {"mae_strength": "mean absolute error", "log_cosh_strength": "log-cosh", "huber_strength": "Huber"}
    for key, what in others.items():
        if told.get(key, float):
            told.lose(key, f"{what} is not mixed into the squared error here")


def _resolution(value: Any) -> int:
    """ "512", "512x768" or several by commas: the side of the first one's square."""
    first = str(value).split(",")[0].lower()
    sides = [int(side) for side in first.split("x")]
    return max(8, round((sides[0] * sides[-1]) ** 0.5 / 8) * 8)
