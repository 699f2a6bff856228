"""The header without torch: what it reads, what it refuses, and the hash by which web UIs know a file."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from diffusion_lora.errors import AdapterFileError
from diffusion_lora.lora.header import read_header, read_scalars, shown, tensor_hash, with_metadata


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.safetensors"
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(3, dtype=torch.float16)}
    safetensors.torch.save_file(tensors, path, {"who": "me"})
    return path


def test_it_tells_names_shapes_dtypes_and_metadata(file: Path) -> None:
    header = read_header(file)
    assert {name: (info.dtype, info.shape) for name, info in header.tensors.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("F16", (3,)),
    }
    assert header.metadata == {"who": "me"}


def test_the_hash_is_sha256_of_everything_after_the_header(file: Path) -> None:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert tensor_hash(file) == hashlib.sha256(data[8 + length :]).hexdigest()
    assert tensor_hash(file) == hashlib.sha256(torch.arange(6.0).numpy().tobytes() + b"\x00\x3c" * 3).hexdigest()


def test_other_metadata_leave_tensors_and_hash_as_they_are(file: Path) -> None:
    before = tensor_hash(file)
    file.write_bytes(with_metadata(file.read_bytes(), {"who": 'Zoë, 2 "quotes" and a\nnewline'}))
    assert read_header(file).metadata == {"who": 'Zoë, 2 "quotes" and a\nnewline'}
    assert tensor_hash(file) == before
    assert torch.equal(safetensors.torch.load_file(file)["a"], torch.arange(6.0).view(2, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_single_numbers_are_read_without_torch(tmp_path: Path, dtype: torch.dtype) -> None:
    """The alphas: a list of files tells the scale by them."""
    values = {"a": torch.tensor(1.5, dtype=dtype), "b": torch.tensor([-0.0625], dtype=dtype)}
    safetensors.torch.save_file({**values, "c": torch.ones(2), "d": torch.ones(1, dtype=torch.int32)}, tmp_path / "x")
    header = read_header(tmp_path / "x")
    assert read_scalars(header, ["a", "b"]) == {"a": 1.5, "b": -0.0625}
    for name in "cd":
        with pytest.raises(AdapterFileError, match="not a single number"):
            read_scalars(header, [name])


def test_a_name_stands_in_a_sentence_as_one_short_line() -> None:
    assert shown("unet.conv_in.Zoë") == "unet.conv_in.Zoë"
    assert shown("a\x1b[2J\nb\ud800") == "a\\x1b[2J\\nb\\ud800"
    assert len(shown("x" * 10_000)) == 160


@pytest.mark.parametrize("length", [640, 896, 1152, 1408])
def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path: Path, length: int) -> None:
    """The bytes 80 02 open a pickle of protocol 2 and a safetensors file with a header of 640 bytes."""
    text = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
    path = tmp_path / "a.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + text + bytes(4))
    assert list(read_header(path).tensors) == ["a"]


def test_a_real_file_has_the_hash_its_trainer_wrote(lora_data: Path) -> None:
    """A LyCORIS file made with kohya's trainer: its header is an oracle."""
    path = lora_data / "lycoris_smart_falcon_4_lokr.safetensors"
    assert tensor_hash(path) == read_header(path).metadata["sshs_model_hash"]


def test_headers_and_formats_load_no_torch() -> None:
    """The page and the queue read headers; torch would cost them a second and a gigabyte."""
    modules = ("header", "formats.kohya", "formats.foreign")
    code = (
        ";".join(f"import diffusion_lora.lora.{name}" for name in modules) + ";import sys;print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def broken(data: bytes, kind: str) -> bytes:
    length = int.from_bytes(data[:8], "little")
    match kind:
        case "empty":
            return b""
        case "a few bytes":
            return data[:5]
        case "a web page":
            return b"<!DOCTYPE html><html>please log in</html>"
        case "cut in the header":
            return data[: 8 + length // 2]
        case "cut in the tensors":
            return data[:-4]
        case "bytes too many":
            return data + b"\0\0"
        case "damaged header":
            return data[:8] + b"{" + b"x" * (length - 1) + data[8 + length :]
        case "header without offsets":
            text = json.dumps({"a": {"dtype": "F32"}}).encode()
            return len(text).to_bytes(8, "little") + text
        case "header that is a list in disguise":
            text = b'{"a": [1, 2]}'
            return len(text).to_bytes(8, "little") + text
        case "offsets that are text":
            text = json.dumps({"a": {"dtype": "F32", "shape": ["x"], "data_offsets": ["0", "b"]}}).encode()
            return len(text).to_bytes(8, "little") + text
    raise AssertionError(kind)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("empty", "is not a safetensors file"),
        ("a few bytes", "is not a safetensors file"),
        ("a web page", "is not a safetensors file"),
        ("cut in the header", "cut off inside its header"),
        ("cut in the tensors", "is cut off"),
        ("bytes too many", "bytes behind its last tensor"),
        ("damaged header", "damaged header"),
        ("header without offsets", "damaged header"),
        ("header that is a list in disguise", "damaged header"),
        ("offsets that are text", "damaged header"),
    ],
)
def test_a_damaged_file_is_refused_in_one_sentence_that_names_it(file: Path, kind: str, words: str) -> None:
    file.write_bytes(broken(file.read_bytes(), kind))
    with pytest.raises(AdapterFileError) as caught:
        read_header(file)
    assert words in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match="does not exist"):
        read_header(tmp_path / "no.safetensors")
    with pytest.raises(AdapterFileError, match="is a folder"):
        read_header(tmp_path)
