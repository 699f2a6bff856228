"""kohya's settings as ours: those of sd-scripts in a LoRA's header (`ss_*`), and those of the kohya_ss form as JSON.

Names and meanings: sd-scripts, `train_network.py` (what it writes into the header) and `library/train_util.py` (its
arguments), kohya_ss, `kohya_gui/lora_gui.py` (what its form saves).
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from diffusion_lora.train.foreign import Translation, share, whole, yes

_OPTIMIZERS = {
    "adamw": "adamw", "adamw8bit": "adamw8bit", "pagedadamw8bit": "paged-adamw8bit", "lion8bit": "lion8bit",
    "adafactor": "adafactor", "prodigy": "prodigy", "adamwschedulefree": "schedule-free",
}  # fmt: skip
_NEAREST = {
    "lion": "lion8bit", "pagedlion8bit": "lion8bit", "adam": "adamw", "adam8bit": "adamw8bit", "radam": "adamw",
    "pagedadamw": "paged-adamw8bit", "pagedadamw32bit": "paged-adamw8bit", "radamschedulefree": "schedule-free",
    "prodigyplusschedulefree": "prodigy", "dadaptation": "prodigy", "dadaptadam": "prodigy",
}  # fmt: skip
_SCHEDULES = {
    "constant": "constant", "constant_with_warmup": "constant", "cosine": "cosine", "linear": "linear",
    "cosine_with_restarts": "cosine-restarts", "polynomial": "polynomial", "adafactor": "constant",
}  # fmt: skip
_PRECISIONS = {"no": "fp32", "fp16": "fp16", "bf16": "bf16"}

_NAMES_WITHOUT_EFFECT = """
    session_id training_started_at training_finished_at sd_scripts_commit_hash sd_model_hash new_sd_model_hash
    vae_name vae_hash new_vae_hash lowram cache_latents num_train_images num_reg_images num_batches_per_epoch
    num_epochs epoch steps tag_frequency bucket_info datasets reg_dataset_dirs total_batch_size base_model_version
    resize_interpolation num_validation_images validation_seed max_validation_steps huber_scale min_bucket_reso
    max_bucket_reso bucket_reso_steps cache_latents_to_disk cache_text_encoder_outputs caption_extension xformers
    mem_eff_attn sdpa num_cpu_threads_per_process max_data_loader_n_workers persistent_data_loader_workers
    output_dir logging_dir log_with log_tracker_name log_tracker_config wandb_api_key wandb_run_name save_model_as
    save_every_n_epochs save_every_n_steps save_last_n_steps save_last_n_steps_state save_state
    save_state_on_train_end save_last_n_epochs save_last_n_epochs_state save_state_to_huggingface resume
    huggingface_token huggingface_repo_id huggingface_repo_type huggingface_path_in_repo huggingface_repo_visibility
    metadata_author metadata_description metadata_license metadata_tags metadata_title no_metadata model_list
    sample_every_n_epochs sample_sampler sample_every_n_steps dataset_config additional_parameters
    extra_accelerate_launch_args gpu_ids main_process_port multi_gpu num_machines num_processes dynamo_backend
    dynamo_mode dynamo_use_dynamic dynamo_use_fullgraph LyCORIS_preset max_train_epochs vae_batch_size fp8_base
    fp8_base_unet full_bf16 ddp_gradient_as_bucket_view ddp_static_graph ip_noise_gamma_random_strength
    noise_offset_random_strength v_pred_like_loss skip_cache_check caption_metadata enable_all_linear highvram
    async_upload
