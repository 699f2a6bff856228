"""The doctor tells what is there and what is missing, each with what mends it."""

from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from diffusion_lora.train.doctor import Finding, examine, lines


def test_every_part_of_the_machine_is_told(tmp_path: Path) -> None:
    found = {finding.what: finding for finding in examine("cpu", tmp_path / "not" / "yet")}
    assert found.keys() == {"system", "libraries", "device", "memory", "bf16", "8-bit Adam", "disk"}
    assert "torch 2" in found["libraries"].text
    assert found["device"].text.startswith("cpu: ")
    assert found["disk"].text.endswith(f"are free in {tmp_path}")
    assert "times as long as in fp32" in found["bf16"].text


def test_a_device_that_is_not_there_and_memory_that_is_short_come_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = namedtuple("memory", "available total")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(10**9, 4 * 10**9))
    found = [finding for finding in examine("cuda:99", tmp_path) if finding.remedy]
    assert {"device", "memory"} <= {finding.what for finding in found}
    assert next(one for one in found if one.what == "memory").text == "1.0 of 4.0 GB of main memory are free"


def test_what_wants_something_done_is_marked() -> None:
    said: list[str] = []
    assert lines([Finding("disk", "fine"), Finding("bf16", "slow", "set it off")], said.append) == 1
    assert said == ["  disk: fine", "! bf16: slow", "    -> set it off"]
