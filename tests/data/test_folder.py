"""A folder of pictures: captions belong to their pictures, and what is missing is named."""

from pathlib import Path

import pytest

from diffusion_lora.data.folder import scan_folder
from diffusion_lora.errors import DatasetError


def fill(folder: Path, **captions: str | None) -> Path:
    for stem, caption in captions.items():
        (folder / f"{stem}.png").write_bytes(b"")
        if caption is not None:
            (folder / f"{stem}.txt").write_text(caption, encoding="utf-8")
    return folder


def test_pictures_come_by_name_each_with_the_text_beside_it(tmp_path: Path) -> None:
    fill(tmp_path, b="second\n  line ", a="\ufefffirst")
    (tmp_path / "notes.md").write_text("not a picture", encoding="utf-8")
    (tmp_path / "C.JPG").write_bytes(b"")
    (tmp_path / "C.txt").write_text("third", encoding="utf-8")
    items = scan_folder(tmp_path)
    assert [(item.name, item.caption) for item in items] == [
        ("C.JPG", "third"),
        ("a.png", "first"),
        ("b.png", "second line"),
    ]


def test_one_caption_for_all_replaces_the_files(tmp_path: Path) -> None:
    assert {item.caption for item in scan_folder(fill(tmp_path, a="x", b=None), caption="sks dog")} == {"sks dog"}


def test_a_picture_without_caption_is_named_or_learned_without_one(tmp_path: Path) -> None:
    fill(tmp_path, a="x", b=None, c="  ")
    with pytest.raises(DatasetError, match=r"b\.png \(and 1 more\) has no caption: write it into b\.txt"):
        scan_folder(tmp_path)
    assert [item.caption for item in scan_folder(tmp_path, captions_required=False)] == ["x", "", ""]


def test_what_is_no_folder_of_pictures_is_told(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="there is no such folder beside the config, in the working directory"):
        scan_folder(Path("no/such/folder"))
    with pytest.raises(DatasetError, match=r"there is no picture in .* it needs files ending in"):
        scan_folder(tmp_path)
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(DatasetError, match="is a file; name the folder"):
        scan_folder(tmp_path / "file")


def test_a_caption_in_another_encoding_is_named(tmp_path: Path) -> None:
    fill(tmp_path, a=None)
    (tmp_path / "a.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(DatasetError, match=r"a\.txt cannot be read as UTF-8"):
        scan_folder(tmp_path)