"""
_WITHOUT_EFFECT = frozenset(_NAMES_WITHOUT_EFFECT.split())
_OFF = {
    "caption_dropout_every_n_epochs": 0, "prior_loss_weight": 1.0, "max_token_length": 75, "guidance_scale": 3.5,
    "factor": -1, "decompose_both": False, "noise_offset_type": "Original", "timestep_sampling": "uniform",
    "discrete_flow_shift": 3, "loraplus_lr_ratio": 0, "bypass_mode": False, "unit": 1, "dim_from_weights": False,
    "mem_eff_save": False, "keep_tokens": 0, "lr_scheduler_num_cycles": 1, "lr_scheduler_power": 1, "min_timestep": 0,
    "max_timestep": 1000, "use_tucker": False, "constrain": 0.0, "rank_dropout_scale": False,
    "vae_padding_mode": "zeros",
}  # fmt: skip

_ARGUMENT = re.compile(r"(\w+)\s*=\s*(\([^)]*\)|\[[^\]]*\]|[^,\s]+)")


def from_metadata(metadata: Mapping[str, str]) -> Translation:
    """The settings that a LoRA's header tells."""
    words = {key.removeprefix("ss_"): value for key, value in metadata.items() if key.startswith("ss_")}
    arguments = _json(words.pop("network_args", None))
    told = Translation({**arguments, **words})
    told.take("unet_lr", "optimizer.lr", float)
    if "optimizer.lr" not in told.settings:
        told.take("learning_rate", "optimizer.lr", float)
    told.get("learning_rate")
    told.take("text_encoder_lr", "optimizer.text_lr", _first_number)
    told.take("batch_size_per_device", "train.batch_size", whole)
    if "train.batch_size" not in told.settings:
        told.take("total_batch_size", "train.batch_size", whole)
    told.take("mixed_precision", "train.precision", lambda word: _PRECISIONS[str(word)])
    told.take("resolution", "dataset.size_px", _side)
    told.take("sd_model_name", "model.base", str)
    told.take("optimizer", "optimizer.name", lambda text: _optimizer(told, text))
    told.take("lr_warmup_steps", "optimizer.warmup_steps", whole)
    if _json(told.get("dataset_dirs")):
        folders = ", ".join(map(repr, _json(told.get("dataset_dirs"))))
        told.notes.append(f"the pictures lay in {folders}: set dataset.path to the folder that holds them")
    module = told.get("network_module") or "networks.lora"
    if module not in ("networks.lora", "lycoris.kohya"):
        told.lose("network_module", "another kind of network; a LoRA is trained")
    told.settings.setdefault("optimizer.text_lr", 0.0)
    return _finished(told)


def from_form(form: Mapping[str, Any]) -> Translation:
    """The settings that kohya_ss saves."""
    # The form keeps what was last in the fields of convolutions, and does not use it.
    unused = ("conv_dim", "conv_alpha") if form.get("LoRA_type", "Standard") == "Standard" else ()
    told = Translation({key: value for key, value in form.items() if key not in unused})
    told.take("unet_lr", "optimizer.lr", lambda value: float(value) or None)
    if "optimizer.lr" not in told.settings:
        told.take("learning_rate", "optimizer.lr", float)
    told.get("learning_rate")
    told.take("text_encoder_lr", "optimizer.text_lr", _first_number)
    told.take("train_batch_size", "train.batch_size", whole)
    told.take("mixed_precision", "train.precision", lambda word: _PRECISIONS[str(word)])
    told.take("save_precision", "output.dtype", lambda word: {"float": "fp32"}.get(word, word))
    told.take("max_resolution", "dataset.size_px", _side)
    told.take("pretrained_model_name_or_path", "model.base", str)
    told.take("vae", "model.vae", str)
    told.take("train_data_dir", "dataset.path", str)
    told.take("optimizer", "optimizer.name", lambda text: _optimizer(told, text, str(told.get("optimizer_args") or "")))
    told.take("lr_scheduler_num_cycles", "optimizer.cycles", lambda value: max(1, whole(value)))
    told.take("lr_scheduler_power", "optimizer.power", float)
    told.take("sample_prompts", "preview.prompts", _prompts)
    kind = told.get("LoRA_type") or "Standard"
    if kind not in ("Standard", "LyCORIS/LoCon", "Kohya LoCon"):
        told.lose("LoRA_type", "a LoRA is trained")
    steps = told.settings.get("train.steps") or told.get("max_train_steps", whole)
    epochs = told.get("epoch", whole) or told.get("max_train_epochs", whole)
    if not steps and epochs:
        told.notes.append(f"{epochs} epochs: set train.steps to epochs x pictures x repeats / batch")
    percent, warmup_steps = told.get("lr_warmup", float), told.get("lr_warmup_steps", whole)
    if warmup_steps or (percent and steps):
        told.settings["optimizer.warmup_steps"] = warmup_steps or round((percent or 0) / 100 * (steps or 0))
    if share_of := told.get("stop_text_encoder_training", float) or told.get("stop_text_encoder_training_pct", float):
        if share_of < 0:
            told.settings["optimizer.text_lr"] = 0.0
        elif steps:
            told.settings["optimizer.text_stop_step"] = round(share_of / 100 * steps)
    if told.get("reg_data_dir"):
        told.notes.append("reg_data_dir: add it to dataset.sources, with regularisation = true")
    if told.get("masked_loss", yes):
        told.settings["dataset.mask"] = "alpha"
    told.settings["dataset.layout"] = "kohya"
    return _finished(told)


