"""Every mistake a person can make is one sentence and status 2, and nothing that was there is touched.

Real processes: what is tested is what somebody at a terminal sees.
"""

import hashlib
import io
import json
import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

CommandLine = Callable[..., "subprocess.CompletedProcess[str]"]

SHORT = ("train.steps=2", "train.batch_size=1", "train.precision=fp32", "lora.rank=2", "lora.targets=qv")


def snapshot(folder: Path) -> dict[str, str]:
    """Every file below a folder with the hash of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def complaint(done: "subprocess.CompletedProcess[str]") -> str:
    """The one sentence of a command that refused."""
    assert done.returncode == 2, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def settings(*pairs: str) -> list[str]:
    return [word for pair in (*SHORT, *pairs) for word in ("--set", pair)]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three captioned pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (140, 128), colour).save(folder / f"{colour}.png")
        (folder / f"{colour}.txt").write_text(f"a {colour} star on a paper background {index}", encoding="utf-8")
    return folder


@pytest.fixture
def config(tmp_path: Path, pictures: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text('[dataset]\npath = "pictures"\n[output]\nname = "mine"\n', encoding="utf-8")
    return path


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pair", "told"),
    [
        ("lora.rnak=4", ("lora.rnak", "lora.rank")),
        ("lora.rank=0", ("lora.rank", "0", "at least 1")),
        ('lora.rank="sixteen"', ("lora.rank", "sixteen", "whole number")),
        ("train.steps=1.5", ("train.steps", "1.5")),
        ("optimizer.name=sgd", ("optimizer.name", "sgd", "adamw8bit")),
        ("rank=4", ("rank=4", "table.key=value")),
    ],
)
def test_a_wrong_setting(command_line: CommandLine, config: Path, tmp_path: Path, pair: str, told: tuple[str]) -> None:
    before = snapshot(tmp_path)
    said = complaint(command_line("train", config, *settings(pair)))
    assert all(word in said for word in told), said
    assert snapshot(tmp_path) == before


def test_an_unknown_key_in_the_file_names_the_nearest(command_line: CommandLine, config: Path) -> None:
    config.write_text(config.read_text(encoding="utf-8") + "[optimizer]\nlerning_rate = 1e-3\nlr_ = 1e-3\n", "utf-8")
    said = complaint(command_line("train", config))
    assert "mine.toml" in said
    assert "optimizer.l" in said


def test_a_config_that_is_not_there(command_line: CommandLine) -> None:
    assert "no-such" in complaint(command_line("train", "no-such.toml"))
    assert "pocket-style" in complaint(command_line("train", "no-such"))


# --- pictures and captions --------------------------------------------------------------------------------------------


def test_a_missing_folder_of_pictures(command_line: CommandLine, config: Path) -> None:
    """And a run that never began is not in the way of the next attempt."""
    command = ("train", config, *settings("dataset.path=nowhere"), "--out", "run")
    assert "nowhere" in complaint(command_line(*command))
    assert "nowhere" in complaint(command_line(*command))


def test_a_folder_without_pictures(command_line: CommandLine, config: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty" in complaint(command_line("train", config, *settings("dataset.path=empty"), "--out", "run"))


def test_a_picture_without_caption_is_named(command_line: CommandLine, config: Path, pictures: Path) -> None:
    (pictures / "green.txt").unlink()
    said = complaint(command_line("train", config, *settings(), "--out", "run"))
    assert "green.png" in said
    assert "caption" in said


@pytest.mark.slow
def test_a_truncated_jpeg_is_skipped_and_named(command_line: CommandLine, config: Path, pictures: Path) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((200, 200), 80).convert("RGB").save(buffer, "JPEG")
    (pictures / "torn.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (pictures / "torn.txt").write_text("a torn one", encoding="utf-8")
    done = command_line("train", config, *settings(), "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "torn.jpg" in done.stdout
    events = [json.loads(line) for line in (pictures.parent / "run" / "events.jsonl").read_text("utf-8").splitlines()]
    assert [event["picture"] for event in events if event["kind"] == "problem"] == ["torn.jpg"]
    assert next(event["pictures"] for event in events if event["kind"] == "start") == 3


# --- places to write --------------------------------------------------------------------------------------------------


def test_a_run_folder_below_a_file(command_line: CommandLine, config: Path, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine", encoding="utf-8")
    before = snapshot(tmp_path)
    assert "note" in complaint(command_line("train", config, *settings(), "--out", "note/run"))
    assert "note" in complaint(command_line("generate", "a cat", "--out", "note/pictures"))
    assert snapshot(tmp_path) == before


def test_a_run_folder_that_holds_something(command_line: CommandLine, config: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "note").write_text("mine", encoding="utf-8")
    before = snapshot(tmp_path)
    assert "--resume" in complaint(command_line("train", config, *settings(), "--out", "run"))
    assert snapshot(tmp_path) == before


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="file size limits are POSIX")
def test_a_full_disk_leaves_the_adapter_that_was_there(
    command_line: CommandLine, config: Path, tmp_path: Path
) -> None:
    """Files may not grow beyond a limit: writing fails half-way, as on a full disk."""
    import resource

    run = tmp_path / "run"
    assert command_line("train", config, *settings(), "--out", run).returncode == 0
    before = snapshot(run)
    limit = (run / "adapter.safetensors").stat().st_size // 2

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    again = ("train", config, *settings(), "--steps", 3, "--out", run, "--resume")
    said = complaint(command_line(*again, preexec_fn=small_disk))
    assert "cannot write" in said
    after = snapshot(run)
    assert after["adapter.safetensors"] == before["adapter.safetensors"]
    assert not [name for name in after if name.endswith(".tmp")]
    assert command_line(*again).returncode == 0, "with space again the run goes on"


# --- adapters ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for pocket, untrained."""
    from diffusion_lora.families.family import load_base
    from diffusion_lora.lora.adapter import write_adapter
    from diffusion_lora.lora.bank import AdapterBank

    model = load_base("pocket", device="cpu")
    bank = AdapterBank(model.components, model.layout.title)
    bank.add_trainable("mine", 2, 2.0, "qv", "none", seed=0)
    path = tmp_path_factory.mktemp("adapter") / "mine.safetensors"
    write_adapter(bank.export("mine", {"ss_output_name": "mine"}), path)
    return path


