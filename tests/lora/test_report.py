"""The load report: what is told of a file from its header, from its values, and against a model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from diffusion_lora.errors import AdapterFileError
from diffusion_lora.lora.adapter import read_adapter
from diffusion_lora.lora.header import read_header
from diffusion_lora.lora.report import LoadReport, load_report, trigger_words
from tests.lora import spellings
from tests.lora.spellings import SPELLINGS

Q = "unet.down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
K = "unet.mid_block_attentions_0_transformer_blocks_0_attn2_to_k"


PEAK = """
def peak():
    \"\"\"Megabytes at most so far; getrusage would count those of the process that started this one.\"\"\"
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
"""
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured through /proc")


def report_of(path: Path) -> LoadReport:
    return load_report(read_header(path), values=read_adapter(path, finite=False))


@pytest.mark.parametrize("spelling", [name for name in SPELLINGS if name != "PEFT"])
def test_a_header_alone_tells_the_scale_that_the_values_have(spelling: str, tmp_path: Path) -> None:
    """A list that is read without torch must not say another strength than the one that is drawn with."""
    path, _ = SPELLINGS[spelling](tmp_path)
    by_header, by_values = load_report(read_header(path)), load_report(read_adapter(path))
    assert by_header.as_dict() | {"matched": 0, "total": 0, "norms": 0, "norm": 0, "not_finite": 0, "zero": 0} == (
        by_values.as_dict() | {"matched": 0, "total": 0, "norms": 0, "norm": 0, "not_finite": 0, "zero": 0}
    )
    assert by_header.norms is None
    assert by_header.matched == by_header.total == len(read_header(path).tensors)


def test_a_mixed_file_is_told_in_ranges(tmp_path: Path) -> None:
    path, truth = spellings.kohya(tmp_path)
    report = report_of(path)
    assert (report.family, report.format) == ("Stable Diffusion 1", "kohya")
    assert (report.kinds, report.components, report.layers) == ({"LoRA": 11}, {"te": 5, "unet": 6}, 11)
    assert (report.matched, report.total, report.warnings) == (33, 33, ())
    assert report.ranks == (2, 4)
    assert report.alphas == (pytest.approx(0.7), 4.0)
    assert report.scales == (pytest.approx(0.7 / 3), 2.0)
    assert report.scale == 0.375
    assert report.dtypes == ("F32",)
    assert report.norms is not None
    assert list(report.norms) == ["text", "down 0", "mid", "up 1"]
    norm = sum(float(delta.square().sum()) for delta in truth.values()) ** 0.5
    assert report.norm == pytest.approx(norm, rel=1e-5)
    assert report.norms["up 1"] == pytest.approx(float(truth["unet.up_blocks_1_resnets_0_conv1"].norm()), rel=1e-5)
    assert json.loads(json.dumps(report.as_dict()))["ranks"] == [2, 4]


def test_every_form_has_its_norm(tmp_path: Path) -> None:
    """By shortcuts for the plain and the Kronecker form, which must not be another number."""
    path, truth = spellings.lycoris(tmp_path)
    adapter = read_adapter(path)
    for key, layer in adapter.layers.items():
        assert layer.norm() == pytest.approx(float(truth[key].norm()), rel=1e-5), key
    assert load_report(adapter).kinds == {"LoKr": 4, "LoHa": 2, "LoRA": 1, "full": 1}


def test_the_real_files_are_told(lora_data: Path) -> None:
    report = report_of(lora_data / "derived" / "weapon_v15_rank4_kohya.safetensors")
    assert (report.family, report.matched, report.total) == ("Stable Diffusion 1", 384, 384)
    assert report.norm == pytest.approx(4.7302, abs=5e-5)  # 4.7301 when fp32 sums the squares
    assert (report.not_finite, report.zero, report.warnings) == ((), (), ())
    lokr = report_of(lora_data / "lycoris_smart_falcon_4_lokr.safetensors")
    assert (lokr.matched, lokr.total, lokr.kinds, lokr.scale) == (1750, 1750, {"LoKr": 350}, 1.0)
    assert lokr.family == "Stable Diffusion 1"


def test_broken_and_idle_layers_are_named(tmp_path: Path) -> None:
    """NaN makes every picture black, and a layer of zeros is a training that never moved."""
    path, _ = spellings.kohya(tmp_path)
    tensors = safetensors.torch.load_file(path)
    tensors[f"lora_unet_{Q[5:]}.lora_down.weight"][0, 0] = float("nan")
    tensors[f"lora_unet_{K[5:]}.lora_up.weight"].zero_()
    safetensors.torch.save_file(tensors, path)
    report = report_of(path)
    assert (report.not_finite, report.zero) == ((Q,), (K,))
    assert report.warnings == (
        f"1 of 11 layers hold values that are not finite, the first is {Q}",
        f"1 of 11 layers are all zero, the first is {K}",
    )
    json.dumps(report.as_dict(), allow_nan=False)


def test_what_is_left_out_is_loud(tmp_path: Path) -> None:
    path, _ = spellings.kohya(tmp_path)
    tensors = safetensors.torch.load_file(path)
    tensors |= {"bundle_emb.x.something": torch.ones(1, 768), "lora_unet_conv_in.w_norm": torch.ones(4)}
    tensors |= {"lora_unet_conv_out.w_norm": torch.ones(4)}
    safetensors.torch.save_file(tensors, path)
    report = report_of(path)
    assert (report.matched, report.total) == (33, 36)
    assert report.warnings == (
        "3 of 36 tensors are not read: 2 (a normalisation layer (LyCORIS)), 1 (an embedding bundled in the file)",
    )
    adapter = read_adapter(path)
    assert adapter.unread == report.unread
    assert adapter.notes[0].startswith("3 tensors of its file are not read: 2 (a normalisation")


def test_layers_that_the_model_has_not_are_named(tmp_path: Path) -> None:
    path, truth = spellings.kohya(tmp_path)
    sites: dict[str, tuple[int, ...]] = {key: tuple(delta.shape) for key, delta in truth.items()}
    sites["unet.mid_block_attentions_0_proj_in"] = (12, 12)  # the same matrix, as SD 2 has it
    assert load_report(read_header(path), sites).unfit == {}
    sites[K] = (12, 1024)
    del sites[Q]
    assert load_report(read_header(path), sites).unfit == {
        Q: "the model has no such layer",
        K: "it is 12x768 there and 12x1024 in the model",
    }
    assert "2 of 11 layers are not this model's" in load_report(read_adapter(path), sites).warnings[0]


def test_a_file_of_nothing_that_is_read_has_no_report(tmp_path: Path) -> None:
    safetensors.torch.save_file({"x": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(AdapterFileError, match="not a LoRA"):
        load_report(read_header(tmp_path / "a.safetensors"))


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"modelspec.trigger_phrase": "zorb, a robot"}, ("zorb", "a robot")),
        (
            {
                "ss_tag_frequency": '{"10_zorb": {"zorb": 4, "robot": 3, " red": 4}, "1_more": {"zorb": 2}}',
                "ss_dataset_dirs": '{"10_zorb": {"n_repeats": 10, "img_count": 4}, "1_more": {"img_count": 2}}',
            },
            ("zorb",),
        ),
        ({"ss_tag_frequency": '{"a": {"b": 1}}'}, ()),
        ({"ss_tag_frequency": '{"a": [1]}', "ss_dataset_dirs": "[1]"}, ()),
        ({"ss_tag_frequency": "{" * 5000, "ss_dataset_dirs": "no"}, ()),
        ({}, ()),
    ],
)
def test_trigger_words_are_the_ones_named_or_those_that_all_captions_share(
    metadata: dict[str, str], words: tuple[str, ...]
) -> None:
    assert trigger_words(metadata) == words


@needs_proc
def test_a_big_file_is_told_from_its_header_in_a_blink(tmp_path: Path) -> None:
    """200 MB: no more than a second of the processor and 150 MB, and no torch."""
    path = tmp_path / "big.safetensors"
    big_file(path)
    assert path.stat().st_size > 200e6
    code = """
