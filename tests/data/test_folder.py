"""Folders of pictures in every layout: captions belong to their pictures, and what is missing is named."""

import json
from pathlib import Path

import pytest
from PIL import Image

from diffusion_lora.data.folder import Scanned, demand_captions, scan, scan_folder
from diffusion_lora.data.sources import Item, Looking, Source
from diffusion_lora.errors import DatasetError

QUICK = Looking(headers=False)


def fill(folder: Path, ending: str = ".txt", **captions: str | None) -> Path:
    folder.mkdir(exist_ok=True)
    for stem, caption in captions.items():
        (folder / f"{stem}.png").write_bytes(b"")
        if caption is not None:
            (folder / f"{stem}{ending}").write_text(caption, encoding="utf-8")
    return folder


def found(folder: Path, looking: Looking = QUICK, **source: object) -> list[tuple[str, str]]:
    scanned = scan([Source(folder, **source)], looking)  # type: ignore[arg-type]
    return [(item.name, item.caption) for item in scanned.items]


def gate(folder: Path, looking: Looking = QUICK, *, required: bool = True) -> None:
    demand_captions(scan([Source(folder)], looking), looking, required=required)


def test_pictures_come_by_name_each_with_the_text_beside_it(tmp_path: Path) -> None:
    fill(tmp_path, b="second\n  line ", a="\ufefffirst")
    (tmp_path / "notes.md").write_text("not a picture", encoding="utf-8")
    (tmp_path / "._a.png").write_bytes(b"what macOS leaves behind")
    fill(tmp_path, ".caption", e="fourth")
    (tmp_path / "C.JPG").write_bytes(b"")
    (tmp_path / "C.txt").write_text("third", encoding="utf-8")
    items = scan_folder(tmp_path)
    assert [(item.name, item.caption) for item in items] == [
        ("C.JPG", "third"),
        ("a.png", "first"),
        ("b.png", "second line"),
        ("e.png", "fourth"),
    ]
    assert [(item.name, item.caption) for item in items] == found(tmp_path)


def test_one_caption_for_all_replaces_the_files(tmp_path: Path) -> None:
    assert {item.caption for item in scan_folder(fill(tmp_path, a="x", b=None), caption="sks dog")} == {"sks dog"}


def test_caption_files_have_the_endings_that_were_named_in_their_order(tmp_path: Path) -> None:
    fill(tmp_path, a="text", b="text")
    fill(tmp_path, ".tags", a="tags")
    assert found(tmp_path, Looking((".tags", ".txt"), headers=False)) == [("a.png", "tags"), ("b.png", "text")]
    assert found(tmp_path, Looking((".tags",), headers=False)) == [("a.png", "tags"), ("b.png", "")]


def test_lines_of_a_caption_file_are_one_caption_or_several(tmp_path: Path) -> None:
    fill(tmp_path, a="first\n\n  second  one\n")
    assert [item.captions for item in scan([Source(tmp_path)], QUICK).items] == [("first second one",)]
    several = Looking(lines="variants", headers=False)
    assert [item.captions for item in scan([Source(tmp_path)], several).items] == [("first", "second one")]


def test_folders_below_are_walked_when_asked(tmp_path: Path) -> None:
    fill(tmp_path, a="x")
    fill(tmp_path / "deep", a="y")
    fill(tmp_path / ".hidden", a="z")
    assert found(tmp_path) == [("a.png", "x")]
    assert found(tmp_path, layout="subfolders") == [("a.png", "x"), ("deep/a.png", "y")]


def test_kohyas_folders_carry_repeats_and_a_name(tmp_path: Path) -> None:
    fill(tmp_path / "5_zib cat", a="zib, cat", b=None)
    fill(tmp_path / "2_other_thing", c=None)
    fill(tmp_path / "not this one", d="x")
    scanned = scan([Source(tmp_path)], Looking(folder_as_caption=True, headers=False))
    assert [(source.folder.name, source.repeats) for source in scanned.sources] == [
        ("2_other_thing", 2),
        ("5_zib cat", 5),
    ]
    assert [(item.source, item.caption) for item in scanned.items] == [
        (0, "other thing"),
        (1, "zib, cat"),
        (1, "zib cat"),
    ]
    assert [item.caption for item in scan([Source(tmp_path)], QUICK).items] == ["", "zib, cat", ""]
    assert scan([Source(tmp_path / "5_zib cat", repeats=2)], QUICK).sources[0].repeats == 10


