"""The header of a trained adapter, read as other programs read it."""

import json
from dataclasses import replace

import pytest

from diffusion_lora.config import TrainConfig
from diffusion_lora.layouts.layout import SD2, SD15, SDXL
from diffusion_lora.lora.metadata import LayerFacts, TrainingFacts, training_metadata
from diffusion_lora.lora.set_metadata import FolderFacts, tag_frequency

CONFIG = TrainConfig.model_validate(
    {
        "dataset": {"path": "sets/blueprint"},
        "lora": {"rank": 8, "alpha": 4.0, "targets": "wide"},
        "train": {"steps": 100, "batch_size": 2, "accumulation": 2, "precision": "fp32", "seed": 3},
        "output": {"name": "blue", "trigger_word": "blueprint style", "kind": "style", "comment": ""},
    }
)
FACTS = TrainingFacts(
    layout=SD15,
    base_name="v1-5",
    base_hash="ab" * 32,
    prediction_type="epsilon",
    optimizer="bitsandbytes.optim.AdamW8bit",
    size_px=512,
    folders=[FolderFacts("blueprint", ["a cat, Blueprint style", "a dog, blueprint style", "a boat"])],
    buckets={(512, 512): 3},
    steps=40,
    started_at=1000.0,
    finished_at=1030.5,
    layers=(LayerFacts(8, 4.0), LayerFacts(8, 4.0), LayerFacts(8, 4.0, is_conv=True)),
)


def test_the_keys_every_program_relies_on_are_there_and_are_text() -> None:
    metadata = training_metadata(CONFIG, FACTS)
    assert all(isinstance(value, str) for value in metadata.values())
    expected = {
        "ss_v2": "False",
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "8",
        "ss_network_alpha": "4.0",
        "ss_output_name": "blue",
        "ss_sd_model_name": "v1-5",
        "ss_new_sd_model_hash": "ab" * 32,
        "ss_clip_skip": "None",
        "ss_resolution": "(512, 512)",
        "ss_seed": "3",
        "ss_steps": "40",
        "ss_max_train_steps": "100",
        "ss_num_train_images": "3",
        "ss_total_batch_size": "4",
        "ss_epoch": "40",
        "ss_mixed_precision": "no",
        "ss_optimizer": "bitsandbytes.optim.AdamW8bit",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "blue",
        "modelspec.resolution": "512x512",
        "modelspec.date": "1970-01-01T00:17:10+00:00",
        "modelspec.prediction_type": "epsilon",
        "modelspec.trigger_phrase": "blueprint style",
        "modelspec.tags": "style",
    }
    assert {key: metadata.get(key) for key in expected} == expected


def test_the_nested_values_parse_as_json_the_way_web_uis_parse_them() -> None:
    metadata = training_metadata(CONFIG, FACTS)
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "8", "conv_alpha": "4.0"}
    assert json.loads(metadata["ss_dataset_dirs"]) == {"blueprint": {"n_repeats": 1, "img_count": 3}}
    assert json.loads(metadata["ss_tag_frequency"])["blueprint"]["blueprint style"] == 2
    assert json.loads(metadata["ss_bucket_info"])["buckets"]["0"] == {"resolution": [512, 512], "count": 3}


def test_several_folders_and_how_they_were_shown_are_told_in_kohyas_words() -> None:
    folders = [
        FolderFacts("5_zib", ["zib, red", "zib"], repeats=5),
        FolderFacts("half", ["a"] * 4, repeats=0.5),
        FolderFacts("cats", ["a cat"], weight=0.7, regularisation=True),
    ]
    table = CONFIG.dataset.model_copy(
        update={"shuffle": True, "keep_first": 1, "enlarge": False, "caption_tokens": 225}
    )
    config = CONFIG.model_copy(update={"dataset": table})
    metadata = training_metadata(config, replace(FACTS, folders=folders, buckets={(448, 576): 5, (512, 512): 2}))
    assert json.loads(metadata["ss_dataset_dirs"]) == {
        "5_zib": {"n_repeats": 5, "img_count": 2},
        "half": {"n_repeats": 0.5, "img_count": 4},
    }
    assert json.loads(metadata["ss_reg_dataset_dirs"]) == {"cats": {"n_repeats": 1, "img_count": 1}}
    assert json.loads(metadata["ss_tag_frequency"])["5_zib"] == {"zib": 2, "red": 1}
    assert json.loads(metadata["ss_bucket_info"])["buckets"]["0"] == {"resolution": [448, 576], "count": 5}
    told = ("num_train_images", "num_reg_images", "prior_loss_weight", "shuffle_caption", "keep_tokens",
            "enable_bucket", "bucket_no_upscale", "max_token_length", "num_batches_per_epoch")  # fmt: skip
    assert [metadata[f"ss_{key}"] for key in told] == ["6", "1", "0.7", "True", "1", "True", "True", "225", "6"]


