"""`caption` and the `dataset` commands that change a set, as processes: what they print, write and take back."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def pictures(tmp_path: Path, checkout: Path) -> Path:
    """Six drawings of the shipped set, two of them with captions."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for file in sorted((checkout / "datasets" / "pocket-style").glob("*.png"))[:6]:
        shutil.copy(file, folder)
    for name in ("01-cactus", "02-tree"):
        (folder / f"{name}.txt").write_text("picture of a gray thing, blueprint")
    return folder


def captions(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.glob("*.txt")}


def test_two_processes_caption_a_folder_and_undo_takes_it_back(command_line, pictures: Path) -> None:
    was = captions(pictures)
    done = command_line("caption", "pictures", "--processes", "2", "--prefix", "zib,", "--rule", "remove: on a")
    assert done.returncode == 0, done.stderr
    now = captions(pictures)
    assert len(now) == 6
    assert {name: now[name] for name in was} == was
    new = [text for name, text in now.items() if name not in was]
    assert all(text.startswith("zib, a") and text.endswith("background") and " on a " not in text for text in new)
    undone = command_line("dataset", "undo", pictures)
    assert undone.stdout == "4 captions are as they were before: caption\n"
    assert captions(pictures) == was
    again = command_line("dataset", "undo", pictures)
    assert again.returncode == 2
    assert "no edit of the captions" in again.stderr


def test_captions_are_edited_by_rules_after_a_look(command_line, pictures: Path) -> None:
    was = captions(pictures)
    order = ("dataset", "edit", pictures, "--rule", "replace: gray => grey", "--rule", "regex: ^picture of => ")
    shown = command_line(*order, "--dry-run").stdout
    assert "  - picture of a gray thing, blueprint\n  + a grey thing, blueprint\n" in shown
    assert "2 captions would change" in shown
    assert captions(pictures) == was
    assert "2 captions changed" in command_line(*order).stdout
    assert set(captions(pictures).values()) == {"a grey thing, blueprint"}
    assert command_line("dataset", "undo", pictures).returncode == 0
    assert captions(pictures) == was


def test_a_set_is_counted_compared_and_copied(command_line, pictures: Path) -> None:
    counted = command_line("dataset", "stats", pictures, "--look").stdout
    assert "6 pictures, 2 with a caption" in counted
    assert "blueprint" in counted
    assert "pictures in each bucket" in counted
    shutil.copy(pictures / "03-apple.png", pictures / "again.png")
    assert "1 groups, 1 pictures more than needed" in command_line("dataset", "dedupe", pictures).stdout
    exported = command_line("dataset", "export", pictures, "out.zip", "--to", "zip")
    assert exported.stdout == "7 pictures exported to out.zip\n"
    assert command_line("dataset", "import", "out.zip", "back").stdout == "9 files imported into back\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("caption", "nowhere"), "there is no such folder"),
        (("caption", "pictures", "--captioner", "nobody"), "there is no captioner 'nobody'"),
        (("caption", "pictures", "--rule", "gray"), "begins with none of"),
        (("caption", "pictures", "--shard", "2/2"), "the shard 2/2 is not one of"),
        (("dataset", "edit", "pictures"), "nothing is asked for"),
        (("dataset", "export", "pictures", "pictures/out"), "lies inside the set"),
        (("dataset", "import", "nothing.zip", "new"), "there is no 'nothing.zip'"),
    ],
)
def test_a_mistake_is_one_sentence(command_line, pictures: Path, arguments: tuple[str, ...], sentence: str) -> None:
    done = command_line(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
