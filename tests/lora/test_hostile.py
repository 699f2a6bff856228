"""Files made to break the reader: one clear sentence for each, in bounded time and memory, and nothing is run.

Headers are read in a process of their own, without torch, that measures itself.
"""

import json
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diffusion_lora.errors import AdapterFileError

SECONDS, MEGABYTES = 1.5, 150
MODULE = "lora_unet_mid_block_attentions_0_proj_in"
SMALL = {
    f"{MODULE}.alpha": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
    f"{MODULE}.lora_down.weight": {"dtype": "F32", "shape": [1, 2], "data_offsets": [4, 12]},
    f"{MODULE}.lora_up.weight": {"dtype": "F32", "shape": [2, 1], "data_offsets": [12, 20]},
}
F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
BIG = (16 << 20) - 64


def file_of(header: object, data: bytes = bytes(20)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + data


def changed(name: str = f"{MODULE}.alpha", **fields: object) -> bytes:
    return file_of({**SMALL, name: {**SMALL[name], **fields}})


def entries(count: int, name: str = "t%d", entry: str = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}') -> bytes:
    return file_of(b"{" + b",".join(f'"{name % n}":{entry}'.encode() for n in range(count)) + b"}", b"")


def filled(start: bytes, unit: bytes, end: bytes) -> bytes:
    return file_of(start + unit * ((BIG - len(start) - len(end)) // len(unit)) + end)


def with_settings(text: str, key: str = "lora_adapter_metadata") -> bytes:
    return file_of({"__metadata__": {key: text}, **SMALL})


def lora_names(count: int) -> bytes:
    tensors, at = {}, 0
    for n in range(count):
        tensors[f"lora_unet_down_blocks_{n}_attentions_0_proj_in.lora_down.weight"] = {
            "dtype": "U8",
            "shape": [1],
            "data_offsets": [at, at + 1],
        }
        at += 1
    return file_of(tensors, bytes(at))


class Trap:
    """A pickle that leaves a mark when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.mark),)


FILES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "five bytes": lambda: b"\x05\0\0\0\0",
    "eight bytes": lambda: bytes(8),
    "a web page": lambda: b"<!DOCTYPE html><html>please log in</html>",
    "header of no length": lambda: bytes(8) + b"{}",
    "header of 2^63 bytes": lambda: (1 << 63).to_bytes(8, "little") + b"{",
    "header of 2^64 - 1 bytes": lambda: b"\xff" * 8 + b"{",
    "header longer than the file": lambda: (1000).to_bytes(8, "little") + b"{" + bytes(50),
    "header of 17 MB": lambda: file_of(b"{" + b" " * (17 << 20) + b"}"),
    "header of 99 MB": lambda: (99 << 20).to_bytes(8, "little") + b"{" + bytes(99 << 20),
    "100 001 tensors": lambda: entries(100_001),
    "a million tensors": lambda: file_of(
        b'{"a":1' + b',"t":{"dtype":"F32","shape":[],"data_offsets":[0,0]}' * 1_000_000 + b"}"
    ),
    "many tensors under a pen name": lambda: entries(
        120_000, entry='{"dtype":"F32","shape":[0],"data\\u005foffsets":[0,0]}'
    ),
    "100 000 tensors": lambda: entries(100_000),
    "two million members": lambda: filled(b'{"a":1,', b'"b":1,', b'"c":1}'),
    "16 MB of brackets": lambda: filled(b'{"a":', b"[", b""),
    "16 MB of empty lists": lambda: filled(b'{"a":[', b"[],", b"[]]}"),
    "16 MB of objects": lambda: filled(b'{"a":', b'{"a":', b"1"),
    "16 MB of numbers": lambda: filled(b'{"__metadata__":[', b"1234,", b"1]}"),
    "16 MB of white space": lambda: filled(b"{", b" ", b"}"),
    "16 MB of one word": lambda: filled(b'{"__metadata__":{"a":"', b"x", b'"}}'),
    "16 MB of wide characters": lambda: filled(b'{"__metadata__":{"a":"', "\U0001f680".encode(), b'"}}'),
    "one wide character in 16 MB": lambda: filled(b'{"__metadata__":{"' + "\U0001f680".encode() + b'":"', b"x", b'"}}'),
    "16 MB of written wide characters": lambda: filled(b'{"__metadata__":{"a":"', b"\\ud83d\\ude80", b'"}}'),
    "16 MB of quotes": lambda: filled(b'{"__metadata__":{"a":"', b'\\"', b'"}}'),
    "two million metadata": lambda: filled(b'{"__metadata__":{', b'"":"",', b'"":""}}'),
    "metadata of other kinds": lambda: file_of({"__metadata__": {"a": 1}, **SMALL}),
    "metadata that is a list": lambda: file_of({"__metadata__": [1], **SMALL}),
    "metadata twice": lambda: file_of(b'{"__metadata__":{"a":"b"},"__metadata__":{"a":"c"}}', b""),
    "half a character": lambda: file_of({"__metadata__": {"a": "\ud800"}, **SMALL}),
    "no UTF-8": lambda: file_of(b'{"\xff\xfe":1}'),
    "a list": lambda: file_of(b'{"a":[1,2]}'),
    "words behind the header": lambda: file_of(json.dumps(SMALL).encode() + b" and so on"),
    "a header cut off": lambda: file_of(json.dumps(SMALL).encode()[:-9]),
    "a name twice": lambda: file_of(b'{"a":%s,"a":%s}' % ((json.dumps(F32).encode(),) * 2), bytes(4)),
    "a name twice, once written otherwise": lambda: file_of(
        b'{"a":%s,"\\u0061":%s}' % ((json.dumps(F32).encode(),) * 2), bytes(4)
    ),
    "a name of a megabyte": lambda: file_of({"x" * (1 << 20): F32}, bytes(4)),
    "a name that writes on the terminal": lambda: file_of(
        {"\x1b[2J\nall is well\r": {**F32, "dtype": "\x1b[0m"}}, bytes(4)
    ),
    "overlapping tensors": lambda: changed(f"{MODULE}.lora_up.weight", data_offsets=[8, 16]),
    "a hole between tensors": lambda: changed(f"{MODULE}.lora_up.weight", data_offsets=[13, 21]),
    "a tensor outside the file": lambda: changed(f"{MODULE}.lora_up.weight", data_offsets=[1 << 40, (1 << 40) + 8]),
    "an end before its start": lambda: changed(data_offsets=[4, 0]),
    "a place before the file": lambda: changed(data_offsets=[-4, 0]),
    "a place that is a fraction": lambda: changed(data_offsets=[0.0, 4.0]),
    "a place that is a truth": lambda: changed(data_offsets=[False, 4]),
    "a place that is a word": lambda: changed(data_offsets=["0", "4"]),
    "a place of 5 000 digits": lambda: file_of(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,%s]}}' % (b"9" * 5_000)
    ),
    "a place of 1 000 digits": lambda: changed(data_offsets=[0, int("9" * 1_000)]),
    "three places": lambda: changed(data_offsets=[0, 4, 8]),
    "a shape that overflows": lambda: changed(shape=[1 << 62, 1 << 62, 4]),
    "a shape of another size": lambda: changed(shape=[2]),
    "a shape of a thousand axes": lambda: changed(shape=[1] * 900),
    "a negative shape": lambda: changed(shape=[-1]),
    "a nested shape": lambda: file_of(b'{"a":{"dtype":"F32","shape":%s,"data_offsets":[0,4]}}' % (b"[" * 1_500)),
    "no shape": lambda: file_of({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4)),
    "an unknown dtype": lambda: changed(dtype="F31"),
    "a dtype that is a number": lambda: changed(dtype=7),
    "fields of other programs": lambda: changed(code="import os"),
    "bytes behind the last tensor": lambda: file_of(SMALL, bytes(21)),
    "tensors cut off": lambda: file_of(SMALL, bytes(19)),
    "a LoRA of 40 000 tensors": lambda: lora_names(40_000),
    "half a LoRA, 20 000 times": lambda: lora_names(20_000),
    "names that a pattern chokes on": lambda: entries(20_000, "lora_unet_" + "_1" * 80 + "%d.alpha"),
    "names of a pattern's own words": lambda: entries(20_000, "lora_unet" + "_proj_conv" * 15 + "%d.alpha"),
    "empty matrices": lambda: file_of(
        {name: {"dtype": "F32", "shape": [0, 0], "data_offsets": [0, 0]} for name in list(SMALL)[1:]}, b""
    ),
    "an alpha of two numbers": lambda: changed(dtype="F16", shape=[2]),
    "an alpha that is a whole number": lambda: changed(dtype="I32"),
    "settings without end": lambda: with_settings("[" * (15 << 20)),
    "settings of empty lists": lambda: with_settings("[" + "[]," * (1 << 19) + "[]]"),
    "settings with a bomb of a pattern": lambda: with_settings(
        json.dumps({"unet.lora_alpha": 1, "unet.alpha_pattern": {"(((a+)+)+)+$": 1}})
    ),
    "settings with 100 000 patterns": lambda: with_settings(
        json.dumps({"unet.lora_alpha": 1, "unet.alpha_pattern": {f"a.{n}": 1 for n in range(100_000)}})
    ),
    "tags without end": lambda: with_settings("[" * (15 << 20), "ss_tag_frequency"),
}

SOUND = ("settings with 100 000 patterns", "tags without end")
"""Read, for all their size: these too in bounded time and memory."""

# Every file is read by a child of its own of a process that has the reader loaded: its time and memory are its own.
METER = """
import json, os, resource, sys, time
from pathlib import Path
from diffusion_lora.errors import AdapterFileError
from diffusion_lora.lora.header import read_header
from diffusion_lora.lora.report import load_report

for line in sys.stdin:
    if child := os.fork():
        if os.waitpid(child, 0)[1]:
            print(json.dumps([f"the reader died over {line}", 0, 0]), flush=True)
        continue
    began = time.process_time()
    try:
        load_report(read_header(Path(json.loads(line))))
        said = "torch is loaded" if "torch" in sys.modules else ""
    except AdapterFileError as error:
        said = str(error)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps([said, time.process_time() - began, peak]), flush=True)
    os._exit(0)
"""

Meter = Callable[[Path], tuple[str, float, float]]
"""What is said of a file ("" when it is read), seconds of the processor and megabytes at most."""


@pytest.fixture(scope="module")
def meter() -> Iterator[Meter]:
    command = [sys.executable, "-c", METER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        questions, answers = process.stdin, process.stdout

        def measure(path: Path) -> tuple[str, float, float]:
            questions.write(json.dumps(str(path)) + "\n")
            questions.flush()
            said, seconds, megabytes = json.loads(answers.readline())
            assert not said.startswith("the reader died"), said
            return said, seconds, megabytes

        yield measure
        questions.close()


def check_sentence(said: str, path: Path) -> None:
    assert str(path) in said
    assert said.isprintable(), said
    assert len(said) < 500 + len(str(path))


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_header_costs_little_and_gets_one_sentence(meter: Meter, tmp_path: Path, name: str) -> None:
    """A list of LoRAs would freeze, or the page die, over one file that somebody sent."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(FILES[name]())
    said, seconds, megabytes = meter(path)
    path.unlink()
    if name in SOUND:
        assert said == ""
    else:
        check_sentence(said, path)
    assert seconds < SECONDS
    assert megabytes < MEGABYTES


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices of POSIX")
def test_what_is_no_file_is_not_waited_for(meter: Meter, tmp_path: Path) -> None:
    """Opening a pipe waits for ever for whoever writes; a device has no end."""
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "device.safetensors").symlink_to("/dev/zero")
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    for path in sorted(tmp_path.iterdir()):
        said, seconds, _ = meter(path)
        check_sentence(said, path)
        assert seconds < SECONDS


def test_a_pickle_is_refused_by_name_and_never_opened(meter: Meter, tmp_path: Path) -> None:
    import torch

    from diffusion_lora.lora.adapter import read_adapter

    trap = Trap(tmp_path / "mark")
    torch.save(trap, tmp_path / "a.ckpt")
    torch.save(trap, tmp_path / "b.safetensors")
    for protocol in range(2, 6):
        (tmp_path / f"{protocol}.safetensors").write_bytes(pickle.dumps(trap, protocol))
    for path in sorted(tmp_path.iterdir()):
        assert "is a pickle" in meter(path)[0], path
        with pytest.raises(AdapterFileError, match="is a pickle"):
            read_adapter(path)
    assert not trap.mark.exists()


def test_any_change_of_a_header_is_read_or_refused(meter: Meter, tmp_path: Path) -> None:
    """400 headers with bytes replaced, left out and put in: never another error than the one the user is shown."""
    from diffusion_lora.lora.adapter import read_adapter

    rng = random.Random(0)
    sound = file_of(SMALL)
    path, read = tmp_path / "a.safetensors", 0
    for number in range(400):
        data = bytearray(sound)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data) - 20)
            match rng.randrange(3):
                case 0:
                    data[at] = rng.randrange(256)
                case 1:
                    del data[at]
                case _:
                    data.insert(at, rng.choice(b'{}[]",:0-9eE.\\ \x00'))
        if rng.random() < 0.5:  # the length made right again, so that the JSON is what is wrong
            data[:8] = (len(data) - 8 - 20).to_bytes(8, "little")
        path.write_bytes(data)
        said, seconds, megabytes = meter(path)
        assert seconds < SECONDS
        assert megabytes < MEGABYTES
        read += not said
        if said:
            check_sentence(said, path)
        if number % 8 == 0:
            try:
                read_adapter(path)
            except AdapterFileError as error:
                check_sentence(str(error), path)
    assert 0 < read < 100, "most of them are broken"