def test_metadata_lists_name_pictures_and_captions(tmp_path: Path) -> None:
    fill(tmp_path, a=None, b="beside", c=None)
    fill(tmp_path / "more", d=None)
    rows = [
        {"file_name": "a.png", "text": "listed"},
        {"file_name": "more/d.png", "caption": ["one", "two"]},
        {"file_name": "gone.png", "text": "x"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    scanned = scan([Source(tmp_path)], QUICK)
    assert [(item.name, item.captions) for item in scanned.items] == [
        ("a.png", ("listed",)),
        ("b.png", ("beside",)),
        ("c.png", ("",)),
        ("more/d.png", ("one", "two")),
    ]
    assert [(problem.kind, problem.picture) for problem in scanned.problems] == [("not there", "gone.png")]
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text('file_name,text\na.png,"red, blue"\n', encoding="utf-8")
    assert found(tmp_path)[0] == ("a.png", "red, blue")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"file_name": "a.png"}\n{"text": "x"}', "line 2: there is no file_name"),
        ('{"file_name": "../a.png", "text": "x"}', "line 1: '../a.png' does not lie below the folder"),
        ('{"file_name": "a.png", "text": 3}', "line 1: the caption of a.png is not text but 3"),
        ('{"file_name": ', "line 1: this is not JSON"),
        ('"a.png"', "line 1: '\"a.png\"' is not an object in braces"),
    ],
)
def test_a_line_that_is_not_understood_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    fill(tmp_path, a=None)
    (tmp_path / "metadata.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=sentence.replace("(", r"\(")):
        scan([Source(tmp_path)], QUICK)


def test_masks_are_found_and_never_taken_for_pictures(tmp_path: Path) -> None:
    fill(tmp_path, a="x", b="x", c="x", d="x", **{"a.mask": None, "b-masklabel": None})
    fill(tmp_path / "masks", c=None)
    scanned = scan([Source(tmp_path)], Looking(masks=True, headers=False))
    masks = [item.mask and item.mask.relative_to(tmp_path).as_posix() for item in scanned.items]
    assert masks == ["a.mask.png", "b-masklabel.png", "masks/c.png", None]
    assert [(problem.kind, problem.picture) for problem in scanned.problems] == [("mask", "d.png")]
    unasked = scan([Source(tmp_path)], QUICK)
    assert [item.mask for item in unasked.items] == [None] * 4
    told = "2 pictures have a mask (a.mask.png), which training looks at when dataset.mask is file"
    assert [problem.text for problem in unasked.problems] == [told]


def test_a_picture_without_caption_is_named_or_learned_without_one(tmp_path: Path) -> None:
    fill(tmp_path, a="x", b=None, c="  ")
    with pytest.raises(DatasetError, match=r"b\.png \(and 1 more\) has no caption: write it into b\.txt"):
        scan_folder(tmp_path)
    assert [item.caption for item in scan_folder(tmp_path, captions_required=False)] == ["x", "", ""]


def test_a_set_whose_captions_were_not_found_is_stopped_with_what_lies_there(tmp_path: Path) -> None:
    """Trained without them, a set teaches its pictures to an empty text, and the night is lost."""
    fill(tmp_path, ".text", a="x", b="y")
    with pytest.raises(DatasetError) as caught:
        gate(tmp_path)
    sentence = str(caught.value)
    assert "no caption was found for any of the 2 pictures: looked for NAME.txt or NAME.caption" in sentence
    assert "lie 2 .png, 2 .text" in sentence
    gate(tmp_path, required=False)
    gate(tmp_path, Looking(folder_as_caption=True, headers=False))
    gate(tmp_path, Looking((".text",), headers=False))


def test_what_is_no_folder_of_pictures_is_told(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="there is no such folder beside the config, in the working directory"):
        scan_folder(Path("no/such/folder"))
    with pytest.raises(DatasetError, match=r"there is no picture in .* it needs files ending in"):
        scan_folder(tmp_path)
    fill(tmp_path / "below", a="x")
    with pytest.raises(DatasetError, match=r'but 1 in its folders: set dataset\.layout = "subfolders"'):
        scan_folder(tmp_path)
    for layout, sentence in (
        ("metadata", "has neither metadata.jsonl"),
        ("kohya", "no folders of the form REPEATS_name"),
    ):
        with pytest.raises(DatasetError, match=sentence):
            found(tmp_path, layout=layout)
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(DatasetError, match="is a file; name the folder"):
        scan_folder(tmp_path / "file")


def test_a_caption_in_another_encoding_is_named_and_stops(tmp_path: Path) -> None:
    fill(tmp_path, a=None)
    (tmp_path / "a.txt").write_bytes("café".encode("latin-1"))
    scanned = scan([Source(tmp_path)], QUICK)
    assert isinstance(scanned, Scanned)
    assert [problem.kind for problem in scanned.problems] == ["caption encoding"]
    with pytest.raises(DatasetError, match=r"a\.txt cannot be read as UTF-8"):
        scan_folder(tmp_path, captions_required=False)


def test_headers_are_read_upright_and_what_has_none_is_left_out(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "lying.jpg", exif=exif)
    Image.new("RGB", (30, 20)).save(tmp_path / "plain.png")
    fill(tmp_path, broken="x")
    scanned = scan([Source(tmp_path)], Looking())
    assert [(item.name, item.size) for item in scanned.items] == [("lying.jpg", (20, 30)), ("plain.png", (30, 20))]
    assert [(problem.kind, problem.picture, problem.left_out) for problem in scanned.problems] == [
        ("unreadable", "broken.png", True)
    ]
    assert isinstance(scanned.items[0], Item)
