"""Bulk edits of captions: each can be taken back byte for byte, a killed one goes on, a person's own words stay."""

import random
import re
from pathlib import Path

import pytest
from PIL import Image

from diffusion_lora.data.edits import HISTORY, Change, Edit, history, undo
from diffusion_lora.data.rewriting import captioned, rewrite
from diffusion_lora.data.rules import Shape, parse_rule
from diffusion_lora.errors import DatasetError

ODD = [
    b"", b"a cat", b"a cat\n", b"a cat\r\nanother line\r\n", b"\xef\xbb\xbfa cat, gray", b"caf\xe9", b"\xff\xfe\x00",
    "grün, 猫, \u2028 end".encode(), b"a, b,, c ,", b"   ", b"\n\n", b"a cat" * 500,
]  # fmt: skip
RULES = ["replace: cat => dog", "remove: gray", "synonyms: car, cat, auto", r"regex: (\w+), => \1 and",
         "replace: a => b c"]  # fmt: skip


def a_set(root: Path, captions: list[bytes | None]) -> Path:
    root.mkdir()
    for number, data in enumerate(captions):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(root / f"{number:02}.png")
        if data is not None:
            (root / f"{number:02}{random.Random(number).choice(['.txt', '.caption'])}").write_bytes(data)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir() if path.suffix in (".txt", ".caption")}


def run_edit(root: Path, shape: Shape, asked: dict) -> int:
    edit = Edit.of(root, asked)
    with edit.at_work():
        changed = sum(1 for _ in rewrite(captioned(root, "auto", lambda problem: None), shape, edit))
    edit.finish()
    return changed


@pytest.mark.parametrize("seed", range(6))
def test_undo_restores_every_byte_after_each_of_many_random_edits(tmp_path: Path, seed: int) -> None:
    """Encodings, line ends, marks and missing files included; otherwise a rule that was a mistake costs captions."""
    rng = random.Random(seed)
    root = a_set(tmp_path / "set", [rng.choice([None, *ODD]) for _ in range(14)])
    before: list[dict[str, bytes]] = []
    for number in range(6):
        was = contents(root)
        if rng.random() < 0.5:
            shape = Shape(
                tuple(parse_rule(rng.choice(RULES)) for _ in range(rng.randrange(3))),
                prefix=rng.choice(["", "zib, "]),
                form=rng.choice(["as is", "tags", "sentence"]),
                max_tokens=rng.choice([0, 0, 2]),
            )
            run_edit(root, shape, {"number": number})
        else:  # as captioning writes: files come, go and change
            edit = Edit.of(root, {"number": number})
            files = [each.file for each in captioned(root, "auto", lambda problem: None)]
            chosen = rng.sample(files, 5)
            edit.write(
                Change(file, file.read_bytes() if file.exists() else None, rng.choice([*ODD, None])) for file in chosen
            )
            edit.finish()
        if contents(root) != was:
            before.append(was)
    assert before, "no edit changed anything: the test tests nothing"
    for was in reversed(before):
        undo(root)
        assert contents(root) == was
    with pytest.raises(DatasetError, match="no edit"):
        undo(root)


def test_an_edit_that_was_killed_goes_on_and_is_one_edit(tmp_path: Path) -> None:
    root = a_set(tmp_path / "set", [b"a cat"] * 6)
    was = contents(root)
    asked = {"what": "append"}
    killed = Edit.of(root, asked)
    files = [each.file for each in captioned(root, "auto", lambda problem: None)]
    killed.write(Change(file, b"a cat", b"a cat, sitting") for file in files[:3])
    with (root / HISTORY / "0001" / "part-0of1.jsonl").open("ab") as file:
        file.write(b'{"file": "05.t')  # a line that a crash has cut
    again = Edit.of(root, asked)
    assert [again.has_done(file) for file in files] == [True] * 3 + [False] * 3
    again.write(Change(file, b"a cat", b"a cat, sitting") for file in files[3:])
    again.finish()
    assert set(contents(root).values()) == {b"a cat, sitting"}
    assert len(history(root)) == 1
    assert undo(root).restored == 6
    assert contents(root) == was
    assert Edit.of(root, asked).folder.name == "0002", "the same order after its end is a new edit"


def test_a_note_without_its_file_is_no_change(tmp_path: Path) -> None:
    """Killed between note and file: the picture is done again, and undo has nothing to restore there."""
    root = a_set(tmp_path / "set", [b"a cat", None])
    edit = Edit.of(root, {})
    edit.write([Change(root / "x.txt", None, b"gone")])
    (root / "x.txt").unlink()
    again = Edit.of(root, {})
    assert not again.has_done(root / "x.txt")
    assert undo(root).kept == ()
    assert not (root / "x.txt").exists()


def test_what_a_person_changed_since_is_left_alone_unless_forced(tmp_path: Path) -> None:
    root = a_set(tmp_path / "set", [b"a cat", b"a cat"])
    first, second = (each.file for each in captioned(root, "auto", lambda problem: None))
    run_edit(root, Shape((parse_rule("replace: cat => dog"),)), {})
    first.write_text("my own words")
    done = undo(root)
    assert done.kept == (first.name,)
    assert (first.read_bytes(), second.read_bytes()) == (b"my own words", b"a cat")
    run_edit(root, Shape(prefix="zib"), {"again": True})
    first.write_text("other words")
    assert undo(root, force=True).kept == ()
    assert first.read_bytes() == b"my own words"


def test_a_caption_changed_while_it_was_being_described_is_not_overwritten(tmp_path: Path) -> None:
    root = a_set(tmp_path / "set", [None])
    (root / "00.txt").write_text("a person was faster")
    assert Edit.of(root, {}).write([Change(root / "00.txt", None, b"a machine's words")]) == 0
    assert (root / "00.txt").read_text() == "a person was faster"


def test_one_process_at_a_time_works_on_an_edit(tmp_path: Path) -> None:
    root = a_set(tmp_path / "set", [b"a cat"])
    edit = Edit.of(root, {})
    edit.write([Change(root / "y.txt", None, b"y")])
    with edit.at_work(), pytest.raises(DatasetError, match="at work on the captions"):
        undo(root)
    assert (root / "y.txt").exists()


def test_line_ends_and_the_mark_survive_a_rule(tmp_path: Path) -> None:
    root = a_set(tmp_path / "set", [b"\xef\xbb\xbfa gray cat\r\na gray dog\r\n"])
    run_edit(root, Shape((parse_rule("replace: gray => grey"),)), {})
    assert list(contents(root).values()) == [b"\xef\xbb\xbfa grey cat\r\na grey dog\r\n"]


def test_captions_in_a_list_are_refused_in_one_sentence(tmp_path: Path) -> None:
    root = a_set(tmp_path / "set", [None])
    (root / "metadata.jsonl").write_text('{"file_name": "00.png", "text": "a cat"}\n')
    with pytest.raises(DatasetError, match=re.escape("metadata list, which is not written to")):
        list(captioned(root, "auto", lambda problem: None))
