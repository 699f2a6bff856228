"""Rules of the repository that no linter holds."""

import ast
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGE = CHECKOUT / "diffusion_lora"
PAGE = CHECKOUT / "webui"
MODULES = sorted(path for package in (PACKAGE, PAGE) for path in package.rglob("*.py"))
TORCH_FREE = (
    "config", "caption_config", "run", "caption_run", "events", "images", "errors", "workspace", "inbox", "processes",
    "device_lock", "layouts.layout", "data.folder",
    "lora.header", "lora.formats.kohya", "lora.card", "generate.request", "generate.infotext",
    "generate.wire", "families.pocket.words", "faces.page", "faces.progress", "jobs.store", "jobs.worker",
    "jobs.launch", "cli", "prompt.chunks", "prompt.tags", "prompt.wildcards",
)  # fmt: skip


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [CHECKOUT / name for name in done.stdout.split("\0") if name and (CHECKOUT / name).is_file()]


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.name == "__init__.py"], ids=lambda path: str(path.relative_to(CHECKOUT))
)
def test_package_files_import_nothing(path: Path) -> None:
    """One import here would load torch for everybody who wants the torch-free part of the room."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert ast.get_docstring(tree)


def test_what_starts_in_a_blink_loads_no_torch() -> None:
    assert not heavy([f"diffusion_lora.{name}" for name in TORCH_FREE])


def test_the_page_loads_no_torch_and_its_frame_no_gradio() -> None:
    """The page is to be there in seconds; Gradio alone takes three, while engine and worker are started already."""
    files = [path for path in MODULES if PAGE in path.parents and path.name != "__init__.py"]
    assert heavy([".".join(path.relative_to(CHECKOUT).with_suffix("").parts) for path in files]) == {"gradio"}
    assert not heavy(["webui.app"])


def heavy(modules: list[str]) -> set[str]:
    """Which libraries of some weight a fresh process has loaded after importing these modules."""
    code = "".join(f"import {name}\n" for name in modules)
    code += "import sys\nfor name in ('torch', 'diffusers', 'transformers', 'bitsandbytes', 'gradio'):\n"
    code += "    if name in sys.modules: print(name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CHECKOUT)
    return set(done.stdout.split())


def test_every_module_says_what_it_does() -> None:
    assert not [path for path in MODULES if not ast.get_docstring(ast.parse(path.read_text("utf-8")))]


def test_no_file_names_a_registry_or_this_machine() -> None:
    """pip's own configuration says where packages come from; paths of one machine mean nothing on another."""
    wanted = re.compile(r"pypi\.org|download\.pytorch\.org|files\.pythonhosted|(?<![\w.])/(?:work|root|home/\w+)/")
    texts = [path for path in tracked() if path.suffix in {".py", ".toml", ".txt", ".md", ".json", ""}]
    hits = {path: wanted.search(path.read_text(encoding="utf-8", errors="replace")) for path in texts}
    assert not {path: hit[0] for path, hit in hits.items() if hit and path != Path(__file__)}


def test_weights_of_the_base_are_safetensors_and_small() -> None:
    files = [path for path in (PACKAGE / "families" / "pocket" / "base").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 32e6
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".ckpt", ".pkl"}]


def test_data_sets_hold_pictures_with_captions_and_no_code() -> None:
    for folder in sorted(path for path in (CHECKOUT / "datasets").iterdir() if path.is_dir()):
        pictures = sorted(folder.glob("*.png"))
        assert len(pictures) >= 10, folder.name
        assert all(path.with_suffix(".txt").is_file() for path in pictures)
        assert not list(folder.rglob("*.py"))


@pytest.mark.parametrize("script", sorted((CHECKOUT / "scripts").iterdir()), ids=lambda path: path.name)
def test_scripts_are_executable_and_parse(script: Path) -> None:
    assert os.access(script, os.X_OK)
    if "bash" in script.read_text(encoding="utf-8").splitlines()[0]:
        subprocess.run(["bash", "-n", script], check=True)


def test_install_is_quick_the_second_time(tmp_path: Path) -> None:
    """Every other script calls it first; from any folder."""
    if not (CHECKOUT / ".venv" / ".installed-test").exists():
        pytest.skip("the environment was not made by scripts/install")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHON"}
    for _ in range(2):  # the first one may have something to do: pyproject.toml was edited
        start = time.perf_counter()
        subprocess.run([CHECKOUT / "scripts" / "install", "--test"], cwd=tmp_path, env=environment, check=True)
    assert time.perf_counter() - start < 5


def test_ci_runs_the_tests() -> None:
    assert (CHECKOUT / ".ci" / "run").read_text(encoding="utf-8").rstrip().endswith('/scripts/test"')


def test_ci_lets_no_test_of_the_page_skip() -> None:
    """tests/ui skips without a browser, unless CI is set."""
    assert "export CI=1" in (CHECKOUT / ".ci" / "run").read_text(encoding="utf-8")


def test_a_browser_that_is_there_is_found_at_once(tmp_path: Path) -> None:
    """And one that is named but not there is not replaced in silence."""
    browser = tmp_path / "browser"
    browser.write_text("#!/bin/sh\n", encoding="utf-8")
    environment = {**os.environ, "DIFFUSION_LORA_BROWSER": str(browser)}
    command = [CHECKOUT / "scripts" / "browser"]
    missing = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert missing.returncode == 1
    assert str(browser) in missing.stderr
    browser.chmod(0o755)
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout == f"{browser}\n"
