"""The autoencoder: another one in place of the base's own, and half precision that fails."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusion_lora.errors import BaseModelError
from diffusion_lora.families.family import Model, decode, encode_image, load_base
from diffusion_lora.families.vae import vae_dtype
from diffusion_lora.generate.engine import Engine
from diffusion_lora.generate.request import Request
from tests.families.miniatures import original_vae_name


def cpu(base: Path, vae: Path | str | None = None) -> Model:
    return load_base(str(base), device="cpu", vae=None if vae is None else str(vae))


@pytest.fixture
def other(miniature: Callable[[str], Path], tmp_path: Path) -> Path:
    """The folder of an autoencoder that gives other latents: the sign of its decoder's input is turned."""
    folder = Path(shutil.copytree(miniature("sd15") / "vae", tmp_path / "other-vae"))
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["decoder.conv_in.weight"] = -tensors["decoder.conv_in.weight"]
    save_file(tensors, file, {"format": "pt"})
    return folder


def spelled(folder: Path, form: str) -> str:
    """The same autoencoder in one of the ways people have it; what to say to mean it."""
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    path = folder.parent / "vae.safetensors"
    if form == "folder":
        return str(folder)
    if form == "inside a base":
        shutil.copytree(folder, folder.parent / "base" / "vae")
        return str(folder.parent / "base")
    if form == "hub":
        root = folder.parent / "hub/models--someone--vae/"
        shutil.copytree(folder, root / "snapshots/0123456789abcdef0123456789abcdef01234567")
        (root / "refs").mkdir()
        (root / "refs/main").write_text("0123456789abcdef0123456789abcdef01234567")
        return "someone/vae"
    if form == "original names":
        tensors = {original_vae_name(name): tensor for name, tensor in tensors.items()}
        tensors["loss.logvar"] = torch.zeros(1)  # of its training
    if form == "with a prefix":
        tensors = {f"first_stage_model.{original_vae_name(name)}": tensor for name, tensor in tensors.items()}
    save_file(tensors, path)
    return str(path)


@pytest.mark.parametrize(
    "form", ["folder", "inside a base", "hub", "diffusers' names", "original names", "with a prefix"]
)
def test_another_autoencoder_takes_the_place_of_the_own(
    form: str, miniature: Callable[[str], Path], other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(other.parent / "hub"))
    own, changed = cpu(miniature("sd15")), cpu(miniature("sd15"), spelled(other, form))
    weight = "decoder.conv_in.weight"
    assert torch.equal(changed.vae.state_dict()[weight], -own.vae.state_dict()[weight])
    assert changed.vae.config.scaling_factor == own.vae.config.scaling_factor == 0.18215  # type: ignore[union-attr]
    assert changed.weights_hash == own.weights_hash, "the base is the same one"


def test_a_single_file_takes_another_autoencoder_too(checkpoint: Callable[[str], Path], other: Path) -> None:
    weight = "decoder.conv_in.weight"
    own, changed = cpu(checkpoint("sd15")), cpu(checkpoint("sd15"), other)
    assert torch.equal(changed.vae.state_dict()[weight], -own.vae.state_dict()[weight])


def test_an_autoencoder_that_does_not_fit_is_refused(
    miniature: Callable[[str], Path], other: Path, tmp_path: Path
) -> None:
    with pytest.raises(BaseModelError, match=r"the VAE 'nowhere' was not found; give a \.safetensors file"):
        cpu(miniature("sd15"), "nowhere")
    with pytest.raises(BaseModelError, match=r"is not complete: config\.json and \*\.safetensors must lie in"):
        cpu(miniature("sd15"), tmp_path)
    with pytest.raises(BaseModelError, match=r"scales latents by 0\.13025 and the base .* by 0\.18215"):
        cpu(miniature("sd15"), miniature("sdxl") / "vae")
    save_file({"some.thing": torch.zeros(1)}, tmp_path / "thing.safetensors")
    with pytest.raises(BaseModelError, match="holds no autoencoder of Stable Diffusion"):
        cpu(miniature("sd15"), tmp_path / "thing.safetensors")
    (tmp_path / "thing.ckpt").write_bytes(b"PK\x03\x04")
    with pytest.raises(BaseModelError, match="is a pickle"):
        cpu(miniature("sd15"), tmp_path / "thing.ckpt")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"latents_mean": [0, 0, 0, 0], "latents_std": [1, 1, 1, 1]}))
    with pytest.raises(BaseModelError, match="scales every channel by itself"):
        cpu(miniature("sd15"), other)


