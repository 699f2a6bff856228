"""Adapters as files: what is written is read back, by the rules other programs follow, or refused in one sentence."""

import hashlib
import os
import pickle
import stat
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from diffusion_lora.errors import AdapterFileError, OutputError
from diffusion_lora.lora.adapter import Adapter, AdapterLayer, read_adapter, write_adapter
from diffusion_lora.lora.header import read_header, tensor_hash

KEY = "unet.mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
NAME = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
MakeAdapter = Callable[..., Adapter]


@pytest.fixture
def adapter(components: dict[str, nn.Module], make_adapter: MakeAdapter) -> Adapter:
    return make_adapter(components, rank=3, alpha=0.1, targets="wide")


def small(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    tensors = {"lora_down.weight": torch.ones(4, 16), "lora_up.weight": torch.ones(32, 4), "alpha": torch.tensor(2.0)}
    return {f"{NAME}.{part}": tensor for part, tensor in (tensors | changes).items()}


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_what_is_written_is_read_back(adapter: Adapter, tmp_path: Path, dtype: str) -> None:
    """In fp32 to the last bit; in half precision to its rounding; the alpha exactly in all."""
    path = tmp_path / "a.safetensors"
    write_adapter(adapter, path, dtype)
    again = read_adapter(path)
    assert again.allclose(adapter, atol={"fp32": 0.0, "fp16": 1e-3, "bf16": 1e-2}[dtype])
    assert again.alpha == adapter.alpha == pytest.approx(0.1)
    assert {layer.down.dtype for layer in again.layers.values()} == {
        {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    }
    assert (again.rank, again.components, again.parameters) == (3, ("te", "unet"), adapter.parameters)
    assert again.cross_attention_width == 16


def test_every_module_has_its_alpha_and_kohyas_names(adapter: Adapter, tmp_path: Path) -> None:
    """Without the alpha tensor other programs take a scale of 1: a third of a hundredth here."""
    path = tmp_path / "a.safetensors"
    write_adapter(adapter, path)
    names = set(read_header(path).tensors)
    modules = {name.split(".", 1)[0] for name in names}
    assert names == {f"{m}.{part}" for m in modules for part in ("lora_down.weight", "lora_up.weight", "alpha")}
    assert f"{NAME}.alpha" in names
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha" in names


def test_equality_sees_every_difference(adapter: Adapter) -> None:
    key, layer = next(iter(adapter.layers.items()))
    others = [
        AdapterLayer(layer.down, layer.up, layer.alpha * 2),
        AdapterLayer(layer.down + 1e-6, layer.up, layer.alpha),
        AdapterLayer(layer.down, -layer.up, layer.alpha),
        AdapterLayer(layer.down[:1], layer.up[:, :1], layer.alpha),
    ]
    assert adapter.allclose(adapter)
    for other in others:
        assert not adapter.allclose(Adapter({**adapter.layers, key: other}, {}))
    assert not adapter.allclose(Adapter({k: v for k, v in adapter.layers.items() if k != key}, {}))


def test_hashes_are_those_kohyas_trainer_computes(
    components: dict[str, nn.Module], make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    """Recomputed here as its `precalculate_safetensors_hashes` does, on a file above the 1 MiB where the legacy hash
    begins. A stale hash that comes in with the metadata is replaced: it would make web UIs swap adapters."""
    adapter = make_adapter(components, rank=64, targets="wide")
    metadata = {"ss_output_name": "x", "modelspec.sai_model_spec": "1.0.1", "sshs_model_hash": "e3b0c44298fc"}
    path = tmp_path / "a.safetensors"
    written = write_adapter(Adapter(adapter.layers, metadata), path, "fp32")

    training = {key: value for key, value in read_header(path).metadata.items() if key.startswith("ss_")}
    blob = safetensors.torch.save(safetensors.torch.load_file(path), training)
    assert len(blob) > 0x110000
    stream = BytesIO(blob)
    stream.seek(int.from_bytes(stream.read(8), "little") + 8)
    model_hash = hashlib.sha256(stream.read()).hexdigest()
    stream.seek(0x100000)
    legacy_hash = hashlib.sha256(stream.read(0x10000)).hexdigest()[0:8]

    header = read_header(path)
    assert header.metadata["sshs_model_hash"] == model_hash == written == tensor_hash(path)
    assert header.metadata["sshs_legacy_hash"] == legacy_hash
    assert header.metadata["modelspec.hash_sha256"] == f"0x{model_hash}"
    assert header.metadata["ss_output_name"] == "x"


def test_equal_adapters_make_equal_files(adapter: Adapter, tmp_path: Path) -> None:
    """A resumed training must end in the same file as an uninterrupted one."""
    backwards = Adapter(dict(reversed(adapter.layers.items())), adapter.metadata)
    write_adapter(adapter, tmp_path / "a.safetensors")
    write_adapter(backwards, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_saved_file_can_be_read_by_others(adapter: Adapter, tmp_path: Path) -> None:
    """safetensors alone would leave it readable by its owner only; a web server is somebody else."""
    write_adapter(adapter, tmp_path / "a.safetensors")
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("alpha", [None, torch.tensor(0.0)])
def test_without_an_alpha_the_scale_is_one(tmp_path: Path, alpha: torch.Tensor | None) -> None:
    tensors = small()
    del tensors[f"{NAME}.alpha"]
    if alpha is not None:
        tensors[f"{NAME}.alpha"] = alpha
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    layer = read_adapter(tmp_path / "a.safetensors").layers[KEY]
    assert layer.scale == 1.0
    assert layer.alpha == 4.0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cloneofsimo_analog_svd_rank4.safetensors", "layers have numbers and no names"),
        ("../embeddings/invokeai_test_embedding.safetensors", "is a textual-inversion embedding"),
        ("../embeddings/cloneofsimo_kiriko2.ti.pt", "is a pickle"),
    ],
)
def test_real_files_of_other_kinds_are_refused_by_what_they_are(lora_data: Path, name: str, words: str) -> None:
    """Loading a part of them in silence is how strengths come out halved elsewhere."""
    with pytest.raises(AdapterFileError, match=words):
        read_adapter(lora_data / name)


@pytest.mark.parametrize("name", ["lora.ckpt", "lora.pt", "lora.bin", "renamed.safetensors"])
@pytest.mark.parametrize("protocol", ["torch", "bare pickle"])
def test_pickles_are_refused_unopened(tmp_path: Path, name: str, protocol: str) -> None:
    """A pickle runs what it likes when opened: this one would leave a mark."""

    class Malicious:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "mark"),)

    path = tmp_path / name
    if protocol == "torch":
        torch.save(Malicious(), path)
    else:
        path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(AdapterFileError, match="is a pickle"):
        read_adapter(path)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (
            small(**{"lora_up.weight": torch.full((32, 4), float("nan"))}),
            "lora_up.weight holds values that are not fin",
        ),
        (small(alpha=torch.tensor(float("inf"))), "alpha holds values that are not finite"),
        (small(alpha=torch.ones(2)), "not a single number"),
        (small(**{"lora_down.weight": torch.ones(5, 16)}), "differ in rank"),
        (small(**{"lora_down.weight": torch.ones(4)}), "not those of a LoRA"),
        (small(**{"lora_up.weight": torch.ones(32, 4, 3, 3)}), "not those of a LoRA"),
        (small(**{"lora_up.weight": torch.ones(32, 4, dtype=torch.int32)}), "not finite numbers"),
        ({k: v for k, v in small().items() if "up" not in k}, "has no up matrix"),
        ({f"{NAME}.alpha": torch.tensor(1.0)}, "no Stable Diffusion"),
        (small(alpha=torch.tensor(1e300, dtype=torch.float64)), "more than a float32 holds"),
        (small(dora_scale=torch.ones(31, 1)), "magnitude of 31 x 1"),
        ({"model.diffusion_model.out.2.weight": torch.ones(1)}, "a whole checkpoint"),
        ({}, "holds no tensors"),
    ],
)
def test_what_is_not_a_sound_lora_is_refused_in_one_sentence(
    tmp_path: Path, tensors: dict[str, torch.Tensor], words: str
) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(AdapterFileError) as caught:
        read_adapter(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["lora_down.weight", "lora_up.weight", "alpha"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float, part: str, dtype: torch.dtype) -> None:
    """One NaN makes every picture black."""
    tensors = {"lora_down.weight": torch.ones(2, 12), "lora_up.weight": torch.ones(12, 2), "alpha": torch.ones(1)}
    tensors[part].view(-1)[-1] = value
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({f"{NAME}.{name}": tensor.to(dtype) for name, tensor in tensors.items()}, path)
    with pytest.raises(AdapterFileError, match="not finite"):
        read_adapter(path)


@pytest.mark.parametrize(
    ("value", "dtype", "words"),
    [(float("nan"), "fp16", "diverged"), (float("inf"), "fp32", "diverged"), (1e6, "fp16", "bf16 or fp32")],
)
def test_values_that_are_not_finite_are_never_written(tmp_path: Path, value: float, dtype: str, words: str) -> None:
    """Also those that only fp16 cannot hold; the earlier file stays."""
    path = tmp_path / "a.safetensors"
    path.write_text("earlier")
    adapter = Adapter({KEY: AdapterLayer(torch.full((1, 2), value), torch.ones(2, 1), 1.0)}, {})
    with pytest.raises(OutputError, match=words):
        write_adapter(adapter, path, dtype)
    assert path.read_text() == "earlier"


def test_a_full_disk_leaves_the_earlier_file(adapter: Adapter, tmp_path: Path) -> None:
    """RLIMIT_FSIZE in a process of its own: the write stops in the middle, as on a full disk."""
    path = tmp_path / "a.safetensors"
    write_adapter(adapter, path)
    code = """
import resource, sys
from pathlib import Path
from diffusion_lora.errors import OutputError
from diffusion_lora.lora.adapter import read_adapter, write_adapter
path = Path(sys.argv[1])
adapter = read_adapter(path)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_adapter(adapter, path, "fp32")
except OutputError as error:
    print(error)
"""
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert f"cannot write {path}" in done.stdout
    assert done.stdout.count("\n") == 1
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name], "no half-written file is left behind"


def test_a_place_that_cannot_be_written_is_named(adapter: Adapter, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/a\.safetensors"):
        write_adapter(adapter, tmp_path / "file" / "a.safetensors")
