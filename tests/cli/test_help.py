"""Help answers at once, and the command line's own errors look like all others."""

import subprocess
import sys
import time

import pytest

HEAVY = (
    "torch", "numpy", "diffusers", "transformers", "bitsandbytes", "huggingface_hub", "safetensors", "PIL",
    "gradio", "fastapi", "uvicorn", "httpx", "psutil", "sqlite3",
)  # fmt: skip
COMMANDS = ("train", "run", "generate", "grid", "demo", "words", "version", "ui", "serve", "worker", "queue")


def test_help_imports_none_of_the_heavy_libraries() -> None:
    """If this fails, --help has become slow for everybody, whatever the clock says here."""
    code = (
        "import sys, contextlib\n"
        "from diffusion_lora.cli import main\n"
        "with contextlib.suppress(SystemExit): main(['--help'])\n"
        f"print('loaded:', sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "loaded: []" in output


def test_help_answers_in_less_than_a_second(command_line) -> None:
    """The best of three, so that a busy machine does not fail it."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = command_line("--help")
        seconds.append(time.perf_counter() - start)
    assert done.returncode == 0
    assert min(seconds) < 1.0
    for command in COMMANDS:
        assert f" {command} " in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command_line, command: str) -> None:
    done = command_line(command, "--help")
    assert done.returncode == 0
    assert "Usage: diffusion-lora" in done.stdout


def test_no_command_is_help_and_no_error(command_line) -> None:
    done = command_line()
    assert done.returncode == 0
    assert "Usage" in done.stdout


@pytest.mark.parametrize(
    "arguments", [["trian"], ["train"], ["train", "a.toml", "--stepps", "3"], ["generate", "a cat", "--count", "0"]]
)
def test_wrong_usage_is_one_line_and_status_2(command_line, arguments: list[str]) -> None:
    done = command_line(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def test_words_prints_the_lists_and_says_that_it_is_a_toy(command_line) -> None:
    done = command_line("words")
    assert done.returncode == 0, done.stderr
    for said in ("objects:", "colours:", "backgrounds:", "styles:", "toy world", "--base"):
        assert said in done.stdout


def test_version_tells_the_libraries_without_loading_them(command_line) -> None:
    done = command_line("version")
    assert done.returncode == 0
    assert "torch" in done.stdout