def test_half_precision_that_gives_no_numbers_is_mended_once_and_told(miniature: Callable[[str], Path]) -> None:
    """XL's autoencoder overflows in fp16 and then draws black: here one whose first layers are made to."""
    model = cpu(miniature("sdxl"))
    with torch.no_grad():
        for name in ("encoder", "decoder"):
            model.vae.get_submodule(name).conv_in.weight.mul_(2e5)  # type: ignore[operator, union-attr]
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    x_BCHW = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    pictures, moments = decode(model, latents), encode_image(model, x_BCHW)
    calls = ((lambda: decode(model, latents), pictures), (lambda: encode_image(model, x_BCHW)[0], moments[0]))
    for call, expected in calls:
        model.vae.half()
        model.notes.clear()
        for _ in range(2):
            torch.testing.assert_close(call(), expected, rtol=2e-2, atol=2e-2)
        assert model.notes == ["the autoencoder of sdxl gave no numbers in float16: it works in fp32 from here on"]
        assert next(model.vae.parameters()).dtype == torch.float32


def test_where_memory_does_not_suffice_it_works_in_tiles(
    miniature: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that holds 32 latents along a side and no more: torch's own error says so."""
    model = cpu(miniature("sd15"))
    latents = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    whole, decoder = decode(model, latents), model.vae.decoder.forward  # type: ignore[union-attr, operator]

    def narrow(sample: torch.Tensor, *rest: object) -> torch.Tensor:
        if sample.shape[-1] > 32:
            raise torch.OutOfMemoryError("no memory")
        return decoder(sample, *rest)

    monkeypatch.setattr(model.vae.decoder, "forward", narrow)
    for _ in range(2):
        tiled = decode(model, latents)
        assert tiled.shape == whole.shape
        assert (tiled - whole).abs().mean() < 0.05
    assert len(model.notes) == 1
    assert "it works in tiles" in model.notes[0]
    monkeypatch.setattr(model.vae.decoder, "forward", lambda *_: narrow(torch.empty(33)))
    with pytest.raises(torch.OutOfMemoryError):
        decode(model, latents)


def test_what_happens_while_drawing_is_told_with_the_picture(miniature: Callable[[str], Path]) -> None:
    model = cpu(miniature("sd15"))
    engine = Engine(model)
    with torch.no_grad():
        model.vae.get_submodule("decoder").conv_in.weight.mul_(2e5)  # type: ignore[operator, union-attr]
    model.vae.half()
    first, second = (engine.draw([Request("a cat", steps=1)])[0].notes for _ in range(2))
    assert [note for note in first if "works in fp32 from here on" in note] == model.notes
    assert not [note for note in second if "autoencoder" in note]


def test_only_an_autoencoder_that_stands_it_is_used_in_half_precision(miniature: Callable[[str], Path]) -> None:
    vae = cpu(miniature("sdxl")).vae
    cuda, half = torch.device("cuda"), torch.float16
    assert vae_dtype(vae, cuda, half) == torch.float32
    vae.register_to_config(force_upcast=False)  # type: ignore[operator]
    assert vae_dtype(vae, cuda, half) == half
    assert vae_dtype(vae, torch.device("cpu"), half) == torch.float32




def test_pictures_tell_of_another_autoencoder_and_are_refused_by_any_but_it(
    miniature: Callable[[str], Path], other: Path
) -> None:
    """A picture read back would come out in other colours, and nothing would say why."""
    from diffusion_lora.errors import PromptError
    from diffusion_lora.generate.engine import Engine
    from diffusion_lora.generate.infotext import from_json, parse_infotext, to_json, write_infotext
    from diffusion_lora.generate.request import Request

    own, changed = Engine(cpu(miniature("sd15"))), Engine(cpu(miniature("sd15"), other))
    drawn = changed.resolved(Request("a cat", steps=1))
    assert (drawn.vae, drawn.vae_hash) == (str(other), changed.model.vae_hash)
    assert from_json(to_json(drawn)) == drawn
    told = parse_infotext(write_infotext(drawn)).parameters
    assert (told["VAE"], told["VAE hash"]) == (other.name, drawn.vae_hash[:10])
    assert changed.resolved(drawn) == drawn
    with pytest.raises(PromptError, match=r"for the VAE .*other-vae.* the one of its base"):
        own.resolved(drawn)
    assert "VAE" not in parse_infotext(write_infotext(own.resolved(Request("a cat")))).parameters
