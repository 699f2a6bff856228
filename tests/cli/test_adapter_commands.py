"""The `adapter` commands as a person types them: what they print, what they write, what they refuse."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner, Result

from diffusion_lora.adapter_commands import app
from diffusion_lora.errors import AdapterFileError, ConfigError, OutputError, PromptError, UserError
from diffusion_lora.lora.adapter import Adapter, read_adapter, write_adapter
from diffusion_lora.lora.header import read_header
from diffusion_lora.lora.weights import LoHa, LowRank

CHECKOUT = Path(__file__).resolve().parents[2]
KEYS = (
    "unet.down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
    "unet.mid_block_attentions_0_transformer_blocks_0_attn1_to_q",
    "te.encoder_layers_0_self_attn_q_proj",
)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def said(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.exception or result.output
    return result.stdout


def told(*arguments: object) -> dict[str, object]:
    return json.loads(said(*arguments, "--json"))


def adapter(seed: int, rank: int = 4) -> Adapter:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    layers = {key: LowRank(random(rank, 32), random(48, rank), 2.0) for key in KEYS}
    metadata = {"ss_network_dim": str(rank), "ss_unet_lr": "0.0001", "modelspec.trigger_phrase": f"word{seed}"}
    return Adapter(layers, metadata)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for seed, path in enumerate(paths):
        write_adapter(adapter(seed), path, "fp32")
    return paths


def distance(a: Path | Adapter, b: Path | Adapter) -> float:
    one, other = (read_adapter(x) if isinstance(x, Path) else x for x in (a, b))
    assert one.layers.keys() == other.layers.keys()
    gap = [one.layers[key].delta() - other.layers[key].delta() for key in one.layers]
    return float(torch.cat([g.flatten() for g in gap]).norm())


def length(path: Path) -> float:
    return float(torch.cat([layer.delta().flatten() for layer in read_adapter(path).layers.values()]).norm())


def test_info_tells_a_file_as_table_and_as_json(files: tuple[Path, Path]) -> None:
    text = said("info", files[0])
    for word in ("3 LoRA", "word0", "effective scale", "0.5", "9 of 9 read"):
        assert word in text
    report = told("info", files[0], "--norms")
    assert report["matched"] == report["total"] == 9
    assert report["norm"] == pytest.approx(length(files[0]), rel=1e-5)
    assert set(report["norms"]) == {"text", "down 0", "mid"}
    assert "norm" in said("info", files[0], "--norms")


def test_info_reads_the_header_alone(tmp_path: Path) -> None:
    """Of 200 MB: in a second of this process's own time, within 150 MB, without torch or numpy."""
    entries, end = {}, 0
    for level in range(4):
        for block in range(3):
            for part in ("q", "k", "v"):
                name = f"lora_unet_up_blocks_{level}_attentions_{block}_transformer_blocks_0_attn1_to_{part}"
                shapes = {"lora_down.weight": [128, 10880], "lora_up.weight": [10880, 128], "alpha": []}
                for suffix, shape in shapes.items():
                    size = 2 * shape[0] * shape[1] if shape else 2
                    entries[f"{name}.{suffix}"] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + size]}
                    end += size
    header = json.dumps(entries).encode()
    path = tmp_path / "big.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + end)  # a hole: no space on the disk
    assert path.stat().st_size > 200e6
    code = (
        "import re, sys, time\n"
        "from diffusion_lora.adapter_commands import app\n"
        f"app(['info', {str(path)!r}, '--json'], standalone_mode=False)\n"
        "peak_kb = re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]\n"
        "print(time.process_time(), int(peak_kb) / 1e3, sorted({'torch', 'numpy', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CHECKOUT)
    report, figures = done.stdout.splitlines()
    assert json.loads(report)["layers"] == 36
    seconds, megabytes, loaded = figures.split(" ", 2)
    assert loaded == "[]"
    assert float(megabytes) < 150
    assert float(seconds) < 1.0


def test_convert_keeps_deltas_and_dtype(files: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    told("convert", files[0], "--to", "peft", "--out", out)
    assert any(name.endswith("lora_A.weight") for name in read_header(out).tensors)
    assert {info.dtype for info in read_header(out).tensors.values()} == {"F32"}
    assert distance(out, files[0]) < 1e-5
    back = tmp_path / "k.safetensors"
    assert "parameters" in said("convert", out, "--to", "kohya", "--out", back, "--dtype", "fp16")
    assert distance(back, files[0]) < 0.05
    assert read_header(back).tensors[next(n for n in read_header(back).tensors if "up" in n)].dtype == "F16"


def test_resize_writes_a_smaller_file_and_tells_the_error(files: tuple[Path, Path], tmp_path: Path) -> None:
    result = told("resize", files[0], "--rank", 2, "--out", tmp_path / "r.safetensors")
    lost = distance(tmp_path / "r.safetensors", files[0])
    assert result["error"] == pytest.approx(lost / length(files[0]), rel=1e-4)
    assert {layer["rank"] for layer in result["layers"]} == {2}
    header = read_header(tmp_path / "r.safetensors")
    assert header.metadata["ss_output_name"] == "r"
    assert header.metadata["ss_network_dim"] == "2"
    text = said("resize", files[0], "--energy", 0.9, "--per-layer", "--layers", "--out", tmp_path / "e.safetensors")
    for word in (KEYS[0], "worst layer", "all", "4 →"):
        assert word in text


def test_merge_by_each_method(files: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = map(read_adapter, files)
    stack = {
        key: LowRank(
            torch.cat([layer.down, b.layers[key].down]), torch.cat([0.8 * layer.up, -0.5 * b.layers[key].up], 1), 4.0
        )
        for key, layer in a.layers.items()
    }
    for how in ("concat", "svd", "linear", "ties", "dare"):
        more = () if how in ("concat", "linear") else ("--rank", 8)
        out = tmp_path / f"{how}.safetensors"
        result = told("merge", f"{files[0]}:0.8", f"{files[1]}:-0.5", "--how", how, "--out", out, *more)
        assert result["file"] == str(out)
        if how in ("concat", "svd"):
            assert distance(out, Adapter(stack, {})) < 1e-4
            assert result["error"] < 1e-5
    metadata = read_header(tmp_path / "concat.safetensors").metadata
    assert metadata["modelspec.merged_from"] == "a:0.8, b:-0.5"
    assert metadata["modelspec.trigger_phrase"] == "word0, word1"
    assert "note: " not in said("merge", files[0], files[1], "--out", tmp_path / "m.safetensors")


def test_fold_then_extract_on_the_embedded_base(tmp_path: Path) -> None:
    """pocket by its name; what was folded in comes out again."""
    from diffusion_lora.families.pocket.words import BASE_FOLDER
    from diffusion_lora.lora.checkpoint import open_checkpoint

    base = open_checkpoint(BASE_FOLDER)
    generator = torch.Generator().manual_seed(0)
    layers = {}
    for key in [key for key in base.weights if key.endswith("attn2_to_v")][:3]:
        out, inputs = base.weights[key].shape
        down = torch.randn(2, inputs, generator=generator)
        layers[key] = LowRank(down, torch.randn(out, 2, generator=generator) * 0.1, 2.0)
    lora = tmp_path / "a.safetensors"
    write_adapter(Adapter(layers, {}), lora, "fp32")
    text = said("fold", "pocket", f"{lora}:0.5", "--out", tmp_path / "tuned")
    assert "3 weights changed" in text
    assert "rounds" in text
    result = told("extract", tmp_path / "tuned", "pocket", "--rank", 2, "--out", tmp_path / "x.safetensors")
    assert len(result["layers"]) == 3
    meeting = told("compare", lora, tmp_path / "x.safetensors")
    assert meeting["cosine"] > 0.9


def test_compare_says_what_stacking_does(files: tuple[Path, Path]) -> None:
    assert told("compare", files[0], files[0])["cosine"] == pytest.approx(1.0)
    assert told("compare", files[0], f"{files[0]}:-1")["cosine"] == pytest.approx(-1.0)
    text = said("compare", files[0], files[0])
    for word in ("1.00", "reinforcing", "a:0.50 with a:0.50", "down 0", "text"):
        assert word in text
    assert "their own ways" in said("compare", *files)


def test_spectrum_as_table_json_and_picture(files: tuple[Path, Path], tmp_path: Path) -> None:
    png = tmp_path / "s.png"
    result = told("spectrum", files[0], "--png", png)
    assert len(result["layers"]) == 3
    assert all(len(layer["singular_values"]) == 4 for layer in result["layers"])
    with Image.open(png) as image:
        assert image.size == (1400, 860)
        assert len(image.convert("RGB").getcolors(1 << 20)) > 50
    text = said("spectrum", files[0], "--layers")
    for word in (KEYS[0], "90 %", "95 %", "99 %", "of the energy at"):
        assert word in text


def test_scale_from_numbers_and_from_a_file(files: tuple[Path, Path]) -> None:
    text = said("scale", "--rank", 16, "--alpha", 8, "--lr", 1e-4)
    for word in ("scale alpha / rank = 0.5", "effective rate 5e-05", "kohya", "OneTrainer", "ai-toolkit", "diffusers"):
        assert word in text
    assert told("scale", files[0])["effective_rate"] == pytest.approx(1e-4 * 2 / 4)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["info", "none.safetensors"], AdapterFileError, "does not exist"),
        (["resize", "a.safetensors", "--out", "r.safetensors"], ConfigError, "neither a rank nor a share"),
        (["resize", "a.safetensors", "--energy", "2", "--out", "r.safetensors"], ConfigError, "share of the energy"),
        (["resize", "a.safetensors", "--rank", "2", "--out", "b.safetensors"], OutputError, "exists already"),
        (["convert", "a.safetensors", "--to", "peft", "--out", "a.safetensors/x.st"], OutputError, "is a file"),
        (["merge", "a.safetensors:", "--out", "m.safetensors"], PromptError, "is not understood"),
        (["merge", "a.safetensors", "--rank", "2", "--out", "m.safetensors"], ConfigError, "--how concat keeps"),
        (["merge", "h.safetensors", "--how", "linear", "--out", "m.safetensors"], AdapterFileError, "is a LoHa"),
        (["fold", "none", "a.safetensors", "--out", "f"], UserError, "was not found"),
        (["extract", "a.safetensors", "pocket", "--rank", "2", "--out", "x.safetensors"], UserError, "holds no UNet"),
        (["scale", "--rank", "4"], ConfigError, "--alpha is missing"),
        (["scale", "--rank", "4", "--alpha", "-1", "--lr", "1"], ConfigError, "above zero"),
    ],
)
def test_mistakes_are_one_sentence(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, arguments: list[str], error: type[UserError], words: str
) -> None:
    """And nothing is written."""
    loha = LoHa(torch.ones(48, 2), torch.ones(2, 32), torch.ones(48, 2), torch.ones(2, 32), 2.0)
    write_adapter(Adapter({KEYS[0]: loha}, {}), files[0].with_name("h.safetensors"), "fp32")
    before = {path.name: path.read_bytes() for path in files[0].parent.iterdir()}
    monkeypatch.chdir(files[0].parent)
    result = call(*arguments)
    assert isinstance(result.exception, error), result.output
    assert words in str(result.exception)
    assert "\n" not in str(result.exception)
    assert {path.name: path.read_bytes() for path in files[0].parent.iterdir()} == before


def test_a_folder_that_peft_saved_is_told_with_its_alpha(tmp_path: Path) -> None:
    """The scale of such an adapter lies in a file beside the tensors."""
    folder = tmp_path / "peft"
    folder.mkdir()
    name = "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {f"{name}.lora_A.weight": torch.ones(4, 32), f"{name}.lora_B.weight": torch.ones(48, 4)}
    safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    for place in (folder, folder / "adapter_model.safetensors"):
        assert told("info", place)["scale"] == 2.0


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from diffusion_lora.adapter_commands import app\n"
        "app(['--help'], standalone_mode=False)\n"
        "print('loaded:', sorted({'torch', 'numpy', 'PIL', 'safetensors', 'diffusers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CHECKOUT)
    assert "loaded: []" in done.stdout
    for command in ("info", "convert", "resize", "merge", "extract", "fold", "compare", "spectrum", "scale"):
        assert f" {command} " in done.stdout