def _finished(told: Translation) -> Translation:
    """What both spell alike, and the rest."""
    told.take("network_dim", "lora.rank", whole)
    rank = told.settings.get("lora.rank", 4)
    told.settings["lora.rank"] = rank
    told.settings["lora.alpha"] = told.get("network_alpha", float) or float(rank)
    conv = told.get("conv_dim", whole) or told.get("conv_rank", whole)
    if conv:
        told.settings |= {"lora.conv_rank": conv, "lora.targets": "everything"}
        told.settings["lora.conv_alpha"] = told.get("conv_alpha", float) or float(conv)
    else:
        told.settings["lora.targets"] = "linear"
    told.get("conv_alpha")
    told.settings["lora.text_targets"] = "attention+mlp" if told.settings.get("optimizer.text_lr") else "none"
    for key, ours, convert in (
        ("network_dropout", "lora.dropout", share), ("dropout", "lora.dropout", share),
        ("rank_dropout", "lora.rank_dropout", share), ("module_dropout", "lora.module_dropout", share),
        ("rs_lora", "lora.rslora", yes), ("max_train_steps", "train.steps", whole),
        ("gradient_accumulation_steps", "train.accumulation", lambda value: max(1, whole(value))),
        ("seed", "train.seed", lambda value: whole(value) or None), ("max_grad_norm", "optimizer.max_grad_norm", float),
        ("lr_scheduler", "optimizer.schedule", lambda word: _SCHEDULES[str(word)]),
        ("noise_offset", "loss.noise_offset", share), ("ip_noise_gamma", "loss.input_perturbation", share),
        ("debiased_estimation", "loss.debiased", yes), ("debiased_estimation_loss", "loss.debiased", yes),
        ("zero_terminal_snr", "loss.zero_terminal_snr", yes), ("min_timestep", "loss.min_timestep", whole),
        ("shuffle_caption", "dataset.shuffle", yes), ("keep_tokens", "dataset.keep_first", whole),
        ("caption_dropout_rate", "dataset.caption_dropout", share), ("flip_aug", "dataset.flip", yes),
        ("caption_tag_dropout_rate", "dataset.tag_dropout", share), ("enable_bucket", "dataset.buckets", yes),
        ("bucket_no_upscale", "dataset.enlarge", lambda value: not yes(value)),
        ("random_crop", "dataset.crop", lambda value: "random" if yes(value) else "centre"),
        ("max_token_length", "dataset.caption_tokens", lambda value: {75: 75, 150: 150, 225: 225}[whole(value)]),
        ("gradient_checkpointing", "train.checkpointing", lambda value: "on" if yes(value) else "auto"),
        ("keep_tokens_separator", "dataset.keep_separator", str), ("enable_wildcard", "dataset.wildcards", yes),
        ("weighted_captions", "dataset.weighted", yes), ("output_name", "output.name", _file_name),
        ("training_comment", "output.comment", str),
    ):  # fmt: skip
        told.take(key, ours, convert)
    gamma = told.get("min_snr_gamma", float)
    told.settings["loss.min_snr_gamma"] = 0.0 if told.settings.get("loss.debiased") else gamma or 0.0
    last = told.get("max_timestep", whole)
    if last and last < 1000:
        told.settings["loss.max_timestep"] = last
    levels, discount = told.get("multires_noise_iterations", whole), told.get("multires_noise_discount", share)
    if levels:
        told.settings |= {"loss.pyramid_levels": levels, "loss.pyramid_noise": discount or 0.3}
    kind = told.get("loss_type")
    if kind in ("huber", "smooth_l1"):
        told.settings["loss.kind"] = "huber"
        told.take("huber_c", "loss.huber_c", float)
        told.take("huber_schedule", "loss.huber_schedule", str)
    told.get("huber_c"), told.get("huber_schedule")
    if kind not in (None, "l2", "huber"):
        told.lose("loss_type", "the nearest is taken" if kind == "smooth_l1" else "squared error is taken")
    ratio = told.get("loraplus_lr_ratio", float)
    if ratio:
        told.settings["optimizer.lora_plus"] = ratio
    if told.get("dora_wd", yes):
        told.settings["lora.dora"] = "output" if told.get("wd_on_output", yes) else "input"
    algo = told.get("algo")
    if algo not in (None, "lora", "locon"):
        told.lose("algo", f"{algo} is drawn with here and not trained: a LoRA of this rank is")
    if told.get("color_aug", yes):
        told.settings["dataset.colour_jitter"] = 0.1
    if (skipped := told.get("clip_skip", whole)) and skipped > 1:
        told.lose("clip_skip", "captions are read by the layer that the base says")
    if told.get("scale_weight_norms", float):
        told.lose("scale_weight_norms", "there is no such limit; lora.dropout or a lower rate keep norms small")
    if (told.get("v2", yes) or told.get("sdxl", yes)) and "model.base" in told.settings:
        told.notes.append(f"model.base = {told.settings['model.base']!r} must be of the same family here")
    _prodigy(told)
    if told.settings.get("optimizer.name") == "schedule-free":
        told.settings["optimizer.schedule"] = "constant"
    told.finish(_WITHOUT_EFFECT, _OFF)
    return told