import json, sys, time
from pathlib import Path
began = time.process_time()
from diffusion_lora.lora.header import read_header
from diffusion_lora.lora.report import load_report
report = load_report(read_header(Path(sys.argv[1])))
print(json.dumps([report.layers, time.process_time() - began, peak(), "torch" in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", PEAK + code, str(path)], capture_output=True, text=True, check=True)
    layers, seconds, megabytes, has_torch = json.loads(done.stdout)
    assert layers == 640
    assert seconds < 1
    assert megabytes < 150
    assert not has_torch


@needs_proc
def test_norms_of_a_big_file_take_a_moment(tmp_path: Path) -> None:
    """1.5 s beside the import of torch, and the file's size and 150 MB of memory beside torch's own."""
    path = tmp_path / "big.safetensors"
    big_file(path)
    code = """
import json, sys, time
from pathlib import Path
import torch
from diffusion_lora.lora.adapter import read_adapter
from diffusion_lora.lora.header import read_header
from diffusion_lora.lora.report import load_report
path = Path(sys.argv[1])
torch.ones(64, 64) @ torch.ones(64, 64)
before, began = peak(), time.process_time()
report = load_report(read_header(path), values=read_adapter(path, finite=False))
print(json.dumps([report.norm, time.process_time() - began, peak() - before]))
"""
    done = subprocess.run([sys.executable, "-c", PEAK + code, str(path)], capture_output=True, text=True, check=True)
    norm, seconds, megabytes = json.loads(done.stdout)
    assert norm > 0
    assert seconds < 1.5
    assert megabytes < path.stat().st_size / 2**20 + 150


def big_file(path: Path) -> None:
    """A LoRA of 640 layers 1280 wide, rank 64, in fp16: 210 MB, the shape of SDXL's."""
    numbers = torch.randn(64 * 1280).half()
    tensors = {}
    for level in range(8):
        for block in range(10):
            for place in range(8):
                name = f"lora_unet_down_blocks_{level}_attentions_{place}_transformer_blocks_{block}_attn1_to_q"
                tensors[f"{name}.lora_down.weight"] = numbers.reshape(64, 1280).clone()
                tensors[f"{name}.lora_up.weight"] = numbers.reshape(1280, 64).clone()
                tensors[f"{name}.alpha"] = torch.tensor(32.0)
    safetensors.torch.save_file(tensors, path)
