"""What README and the shipped files promise exists: commands, options, scripts, rooms, words."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from diffusion_lora.cli import app
from diffusion_lora.config import load_train_config, to_toml
from diffusion_lora.faces.words import word_lists

CHECKOUT = Path(__file__).resolve().parents[2]
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
PAGES = {page.name: page.read_text(encoding="utf-8") for page in sorted((CHECKOUT / "docs").glob("*.md"))}
CONFIGS = sorted((CHECKOUT / "configs").glob("*.toml"))


def command_lines() -> list[str]:
    pages = "\n".join((README, *PAGES.values()))
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", pages, re.DOTALL)).replace("\\\n", " ")
    return [line for line in blocks.splitlines() if line.startswith("diffusion-lora ")]


@pytest.mark.parametrize("line", command_lines())
def test_commands_of_the_readme_parse(line: str) -> None:
    """A renamed option or command would leave README's lines broken."""
    _, name, *arguments = shlex.split(line, comments=True)
    command = typer.main.get_command(app).commands[name]
    command.make_context(name, arguments)


@pytest.mark.parametrize("line", [line for line in command_lines() if " train " in line])
def test_configs_and_settings_of_the_readme_exist(line: str) -> None:
    words = shlex.split(line, comments=True)
    settings = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    load_train_config(CHECKOUT / "configs" / f"{words[2]}.toml", settings)


def test_the_command_table_names_every_command() -> None:
    told = set(re.findall(r"^\| `diffusion-lora (\w+)", README, re.MULTILINE))
    assert told == set(typer.main.get_command(app).commands)


def test_scripts_and_files_of_the_readme_exist() -> None:
    for name in set(re.findall(r"`?(scripts/[a-z]+)", README)) | set(re.findall(r"\]\(([^)#:]+)\)", README)):
        assert (CHECKOUT / name).exists(), name


@pytest.mark.parametrize("name", PAGES)
def test_links_of_the_docs_lead_somewhere(name: str) -> None:
    """Files beside the page, and headings of the page itself."""
    headings = re.findall(r"^#+ (.+)$", PAGES[name], re.MULTILINE)
    places = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[name]):
        file, _, place = target.partition("#")
        assert (CHECKOUT / "docs" / file).exists(), target
        assert file or place in places, target


def test_settings_of_the_docs_exist() -> None:
    """`table.key` in code, where the table is one of the configuration's."""
    known = load_train_config(CONFIGS[0])
    for page in PAGES.values():
        for table, key in re.findall(r"`([a-z]+)\.([a-z_]+)[=` ]", page):
            if hasattr(known, table):
                assert hasattr(getattr(known, table), key), f"{table}.{key}"


def test_the_tree_of_the_readme_is_the_tree() -> None:
    """Every room has its line, and every line its room."""
    tree = README.split("## What is where")[1].split("```")[1]
    told = {name for name in re.findall(r"[\w./-]+(?:/|\.py)(?=[ \n])", tree) if name != "diffusion_lora/"}
    package = CHECKOUT / "diffusion_lora"
    missing = [name for name in told if not (CHECKOUT / name).exists() and not (package / name).exists()]
    rooms = {f"{room.parent.name}/" for room in package.glob("*/__init__.py")}
    modules = {module.name for module in package.glob("[a-z]*.py")}
    assert not missing
    assert rooms | modules <= told


@pytest.mark.parametrize("kind", ["objects", "colours", "backgrounds", "styles"])
def test_the_words_of_the_readme_are_those_pocket_knows(kind: str) -> None:
    block = re.search(r"<!-- words -->\n(.*?)<!-- /words -->", README, re.DOTALL)
    assert block is not None
    assert f"- **{kind}**: {', '.join(word_lists()[kind])}\n" in block[1]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_load_and_are_complete(path: Path) -> None:
    """A shipped config is a whole run: it can be read as the list of all settings there are."""
    import tomllib

    config = load_train_config(path)
    assert config.output.name
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    for table, settings in tomllib.loads(to_toml(config)).items():
        assert set(tables[table]) == set(settings), table


def test_the_presets_of_pocket_find_their_sets() -> None:
    for name in ("pocket-style", "pocket-subject", "pocket-character", "pocket-concept"):
        assert Path(load_train_config(CHECKOUT / "configs" / f"{name}.toml").dataset.path).is_dir()
