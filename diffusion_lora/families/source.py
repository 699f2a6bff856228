"""Find what a base is loaded from: `pocket`, a diffusers folder, a single checkpoint file, or a hub id.

Looks at names and small files only; what lies on the hub is `hub`'s business, what a checkpoint holds `original`'s.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from diffusion_lora.adopted import model_named
from diffusion_lora.errors import BaseModelError
from diffusion_lora.families.hub import hub_file, is_hub_id, snapshot
from diffusion_lora.families.pocket.words import BASE_FOLDER
from diffusion_lora.layouts.layout import Architecture
from diffusion_lora.workspace import Workspace

PIPELINES: dict[str, Architecture] = {"StableDiffusionPipeline": "sd", "StableDiffusionXLPipeline": "sdxl"}
"""The pipelines, in diffusers' words, whose folders are served."""

COMPONENTS: dict[Architecture, tuple[str, ...]] = {
    "sd": ("unet", "vae", "text_encoder"),
    "sdxl": ("unet", "vae", "text_encoder", "text_encoder_2"),
}
TOKENIZERS: dict[Architecture, tuple[str, ...]] = {"sd": ("tokenizer",), "sdxl": ("tokenizer", "tokenizer_2")}
KNOWN = (
    "say pocket, a diffusers folder (with model_index.json inside), a .safetensors checkpoint, "
    "or a hub id such as owner/name"
)
_SERVED = "this version serves pocket, Stable Diffusion 1, 2 and XL"
_REASONS = {
    "StableDiffusionInpaintPipeline": "an inpainting model, whose UNet also reads a mask",
    "StableDiffusionXLInpaintPipeline": "an inpainting model, whose UNet also reads a mask",
    "StableDiffusionXLImg2ImgPipeline": "a refiner, which does not draw by itself",
    "StableDiffusionDepth2ImgPipeline": "a depth model, whose UNet also reads a depth map",
    "StableDiffusionInstructPix2PixPipeline": "an editing model, whose UNet also reads the picture to edit",
    "StableDiffusionXLInstructPix2PixPipeline": "an editing model, whose UNet also reads the picture to edit",
}


@dataclass(frozen=True)
class Source:
    """Where a base lies and how it is called. `file` is the checkpoint, if it is one, and `folder` where that lies.

    `zero_empty_prompt`: to this base an empty prompt is zeros, not the encoding of an empty text.
    """

    asked: str
    name: str
    folder: Path
    architecture: Architecture = "sd"
    file: Path | None = None
    zero_empty_prompt: bool = False


def locate(base: str, revision: str | None = None) -> Source:
    """Find `base`: a path, the name of one in the default workspace or what it adopted, or a hub id, fetched when the
    cache lacks it.

    Raises BaseModelError: nothing of this name, a folder that is no diffusers model, the hub out of reach or refusing.
    """
    if base == "pocket":
        return _checked(base, "pocket", BASE_FOLDER)
    path = Path(base).expanduser()
    if path.is_dir():
        return _checked(base, path.resolve().name, path)
    if path.is_file():
        return Source(base, path.stem, path.absolute().parent, file=path)
    workspace = Workspace.at()
    if workspace.root.is_dir() and (model := model_named(workspace, "bases", base)) is not None:
        return locate(str(model.path))
    if is_hub_id(base):
        folder = snapshot(base, revision, known=KNOWN, check=_architecture, missing=_missing)
        return _checked(base, base.rpartition("/")[2], folder)
    raise BaseModelError(f"the base {base!r} was not found; {KNOWN}")


def locate_vae(vae: str, revision: str | None = None) -> Path:
    """The single file, or the folder with `config.json`, that an autoencoder lies in: by path or by hub id.

    Raises BaseModelError.
    """
    path = Path(vae).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        if not is_hub_id(vae):
            raise BaseModelError(
                f"the VAE {vae!r} was not found; give a .safetensors file, a diffusers folder or a hub id"
            )
        path = hub_file(vae, "config.json", revision).parent
        hub_file(vae, "diffusion_pytorch_model.safetensors", revision)
    for folder in (path, path / "vae"):
        place = folder.resolve()
        weights = [weights_file(place.parent, place.name, variant) for variant in (None, "fp16")]
        if (folder / "config.json").is_file() and any(weights):
            return folder
    raise BaseModelError(f"the VAE {vae} is not complete: config.json and *.safetensors must lie in {path} or its vae/")


def weights_file(folder: Path, component: str, variant: str | None = None) -> Path | None:
    """The safetensors file of a component (or the index of its shards), None when there is none."""
    stem = "model" if component.startswith("text_encoder") else "diffusion_pytorch_model"
    dotted = f".{variant}" if variant else ""
    for name in (f"{stem}{dotted}.safetensors", f"{stem}.safetensors.index{dotted}.json"):
        if (path := folder / component / name).is_file():
            return path
    return None


def read_index(model_index: Path, base: str) -> dict[str, object]:
    """The entries of a `model_index.json`. Raises BaseModelError."""
    if not model_index.is_file():
        raise BaseModelError(f"the base {base} is no diffusers model: {model_index} is missing; {KNOWN}")
    try:
        index = dict(json.loads(model_index.read_text(encoding="utf-8")))
        index["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BaseModelError(f"the base {base}: {model_index} cannot be read ({error!r})") from error
    return index


def _checked(base: str, name: str, folder: Path) -> Source:
    architecture = _architecture(folder, base)
    if missing := _missing(folder):
        raise BaseModelError(f"the base {base} is not complete: {folder / missing} is missing; {KNOWN}")
    index = read_index(folder / "model_index.json", base)
    zero = architecture == "sdxl" and index.get("force_zeros_for_empty_prompt", True) is not False
    return Source(base, name, folder, architecture, zero_empty_prompt=zero)


def _architecture(folder: Path, base: str) -> Architecture:
    """Which parts the folder's pipeline has. Raises BaseModelError for another kind of model."""
    pipeline = str(read_index(folder / "model_index.json", base)["_class_name"])
    if pipeline in PIPELINES:
        return PIPELINES[pipeline]
    reason = f", {_REASONS[pipeline]}" if pipeline in _REASONS else ""
    raise BaseModelError(f"the base {base} is a {pipeline}{reason}; {_SERVED} ({', '.join(PIPELINES)})")


def _missing(folder: Path) -> str | None:
    """The first file that the folder of a base needs and this one lacks."""
    if not (folder / "model_index.json").is_file():
        return "model_index.json"
    architecture = _architecture(folder, str(folder))
    needed = ["scheduler/scheduler_config.json"]
    needed += [f"{tokenizer}/tokenizer_config.json" for tokenizer in TOKENIZERS[architecture]]
    needed += [f"{component}/config.json" for component in COMPONENTS[architecture]]
    for name in needed:
        if not (folder / name).is_file():
            return name
    for component in COMPONENTS[architecture]:
        weights = weights_file(folder, component) or weights_file(folder, component, "fp16")
        if weights is None:
            return f"{component}/*.safetensors (pickled .bin weights are not opened)"
        if weights.suffix == ".json":
            for shard in _shards(weights):
                if not (folder / component / shard).is_file():
                    return f"{component}/{shard}"
    return None


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise BaseModelError(f"{index} is not a readable index of weight files ({error!r})") from error