def foreign(path: Path) -> None:
    """An adapter of Stable Diffusion 1 by its shapes: cross-attention 768 wide."""
    import torch
    from safetensors.torch import save_file

    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{key}.lora_down.weight": torch.ones(4, 768), f"{key}.lora_up.weight": torch.ones(320, 4)}
    save_file({**tensors, f"{key}.alpha": torch.tensor(4.0)}, path)


def unknown_layer(path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    key = "lora_unet_a_layer_nobody_has"
    save_file({f"{key}.lora_down.weight": torch.ones(4, 64), f"{key}.lora_up.weight": torch.ones(64, 4)}, path)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"state_dict": [1, 2, 3]}))


def torn(path: Path) -> None:
    foreign(path)
    path.write_bytes(path.read_bytes()[:-100])


def noise(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 16)


@pytest.mark.parametrize(
    ("name", "make", "told"),
    [
        ("x.ckpt", pickled, ("x.ckpt", "pickle", "safetensors")),
        ("x.safetensors", pickled, ("pickle",)),
        ("x.safetensors", torn, ("x.safetensors", "cut off")),
        ("x.safetensors", noise, ("not a safetensors file",)),
        ("x.safetensors", foreign, ("Stable Diffusion 1", "pocket")),
        ("x.safetensors", unknown_layer, ("no Stable Diffusion", "layer_nobody_has")),
        ("x.safetensors", lambda path: path.mkdir(), ("is a folder",)),
    ],
)
def test_a_lora_that_cannot_be_used(
    command_line: CommandLine, tmp_path: Path, name: str, make: Callable[[Path], None], told: tuple[str]
) -> None:
    make(tmp_path / name)
    before = snapshot(tmp_path)
    said = complaint(command_line("generate", "a cat", "--lora", f"{name}:0.8", "--steps", 1, "--out", "drawn"))
    assert all(word in said for word in told), said
    assert snapshot(tmp_path) == before


def test_a_lora_that_is_not_there(command_line: CommandLine) -> None:
    assert "nowhere.safetensors" in complaint(command_line("generate", "a cat", "--lora", "nowhere.safetensors:0.8"))


@pytest.mark.slow
def test_a_lora_of_another_checkpoint_of_the_family_is_only_a_note(
    command_line: CommandLine, adapter: Path, tmp_path: Path
) -> None:
    from diffusion_lora.lora.adapter import Adapter, read_adapter, write_adapter

    mine = read_adapter(adapter)
    metadata = {**mine.metadata, "ss_new_sd_model_hash": "0" * 64, "ss_sd_model_hash": "0" * 8}
    metadata["modelspec.architecture"] = "diffusion-lora-pocket/lora"
    write_adapter(Adapter(mine.layers, metadata), tmp_path / "other.safetensors")
    done = command_line("generate", "a cat", "--lora", "other.safetensors", "--steps", 1, "--out", "drawn")
    assert done.returncode == 0, done.stderr
    assert "another" in done.stdout
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 1


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--size", "big"], "512x768"),
        (["--size", "130x128"], "multiple of"),
        (["--sampler", "magic"], "ddim"),
        (["--guidance", "-3"], "guidance"),
        (["--device", "toaster"], "toaster"),
        (["--base", "nowhere-at-all"], "nowhere-at-all"),
        (["--lora", "x.safetensors:strong"], "strong"),
    ],
)
def test_a_wrong_request(command_line: CommandLine, tmp_path: Path, options: list[str], told: str) -> None:
    assert told in complaint(command_line("generate", "a cat", *options, "--out", "drawn"))
    assert not (tmp_path / "drawn").exists()


# --- things that go well, next to the mistakes ------------------------------------------------------------------------


@pytest.mark.slow
def test_pictures_are_numbered_and_never_written_over(
    command_line: CommandLine, adapter: Path, tmp_path: Path
) -> None:
    from diffusion_lora.generate.reading import read_request

    options = ("--lora", f"{adapter}:0.8", "--count", 2, "--steps", 1, "--seed", 7, "--out", "d")
    command = ("generate", "a red cat", *options)
    assert command_line(*command).returncode == 0
    first = snapshot(tmp_path / "d")
    assert command_line(*command).returncode == 0
    both = snapshot(tmp_path / "d")
    assert len(first) == 2
    assert len(both) == 4
    assert first.items() <= both.items()
    requests = [read_request(tmp_path / "d" / name) for name in sorted(first)]
    assert [request.seed for request in requests] == [7, 8]
    assert requests[0].loras[0].strength == 0.8