def _optimizer(told: Translation, text: Any, arguments: str = "") -> str:
    """ "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1)" or "AdamW8bit", with what stands in its brackets."""
    path, _, inside = str(text).partition("(")
    name = path.rpartition(".")[2].strip()
    for key, value in _ARGUMENT.findall(f"{inside.removesuffix(')')} {arguments}"):
        try:
            number = ast.literal_eval(value)
            if key == "weight_decay":
                told.settings["optimizer.weight_decay"] = float(number)
            elif key == "betas":
                told.settings["optimizer.betas"] = tuple(float(beta) for beta in tuple(number)[:2])
            else:
                told.lost.append(f"the optimizer's {key} = {value}: there is no such setting here")
        except (ValueError, TypeError, SyntaxError):
            told.lost.append(f"the optimizer's {key} = {value} is not understood")
    known = name.lower()
    if known in _OPTIMIZERS:
        return _OPTIMIZERS[known]
    nearest = _NEAREST.get(known, "adamw8bit")
    told.lost.append(f"the optimizer {name}: {nearest} is taken, the nearest there is")
    return nearest


def _prodigy(told: Translation) -> None:
    if told.settings.get("optimizer.name") == "prodigy":
        for key in ("optimizer.lr", "optimizer.text_lr"):
            if 0 < told.settings.get(key, 1.0) < 0.01:
                told.lost.append(f"{key} = {told.settings[key]}: prodigy finds rates itself, 1 is taken")
                told.settings[key] = 1.0


def _first_number(value: Any) -> float:
    found = _json(value) if isinstance(value, str) and value.startswith("[") else value
    return float(found[0] if isinstance(found, list) else found)


def _side(value: Any) -> int:
    """ "(768, 512)", "768,512" or 512: the side of the square of that area, a multiple of 8."""
    numbers = [int(number) for number in re.findall(r"\d+", str(value))][:2]
    return max(8, round(math.prod(numbers) ** (1 / len(numbers)) / 8) * 8)


def _prompts(value: Any) -> list[str] | None:
    lines = [line.partition(" --")[0].strip() for line in str(value).splitlines()]
    return [line for line in lines if line and not line.startswith("#")] or None


def _file_name(value: Any) -> str:
    return re.sub(r"[/\\\x00-\x1f]+", "-", str(value))


def _json(value: Any) -> Any:
    if not isinstance(value, str):
        return value or {}
    try:
        return json.loads(value) or {}
    except ValueError:
        return {}
