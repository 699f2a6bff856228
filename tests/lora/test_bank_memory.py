"""Adapters read from files, loaded, turned and unloaded a hundred times: the process does not grow."""

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from diffusion_lora.lora.adapter import Adapter, read_adapter, write_adapter
from diffusion_lora.lora.bank import AdapterBank

STATUS = Path("/proc/self/statm")
PAGE_BYTES = 4096


def resident_bytes() -> int:
    gc.collect()
    return int(STATUS.read_text().split()[1]) * PAGE_BYTES


@pytest.mark.skipif(not STATUS.exists(), reason="the memory of a process is read from /proc")
def test_a_hundred_files_leave_no_memory_behind(
    components: dict[str, nn.Module], make_adapter: Callable[..., Adapter], tmp_path: Path
) -> None:
    """A page on which LoRAs are tried out all day would end in the swap: what the system sees counts, not live tensors.

    The safetensors library keeps some 30 KiB a read; 100 reads of this file were 1.3 % of the process.
    """
    paths = [tmp_path / f"{number}.safetensors" for number in range(2)]
    for number, path in enumerate(paths):
        write_adapter(make_adapter(components, rank=16, seed=number), path)
    bank = AdapterBank(components, "tiny")
    before = {name: {k: v.clone() for k, v in root.state_dict().items()} for name, root in components.items()}

    def turn(number: int) -> None:
        bank.load("a", read_adapter(paths[number % 2]))
        bank.load("b", read_adapter(paths[(number + 1) % 2]))
        with bank.mix([{"a": 0.3}, {"a": 0.3, "b": number / 100}]):
            pass
        bank.unload("a")
        bank.unload("b")

    for number in range(20):
        turn(number)
    warm = resident_bytes()
    for number in range(100):
        turn(number)
    assert resident_bytes() <= 1.01 * warm
    for name, root in components.items():
        assert all(torch.equal(value, before[name][key]) for key, value in root.state_dict().items())