def test_how_the_adapter_was_made_is_told_in_the_words_of_the_trainers_who_have_one() -> None:
    """Two files of one rank would look alike to who compares them, and learn unlike."""
    config = CONFIG.model_copy(
        update={
            "lora": CONFIG.lora.model_copy(
                update={
                    "targets": "attention",
                    "conv_rank": 4,
                    "conv_alpha": 2.0,
                    "rslora": True,
                    "dora": "input",
                    "dropout": 0.1,
                    "rank_dropout": 0.2,
                    "module_dropout": 0.3,
                    "blocks": ("mid", "up"),
                    "rank_patterns": {"mid_block": 32},
                    "initial": "orthogonal",
                }
            ),
            "optimizer": CONFIG.optimizer.model_copy(update={"lora_plus": 16.0}),
        }
    )
    layers = (LayerFacts(8, 4.0), LayerFacts(32, 4.0), LayerFacts(8, 4.0), LayerFacts(4, 2.0, is_conv=True))
    metadata = training_metadata(config, replace(FACTS, layers=layers))
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("8", "4.0")
    assert (metadata["ss_network_module"], metadata["ss_network_dropout"]) == ("lycoris.kohya", "0.1")
    assert json.loads(metadata["ss_network_args"]) == {
        "algo": "lora",
        "conv_dim": "4",
        "conv_alpha": "2.0",
        "rank_dropout": "0.2",
        "module_dropout": "0.3",
        "rs_lora": "True",
        "dora_wd": "True",
        "wd_on_output": "False",
        "loraplus_lr_ratio": "16.0",
        "blocks": "mid, up",
        "rank_patterns": '{"mid_block": 32}',
        "initial": "orthogonal",
    }
    linear = replace(FACTS, layers=(LayerFacts(16, 16.0),))
    plain = training_metadata(CONFIG.model_copy(update={"lora": type(CONFIG.lora)()}), linear)
    assert (json.loads(plain["ss_network_args"]), plain["ss_network_dropout"]) == ({}, "None")


def test_what_was_minimised_is_told_in_kohyas_words() -> None:
    """Who trains on from a file, or compares two, reads there what noise and which weights it was made with."""
    plain = training_metadata(CONFIG, FACTS)
    off = ("ss_noise_offset", "ss_multires_noise_iterations", "ss_multires_noise_discount", "ss_ip_noise_gamma")
    assert {plain[key] for key in (*off, "ss_huber_c", "ss_huber_schedule")} == {"None"}
    assert (plain["ss_loss_type"], plain["ss_min_snr_gamma"], plain["ss_debiased_estimation"]) == ("l2", "5.0", "False")
    loss = {
        "kind": "huber",
        "huber_c": 0.2,
        "min_snr_gamma": None,
        "debiased": True,
        "noise_offset": 0.05,
        "pyramid_noise": 0.3,
        "pyramid_levels": 4,
        "input_perturbation": 0.1,
        "zero_terminal_snr": True,
        "timesteps": "early",
    }
    optimizer = CONFIG.optimizer.model_copy(update={"schedule": "cosine-restarts", "block_lrs": {"down": 0.5}})
    config = CONFIG.model_copy(update={"loss": CONFIG.loss.model_copy(update=loss), "optimizer": optimizer})
    told = training_metadata(config, FACTS)
    expected = {
        "ss_loss_type": "huber",
        "ss_huber_c": "0.2",
        "ss_huber_schedule": "snr",
        "ss_min_snr_gamma": "None",
        "ss_debiased_estimation": "True",
        "ss_noise_offset": "0.05",
        "ss_multires_noise_iterations": "4",
        "ss_multires_noise_discount": "0.3",
        "ss_ip_noise_gamma": "0.1",
        "ss_zero_terminal_snr": "True",
        "ss_timestep_sampling": "early",
        "ss_lr_scheduler": "cosine_with_restarts",
    }
    assert {key: told[key] for key in expected} == expected
    assert json.loads(told["ss_network_args"])["block_lrs"] == '{"down": 0.5}'


def test_tags_are_counted_over_captions_the_commonest_first() -> None:
    counts = tag_frequency(["red cat, Sky", "sky , red cat,", "sky", ""])
    assert list(counts.items()) == [("sky", 3), ("red cat", 2)]


@pytest.mark.parametrize(
    ("layout", "kind"), [(SD15, "SD1"), (SD2, "SD2"), (SDXL, "SDXL")], ids=lambda value: getattr(value, "name", value)
)
def test_a_web_ui_recognises_the_family(layout: object, kind: str) -> None:
    """AUTOMATIC1111's rule, re-implemented: a file of the wrong kind is hidden from its users."""
    metadata = training_metadata(CONFIG, replace(FACTS, layout=layout))
    if metadata["ss_base_model_version"].startswith("sdxl_"):
        seen = "SDXL"
    else:
        seen = "SD2" if metadata["ss_v2"] == "True" else "SD1"
    assert seen == kind


def test_what_is_not_known_is_said_as_kohya_says_it_or_left_out() -> None:
    metadata = training_metadata(CONFIG, replace(FACTS, base_hash="", prediction_type="v_prediction"))
    assert metadata["ss_new_sd_model_hash"] == "None"
    assert metadata["modelspec.prediction_type"] == "v"
    assert "modelspec.description" not in metadata
