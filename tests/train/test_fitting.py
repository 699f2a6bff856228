"""A step that does not fit into memory is taken in smaller passes, or its layers are computed again: the same step."""

import ctypes
import gc
import os
import subprocess
import sys
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
import torch

from diffusion_lora.config import TrainConfig, parse_train_config, to_toml
from diffusion_lora.errors import DeviceError
from diffusion_lora.events import read_events
from diffusion_lora.lora.adapter import read_adapter
from diffusion_lora.run import Run
from diffusion_lora.train import fitting
from diffusion_lora.train.checkpoint import checkpoints
from diffusion_lora.train.draws import draw_step
from diffusion_lora.train.fitting import split
from diffusion_lora.train.memory import is_out_of_memory
from diffusion_lora.train.prepare import prepare
from diffusion_lora.train.trainer import train

EXACT = ("train.precision=fp32", "optimizer.name=adamw", "output.dtype=fp32")
LARGE = (*EXACT, "train.batch_size=4", "dataset.size_px=384", "train.steps=2", "train.checkpointing=off")


def changed(config: TrainConfig, *settings: str) -> TrainConfig:
    return parse_train_config(to_toml(config), source="test", overrides=settings)


def trained(folder: Path, config: TrainConfig) -> Run:
    run = Run.create(folder, config)
    train(run, config)
    return run


def told(run: Run, field: str = "loss") -> list[float]:
    return [event[field] for event in read_events(run.folder) if event["kind"] == "step"]


def notes(run: Run) -> str:
    return " | ".join(event["text"] for event in read_events(run.folder) if event["kind"] == "note")


def held_gb() -> float:
    """What is in use: what earlier tests have freed goes back first, or a run could grow into it below its cap."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return psutil.Process().memory_info().rss / 1e9


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradient_checkpointing_computes_layers_again_and_the_same_numbers(
    config: TrainConfig, tmp_path: Path, precision: str
) -> None:
    """Dropout's masks too: they are drawn anew from (seed, step, pass)."""
    config = changed(config, "lora.dropout=0.2", f"train.precision={precision}", "train.accumulation=2")
    computed: list[int] = []
    calls = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: computed.append(torch.is_grad_enabled() and type(module).__name__ == "ResnetBlock2D")
    )
    runs, counts = [], []
    for setting in ("off", "on"):
        computed.clear()
        runs.append(trained(tmp_path / setting, changed(config, f"train.checkpointing={setting}")))
        counts.append(sum(computed))
    calls.remove()
    assert counts[1] > 1.5 * counts[0]
    assert told(runs[0]) == told(runs[1])
    assert told(runs[0], "grad_norm") == told(runs[1], "grad_norm")
    assert read_adapter(runs[0].adapter_path).allclose(read_adapter(runs[1].adapter_path))


def test_under_a_cap_passes_are_halved_then_layers_are_computed_again_then_it_is_told(
    config: TrainConfig, tmp_path: Path
) -> None:
    """A pass of four keeps 90 MB. The steps are the same to 1e-5, and a run that goes on knows what had been found."""
    config = changed(config, *LARGE)
    whole = trained(tmp_path / "whole", config)
    halved = changed(config, f"train.memory_cap_gb={held_gb() + 0.07}", "train.steps=1")
    run = trained(tmp_path / "halved", halved)
    assert "a batch of 4 is taken in 2 passes from here on" in notes(run)
    longer = changed(halved, "train.steps=2", "train.memory_cap_gb=0")
    train(Run.resume(run.folder, longer), longer, resume=True)
    assert torch.load(checkpoints(run)[-1][1], weights_only=True)["fitting"] == {"parts": 2, "checkpointing": False}
    assert told(run) == pytest.approx(told(whole), rel=1e-5)

    tight = changed(config, "train.checkpointing=auto", f"train.memory_cap_gb={held_gb() + 0.02}")
    run = trained(tmp_path / "tight", tight)
    assert "a batch of 4 is taken in 4 passes" in notes(run)
    assert "gradient checkpointing is on from here on" in notes(run)
    assert told(run) == pytest.approx(told(whole), rel=1e-5)

    with pytest.raises(DeviceError, match=r'one picture of 48 x 48 latents .*: set train\.checkpointing = "on", lower'):
        trained(tmp_path / "off", changed(config, f"train.memory_cap_gb={held_gb() + 0.02}"))
    with pytest.raises(DeviceError, match=r"memory_cap_gb = 0\.001 is below the .* GB that base and pictures take"):
        trained(tmp_path / "below", changed(config, "train.memory_cap_gb=0.001"))


@pytest.mark.parametrize(("setting", "lanes", "again"), [("auto", 2, True), ("auto", 1, False), ("off", 2, False)])
def test_a_sweep_on_a_large_base_computes_again_from_the_start(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, lanes: int, again: bool
) -> None:
    """Wrong: four adapters on a real base want half as much memory again as one, or a setting is not heeded."""
    monkeypatch.setattr(fitting, "_LARGE", 1)
    ranks = f"sweep.lora.rank={[2, 4][:lanes]}"
    run = trained(tmp_path / "run", changed(config, ranks, f"train.checkpointing={setting}", "train.steps=1"))
    assert ("activations are computed again instead of kept" in notes(run)) is again
    assert torch.load(checkpoints(run)[-1][1], weights_only=True)["fitting"]["checkpointing"] is again


LIMITED = """
import resource, sys
from pathlib import Path
import psutil
from diffusion_lora.config import load_train_config
from diffusion_lora.run import Run
from diffusion_lora.train import arithmetic
from diffusion_lora.train.trainer import train
arithmetic._SHORT_TOKENS = 1024  # keeps the weights of attention: much more than the kernels themselves need
def limit(event):
    if event["kind"] == "start":
        held = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (held + 240_000_000, resource.RLIM_INFINITY))
config = load_train_config(Path(sys.argv[1]))
train(Run.create(Path(sys.argv[2]), config), config, progress=limit)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory in this way")
def test_memory_that_the_system_refuses_is_answered_by_smaller_passes(config: TrainConfig, tmp_path: Path) -> None:
    config = changed(config, *LARGE, "dataset.size_px=256", "train.batch_size=8", "train.steps=1")
    file = tmp_path / "config.toml"
    file.write_text(to_toml(config), encoding="utf-8")
    # Compiled kernels take much of the address space, if nothing of memory: with few of them the limit is on tensors.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "8"}
    command = [sys.executable, "-c", LIMITED, str(file), str(tmp_path / "limited")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    limited = Run.open(tmp_path / "limited")
    assert "memory did not suffice: a batch of 8 is taken in" in notes(limited)
    assert told(limited) == pytest.approx(told(trained(tmp_path / "whole", config)), rel=1e-5)


def test_only_memory_is_taken_for_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


def test_a_pass_is_split_within_the_rows_of_every_adapter(config: TrainConfig) -> None:
    config = changed(config, "train.batch_size=6")
    ready = prepare(config, on_problem=lambda picture, why: None)
    draw = draw_step(0, ready.dataset, ready.latents, config, ready.schedule.timesteps)[0]
    parts = split(draw, 2, lanes=2)
    assert [part.names for part in parts] == [
        (draw.names[0], draw.names[1], draw.names[3], draw.names[4]),
        (draw.names[2], draw.names[5]),
    ]
    assert torch.equal(parts[1].noise_BCHW, draw.noise_BCHW[[2, 5]])
    assert sum(len(part.names) for part in split(draw, 4)) == 6
