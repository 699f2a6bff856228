"""The workshop: what a set is made of, which pictures look the same, copies for other programs, hostile zips."""

import io
import json
import re
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from diffusion_lora.data.dedupe import groups, move_away
from diffusion_lora.data.exports import Copying, export_set
from diffusion_lora.data.folder import scan_folder
from diffusion_lora.data.imports import import_folder, import_zip
from diffusion_lora.data.masks import make_masks
from diffusion_lora.data.stats import describe, histogram, look_at
from diffusion_lora.errors import DatasetError, OutputError
from diffusion_lora.images import image_size


def noise(seed: int, size: tuple[int, int] = (96, 64)) -> Image.Image:
    """A picture unlike any other: soft blotches."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def some(tmp_path: Path) -> Path:
    """Four pictures: three captions, the fourth has none."""
    root = tmp_path / "some"
    root.mkdir()
    captions = ["a red cat, big", "a red dog", "a blue cat, big, red"]
    for number, size in enumerate([(96, 64), (64, 96), (64, 64), (64, 64)]):
        noise(number, size).save(root / f"{number}.png")
        if number < 3:
            (root / f"{number}.txt").write_text(captions[number])
    return root


def words_of(root: Path, **options):
    return describe(root, "auto", count=lambda text: len(text.split()), room=4, size_px=64, factor=8, **options)


def test_statistics_are_the_counts_one_makes_by_hand(some: Path) -> None:
    found = words_of(some)
    assert (found.pictures, found.captions) == (4, 3)
    assert found.words["red"] == 3
    assert found.words["cat"] == 2
    assert found.tags == {"a red cat": 1, "big": 2, "a red dog": 1, "a blue cat": 1, "red": 1}
    assert found.lengths == {4: 1, 3: 1, 5: 1}
    assert found.too_long == ["2.png"]
    assert sum(found.shapes.values()) == 4
    assert found.shapes[64, 64] == 2
    assert json.dumps(found.as_json())


def test_a_histogram_holds_every_caption() -> None:
    from collections import Counter

    rows = histogram(Counter({3: 2, 40: 1, 77: 4}))
    assert len(rows) <= 10
    assert sum(count for *_, count in rows) == 7
    assert histogram(Counter()) == []


def test_blurred_and_black_pictures_are_hinted_at(tmp_path: Path) -> None:
    for number in range(4, 9):
        grain = np.random.default_rng(number).integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(grain).save(tmp_path / f"{number}.png")
    sharp = Image.open(tmp_path / "4.png")
    sharp.filter(ImageFilter.GaussianBlur(3)).save(tmp_path / "soft.png")
    Image.new("RGB", (64, 64), (3, 3, 3)).save(tmp_path / "black.png")
    hints = dict(words_of(tmp_path, look=True).hints)
    assert "blurred" in hints["soft.png"]
    assert "nearly black" in hints["black.png"]
    assert "4.png" not in hints
    assert look_at(sharp).sharpness > 50 * look_at(sharp.filter(ImageFilter.GaussianBlur(3))).sharpness


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from Linux's /proc")
def test_unusual_files_are_named_and_a_bomb_costs_no_memory(tmp_path: Path, checkout: Path) -> None:
    """A bomb of 20 000 px, once unpacked, would be 1.2 GB; the limit of 500 MB holds for the whole process."""
    picture, exif = noise(1), Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    picture.convert("CMYK").save(tmp_path / "print.jpg")
    picture.save(tmp_path / "really-png.jpg", "PNG")
    Image.new("I;16", (64, 64), 9000).save(tmp_path / "deep.png")
    picture.save(tmp_path / "moving.gif", save_all=True, append_images=[noise(2)])
    picture.save(tmp_path / "plain.png")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    code = (
        "import json, re, sys\n"
        "from diffusion_lora.data.stats import describe\n"
        "from pathlib import Path\n"
        "found = describe(Path(sys.argv[1]), 'auto', count=len, room=75, size_px=64, factor=8, look=True)\n"
        # Not getrusage: its peak is inherited from the process that started this one.
        "peak = int(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1])\n"
        "print(json.dumps([found.hints, found.problems, peak]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True, cwd=checkout
    )
    hints, problems, peak_kib = json.loads(done.stdout)
    words = {"turned.jpg": "EXIF", "print.jpg": "CMYK", "really-png.jpg": "PNG", "deep.png": "8 bits",
             "moving.gif": "2 frames"}  # fmt: skip
    assert {name for name, _ in hints} == set(words)
    for name, word in words.items():
        assert any(word in text for of, text in hints if of == name), name
    assert [name for name, _ in problems] == ["bomb.png"]
    assert "20000 x 20000" in problems[0][1] or "pixels" in problems[0][1]
    assert peak_kib < 500_000


def test_of_pictures_that_look_the_same_the_best_is_kept(some: Path, tmp_path: Path) -> None:
    """The largest stays; the smaller copy and the compressed one go, with their captions, and can be put back."""
    noise(0, (192, 128)).save(some / "large.png")
    (some / "large.txt").write_text("the large one")
    noise(0, (96, 64)).save(some / "copy.jpg", quality=90)
    found = groups(some, "auto", tmp_path / "index")
    assert [group[0].name for group in found] == ["large.png"]
    assert {item.name for item in found[0][1:]} == {"0.png", "copy.jpg"}
    with pytest.raises(DatasetError, match="lies inside the set"):
        move_away(some, found, some / "others")
    assert move_away(some, found, tmp_path / "others") == 2
    assert (tmp_path / "others" / "0.txt").read_text() == "a red cat, big"
    assert not (some / "0.txt").exists()
    assert (some / "large.txt").exists()
    assert groups(some, "auto", tmp_path / "index") == []


@pytest.mark.parametrize("to", ["kohya", "imagefolder", "zip"])
def test_an_export_reads_back_as_the_same_set(some: Path, tmp_path: Path, to: str) -> None:
    out = tmp_path / ("out.zip" if to == "zip" else "out")
    assert export_set(some, out, to, "auto", "zib cat", 5, Copying()) == 4
    if to == "zip":
        import_zip(out, tmp_path / "back")
        back = tmp_path / "back"
    else:
        back = out / "5_zib cat" if to == "kohya" else out
    was, now = (scan_folder(folder, captions_required=False) for folder in (some, back))
    assert [(item.name, item.caption) for item in was] == [(item.name, item.caption) for item in now]
    assert all((some / item.name).read_bytes() == (back / item.name).read_bytes() for item in was)
    with pytest.raises(OutputError, match="is there already"):
        export_set(some, out, to, "auto", "zib cat", 5, Copying())


def test_copies_are_shrunk_cut_and_converted(some: Path, tmp_path: Path) -> None:
    export_set(some, tmp_path / "a", "kohya", "auto", "x", 1, Copying(longest_px=48, pictures="jpeg"))
    sizes = {path.name: image_size(path) for path in (tmp_path / "a" / "1_x").glob("*.jpg")}
    assert sizes == {"0.jpg": (48, 32), "1.jpg": (32, 48), "2.jpg": (48, 48), "3.jpg": (48, 48)}
    export_set(some, tmp_path / "b", "imagefolder", "auto", "x", 1, Copying(crop=(40, 24), pictures="webp"))
    assert {image_size(path) for path in (tmp_path / "b").glob("*.webp")} == {(40, 24)}


def test_an_export_that_fails_leaves_nothing(some: Path, tmp_path: Path) -> None:
    (some / "2.png").write_bytes(b"not a picture")
    with pytest.raises(DatasetError, match=re.escape("2.png cannot be read")):
        export_set(some, tmp_path / "out", "kohya", "auto", "x", 1, Copying(longest_px=32))
    assert {path.name for path in tmp_path.iterdir()} == {"some"}


def a_zip(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def png() -> bytes:
    store = io.BytesIO()
    noise(1).save(store, "PNG")
    return store.getvalue()


def link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("a.png")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("members", "word"),
    [
        ([("../evil.png", b"x")], "leads out"),
        ([("/etc/evil.png", b"x")], "leads out"),
        ([("a/../../evil.txt", b"x")], "leads out"),
        ([("C:\\evil.png", b"x")], "leads out"),
        ([(link(), b"/etc/passwd")], "is a link"),
        ([("bomb.png", bytes(20_000_000))], "unfolds to"),
        ([("A.png", png()), ("a.PNG", png())], "twice"),
        ([("readme.md", b"x")], "no picture"),
    ],
)
def test_a_hostile_zip_is_refused_and_nothing_is_written(tmp_path: Path, members: list, word: str) -> None:
    archive = a_zip(tmp_path / "x.zip", *members)
    with pytest.raises(DatasetError, match=word):
        import_zip(archive, tmp_path / "deep" / "set")
    assert [path.name for path in tmp_path.iterdir() if path.name != "deep"] == ["x.zip"]
    assert not any((tmp_path / "deep").rglob("*"))


def test_a_zip_that_lies_about_a_size_is_refused(tmp_path: Path) -> None:
    archive = a_zip(tmp_path / "x.zip", ("a.png", png() + bytes(3000)), method=zipfile.ZIP_STORED)
    data = bytearray(archive.read_bytes())
    where = data.index(b"PK\x01\x02") + 24  # the size, in the list at the end
    data[where : where + 4] = (100).to_bytes(4, "little")
    archive.write_bytes(data)
    with pytest.raises(DatasetError):
        import_zip(archive, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_zip_comes_without_its_top_folder_and_without_strangers(tmp_path: Path) -> None:
    archive = a_zip(
        tmp_path / "x.zip",
        ("my set/a.png", png()), ("my set/a.txt", b"a cat"), ("my set/run.exe", b"MZ"), ("__MACOSX/a.png", b"x"),
        ("my set/.hidden.png", b"x"),
    )  # fmt: skip
    assert import_zip(archive, tmp_path / "set") == 2
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["a.png", "a.txt"]
    (tmp_path / "broken.zip").write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(DatasetError, match="cannot be unpacked"):
        import_zip(tmp_path / "broken.zip", tmp_path / "other")


def test_a_folder_is_copied_pictures_and_captions_only(some: Path, tmp_path: Path) -> None:
    (some / "model.pkl").write_bytes(b"x")
    assert import_folder(some, tmp_path / "set") == 7
    assert not (tmp_path / "set" / "model.pkl").exists()
    with pytest.raises(OutputError, match="is there already"):
        import_folder(some, tmp_path / "set")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no picture"):
        import_folder(tmp_path / "empty", tmp_path / "x")


def test_masks_without_rembg_are_refused_in_words(some: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rembg", None)  # as if it were not installed, wherever this runs
    with pytest.raises(DatasetError, match="rembg, which is not installed"):
        make_masks(some, "auto")
