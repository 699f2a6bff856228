"""The built wheel is enough: installed outside the checkout it draws, trains and runs the demo."""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]

Installed = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """`diffusion-lora` as a wheel puts it into an empty environment; the libraries are lent by this one."""
    folder = tmp_path_factory.mktemp("wheel")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def call(*command: object, cwd: Path = folder) -> "subprocess.CompletedProcess[str]":
        words = [str(word) for word in command]
        done = subprocess.run(
            words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
        return done

    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    call(*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, CHECKOUT)
    call(sys.executable, "-m", "venv", "--without-pip", folder / "env")
    bin_folder = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
    python = bin_folder / Path(sys.executable).name
    (wheel,) = folder.glob("*.whl")
    call(*pip, "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    site = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    # Path files of a folder that was added by a path file are not read: the editable checkout stays out of sight.
    lent = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "lent.pth").write_text("\n".join(sorted(lent)) + "\n", encoding="utf-8")
    where = call(python, "-c", "import diffusion_lora; print(diffusion_lora.__file__)").stdout.strip()
    assert Path(where).is_relative_to(site)

    def diffusion_lora(*arguments: object, cwd: Path) -> "subprocess.CompletedProcess[str]":
        return call(bin_folder / "diffusion-lora", *arguments, cwd=cwd)

    return diffusion_lora


def test_words_come_with_the_wheel(installed: Installed, tmp_path: Path) -> None:
    assert "backgrounds:" in installed("words", cwd=tmp_path).stdout


@pytest.mark.slow
def test_the_wheel_draws(installed: Installed, tmp_path: Path) -> None:
    installed("generate", "a red cat on a sky background", "--steps", "2", "--out", "drawn", cwd=tmp_path)
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 1


@pytest.mark.slow
def test_the_wheel_runs_the_demo(installed: Installed, tmp_path: Path) -> None:
    """Configs, sample sets and base must all be inside, found without the checkout."""
    said = installed("demo", "--quick", cwd=tmp_path).stdout
    for sheet in ("style-strengths.png", "style-x-subject.png", "adapters.png"):
        assert (tmp_path / "demo" / sheet).is_file()
        assert sheet in said
    for adapter in ("style", "subject"):
        assert (tmp_path / "demo" / adapter / "adapter.safetensors").is_file()
