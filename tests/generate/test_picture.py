"""Pictures are saved in order, under numbers that nobody else has, whole or not at all."""

import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusion_lora.errors import OutputError
from diffusion_lora.generate.picture import Picture, save_pictures, save_png
from diffusion_lora.generate.reading import read_request
from diffusion_lora.generate.request import Request


def picture(seed: int) -> Picture:
    return Picture(Image.new("RGB", (16, 16), (seed, 0, 0)), Request("a cat", seed=seed), torch.zeros(4, 2, 2))


def test_pictures_are_numbered_in_their_order_and_carry_their_requests(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    paths = save_pictures(folder, [picture(7), picture(3)])
    assert [path.name for path in paths] == ["00001-7.png", "00002-3.png"]
    assert [read_request(path).seed for path in paths] == [7, 3]
    assert sorted(path.name for path in folder.iterdir()) == ["00001-7.png", "00002-3.png"], "nothing else stays"


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "00041-9.png").write_bytes(b"mine")
    (tmp_path / "notes.txt").write_text("mine")
    assert save_pictures(tmp_path, [picture(1)])[0].name == "00042-1.png"
    assert (tmp_path / "00041-9.png").read_bytes() == b"mine"


def test_others_can_read_the_picture(tmp_path: Path) -> None:
    (path,) = save_pictures(tmp_path, [picture(1)])
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444


def test_two_processes_never_take_the_same_name(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from PIL import Image\n"
        "from diffusion_lora.generate.picture import save_png\n"
        "for _ in range(30): save_png(Path(sys.argv[1]), Image.new('RGB', (8, 8)), '5')"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    assert [process.wait() for process in started] == [0, 0]
    assert len(list(tmp_path.iterdir())) == 60


def test_a_file_system_without_hard_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    def no_links(*_: object) -> None:
        raise OSError("Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    assert [path.name for path in save_pictures(tmp_path, [picture(1), picture(1)])] == ["00001-1.png", "00002-1.png"]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_place_below_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"cannot be written to .*file"):
        save_pictures(tmp_path / "file" / "pictures", [picture(1)])


def test_a_full_disk_leaves_no_half_picture(tmp_path: Path) -> None:
    noise = Image.effect_noise((256, 256), 80)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OutputError, match="File too large"):
            save_png(tmp_path, noise, "1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert list(tmp_path.iterdir()) == []
