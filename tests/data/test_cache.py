"""Latents and encoded captions: the right ones for the right picture, kept or made anew with the same numbers."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from diffusion_lora.data.cache import Encoded, Keep, LatentCache, TextCache
from diffusion_lora.data.sources import Item
from diffusion_lora.data.store import TensorStore
from diffusion_lora.data.views import Shown, View
from diffusion_lora.errors import DatasetError

FACTOR = 4


class Autoencoder:
    """Stands where a real one does: a quarter of the resolution, the spread a tenth of the mean's size."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        mean = torch.nn.functional.avg_pool2d(x_BCHW, FACTOR)
        return mean, mean.abs() / 10


class TextEncoder:
    """One vector a text, of its letters, and which texts came together."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        self.batches.append(list(texts))
        return {"hidden": torch.tensor([[float(ord(letter)) for letter in text.ljust(4)[:4]] for text in texts])}


def cached(encode: Callable[[Tensor], tuple[Tensor, Tensor]], keep: Keep = "ram", folder: Path = Path()) -> LatentCache:
    return LatentCache(encode, encoder="vae", factor=FACTOR, keep=keep, store=TensorStore(folder))


@pytest.fixture
def shown(tmp_path: Path) -> list[Shown]:
    found = []
    for i, colour in enumerate(("black", "white", "red")):
        picture = Image.new("RGB", (16, 16), colour)
        picture.paste((0, 0, 255), (0, 0, 8, 16))  # blue on the left
        picture.save(tmp_path / f"{i}.png")
        found.append(Shown(Item(tmp_path / f"{i}.png"), colour, "", View((16, 16))))
    return found


def turned(shown: Shown, **changes: object) -> Shown:
    return Shown(shown.item, shown.pixels, shown.mask, View(**{"size": (16, 16), **changes}))  # type: ignore[arg-type]


def test_latents_are_those_of_their_picture_mirrored_where_asked(shown: list[Shown]) -> None:
    cache = cached(Autoencoder())
    right = torch.stack([cache.of(each).mean[:, 0, -1] for each in shown])
    assert torch.allclose(right, torch.tensor([[-1.0, -1, -1], [1, 1, 1], [1, -1, -1]]))
    assert torch.equal(cache.of(turned(shown[1], mirrored=True)).mean, cache.of(shown[1]).mean.flip(-1))


def test_a_draw_is_the_mean_plus_the_spread_times_noise(shown: list[Shown]) -> None:
    cache = cached(Autoencoder())
    drawn, mask = cache.sample([shown[2], shown[0]], torch.Generator().manual_seed(5))
    noise = torch.randn(drawn.shape, generator=torch.Generator().manual_seed(5))
    expected = torch.stack([cache.of(shown[2]).mean, cache.of(shown[0]).mean])
    assert torch.allclose(drawn, expected + expected.abs() / 10 * noise)
    assert mask is None


def test_each_view_is_encoded_once_and_never_again_by_the_next_run(shown: list[Shown], tmp_path: Path) -> None:
    keep: Keep
    for keep, first, second, third in (("ram", 3, 3, 6), ("disk", 3, 3, 3), ("off", 6, 9, 12)):
        encode = Autoencoder()
        cache = cached(encode, keep, tmp_path / keep)
        cache.fill([*shown, shown[0]])
        for each in shown * 2 if keep == "off" else shown:
            cache.of(each)
        assert encode.calls == first
        for each in shown:
            cache.of(each)
        assert encode.calls == second
        again = cached(encode, keep, tmp_path / keep)
        for each in shown:
            again.of(each)
        assert encode.calls == third


def test_what_latents_are_made_from_decides_whether_they_are_the_same(shown: list[Shown], tmp_path: Path) -> None:
    """Latents of other pixels, another crop or another autoencoder would teach a picture that is not there."""
    encode = Autoencoder()
    cached(encode, "disk", tmp_path).fill([shown[0]])
    others = [
        Shown(shown[0].item, "other pixels", "", shown[0].view),
        Shown(shown[0].item, shown[0].pixels, "another mask", shown[0].view),
        *(turned(shown[0], **change) for change in ({"mirrored": True}, {"crop": (0.0, 0.5)}, {"size": (16, 8)})),
    ]
    cached(encode, "disk", tmp_path).fill(others)
    LatentCache(encode, encoder="another", factor=FACTOR, keep="disk", store=TensorStore(tmp_path)).of(shown[0])
    assert encode.calls == 1 + len(others) + 1


def test_a_damaged_entry_is_made_again(shown: list[Shown], tmp_path: Path) -> None:
    encode = Autoencoder()
    cached(encode, "disk", tmp_path).fill(shown)
    whole = cached(encode, "disk", tmp_path).of(shown[1])
    files = sorted(tmp_path.rglob("*.tensors"))
    assert len(files) == 3
    for file, damage in zip(files, (lambda data: data[:50], lambda data: b"", lambda data: data[:-40] + bytes(40))):
        file.write_bytes(damage(file.read_bytes()))
    again = cached(encode, "disk", tmp_path)
    again.fill(shown)
    assert encode.calls == 6
    assert torch.equal(again.of(shown[1]).mean, whole.mean)
    cached(encode, "disk", tmp_path).fill(shown)
    assert encode.calls == 6


def test_what_does_not_fit_into_memory_is_read_when_it_is_drawn(shown: list[Shown], tmp_path: Path) -> None:
    encode = Autoencoder()
    cached(encode, "disk", tmp_path).fill(shown)
    large, small = (
        LatentCache(encode, encoder="vae", factor=FACTOR, keep="disk", store=TensorStore(tmp_path), memory_bytes=room)
        for room in (10_000, 400)  # all of them, one of them
    )
    for cache in (large, small):
        cache.fill(shown)
    drawn = [cache.sample(shown, torch.Generator().manual_seed(0))[0] for cache in (large, small)]
    assert torch.equal(*drawn)
    assert encode.calls == 3
    for file in tmp_path.rglob("*.tensors"):
        file.unlink()
    large.sample(shown, torch.Generator())
    assert encode.calls == 3
    small.sample(shown, torch.Generator())
    assert encode.calls == 5


def test_a_mask_counts_as_much_as_there_is_of_it_and_its_floor_elsewhere(shown: list[Shown], tmp_path: Path) -> None:
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (0, 0, 6, 16))  # one latent and a half
    mask.save(tmp_path / "0.mask.png")
    item = Item(shown[0].item.path, mask=tmp_path / "0.mask.png")
    cache = LatentCache(Autoencoder(), encoder="", factor=FACTOR, mask_floor=0.1)
    masked = Shown(item, "black", "hash", View((16, 16)))
    flipped = Shown(item, "black", "hash", View((16, 16), mirrored=True))
    _, counts = cache.sample([masked, flipped, shown[1]], torch.Generator())
    assert counts is not None
    assert counts.shape == (3, 1, 4, 4)
    wanted = torch.tensor([[1, 0.5, 0.1, 0.1], [0.1, 0.1, 0.5, 1], [1, 1, 1, 1]])
    assert torch.allclose(counts[:, 0, 0], wanted)


def test_latents_that_are_not_finite_name_their_picture(shown: list[Shown]) -> None:
    """A half-precision autoencoder that overflows would otherwise teach NaN."""
    cache = cached(lambda x_BCHW: (torch.where(x_BCHW.mean() > 0.1, torch.inf, x_BCHW), x_BCHW))
    cache.of(shown[0])
    with pytest.raises(DatasetError, match=r"not finite for 1\.png"):
        cache.fill(shown)


def test_texts_are_encoded_once_whatever_order_they_come_in(tmp_path: Path) -> None:
    encode = TextEncoder()
    texts = [f"a {number}" for number in range(11)]
    cache = TextCache(encode, encoder="te", keep="disk", store=TensorStore(tmp_path))
    cache.fill([*texts, "a 3", ""])
    again = TextCache(encode, encoder="te", keep="disk", store=TensorStore(tmp_path))
    drawn = again(["a 7", "", "a 7", "a 10"])["hidden"]
    assert [len(batch) for batch in encode.batches] == [8, 8]
    assert torch.equal(drawn, TextEncoder()(["a 7", "", "a 7", "a 10"])["hidden"])
    TextCache(encode, encoder="another", keep="disk", store=TensorStore(tmp_path))(["a 7"])
    assert len(encode.batches) == 3


def test_texts_that_are_not_kept_have_the_same_rows() -> None:
    kept, made = (TextCache(TextEncoder(), encoder="", keep=keep) for keep in ("ram", "off"))
    for cache in (kept, made):
        cache.fill(["a", "bb", "ccc"])
    assert torch.equal(kept(["ccc", "a", "new"])["hidden"], made(["ccc", "a", "new"])["hidden"])


def test_an_interrupted_pass_ends_with_the_entries_of_one_that_was_not(shown: list[Shown], tmp_path: Path) -> None:
    class Stopped(Exception):  # noqa: N818
        pass

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise Stopped

    encode = Autoencoder()
    with pytest.raises(Stopped):
        cached(encode, "disk", tmp_path / "cut").fill(shown, stop)
    resumed = cached(encode, "disk", tmp_path / "cut")
    resumed.fill(shown)
    assert encode.calls == 3
    whole = cached(Autoencoder(), "disk", tmp_path / "whole")
    for each in shown:
        ours, theirs = resumed.of(each), whole.of(each)
        assert isinstance(ours, Encoded)
        assert torch.equal(ours.mean, theirs.mean)
        assert torch.equal(ours.std, theirs.std)
