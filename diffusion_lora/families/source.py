"""Find the folder of a base: `pocket`, a diffusers folder, or a hub id, from the hub's cache or fetched into it.

A hub id that lies complete in the cache is used as it lies, without asking the network: a base does not change under
its user, and everything works again offline. Only the files that are needed are fetched: configs, tokenizer and
safetensors, never pickles. Tokens are the hub library's own business; none is read or shown here.
"""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lora.errors import BaseModelError
from diffusion_lora.families.pocket.words import BASE_FOLDER

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

COMPONENTS = ("unet", "vae", "text_encoder")
SERVED_PIPELINE = "StableDiffusionPipeline"
KNOWN = "say pocket, a diffusers folder (with model_index.json inside), or a hub id such as owner/name"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SMALL_FILES = re.compile(
    r"model_index\.json|(unet|vae|text_encoder|scheduler)/[\w.]+\.json|tokenizer/[\w.]+\.(json|txt)"
)
_SLACK_BYTES = 512 * 1024**2


@dataclass(frozen=True)
class Source:
    """Where a base lies and how it is called."""

    asked: str
    name: str
    folder: Path


def locate(base: str, revision: str | None = None) -> Source:
    """Find `base`, fetching it from the hub when it is a hub id that the cache lacks.

    Raises BaseModelError: nothing of this name, a folder that is no diffusers model, the hub out of reach or refusing.
    """
    if base == "pocket":
        return Source(base, "pocket", _checked(BASE_FOLDER, base))
    path = Path(base).expanduser()
    if path.is_dir():
        return Source(base, path.resolve().name, _checked(path, base))
    if path.is_file():
        raise BaseModelError(f"the base {base} is a single file; {KNOWN}")
    if _HUB_ID.fullmatch(base):
        return Source(base, base.rpartition("/")[2], _checked(_hub_folder(base, revision), base))
    raise BaseModelError(f"the base {base!r} was not found; {KNOWN}")


def weights_file(folder: Path, component: str, variant: str | None = None) -> Path | None:
    """The safetensors file of a component (or the index of its shards), None when there is none."""
    stem = "model" if component.startswith("text_encoder") else "diffusion_pytorch_model"
    dotted = f".{variant}" if variant else ""
    for name in (f"{stem}{dotted}.safetensors", f"{stem}.safetensors.index{dotted}.json"):
        if (path := folder / component / name).is_file():
            return path
    return None


def _checked(folder: Path, base: str) -> Path:
    _refuse_other_architectures(folder / "model_index.json", base)
    if missing := _missing(folder):
        raise BaseModelError(f"the base {base} is not complete: {folder / missing} is missing; {KNOWN}")
    return folder


def _refuse_other_architectures(model_index: Path, base: str) -> None:
    if not model_index.is_file():
        raise BaseModelError(f"the base {base} is no diffusers model: {model_index} is missing; {KNOWN}")
    try:
        pipeline = json.loads(model_index.read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BaseModelError(f"the base {base}: {model_index} cannot be read ({error!r})") from error
    if pipeline != SERVED_PIPELINE:
        raise BaseModelError(
            f"the base {base} is a {pipeline}; this version serves pocket, Stable Diffusion 1 and 2 ({SERVED_PIPELINE})"
        )


def _missing(folder: Path) -> str | None:
    """The first file a Stable Diffusion folder needs and this one lacks."""
    for name in ("model_index.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"):
        if not (folder / name).is_file():
            return name
    for component in COMPONENTS:
        if not (folder / component / "config.json").is_file():
            return f"{component}/config.json"
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


def _hub_folder(repo: str, revision: str | None) -> Path:
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f"the base {repo}" + (f" at {revision}" if revision else "")
    try:
        cached = _cached(repo, revision)
        return cached if cached and _missing(cached) is None else _fetch(repo, revision)
    except GatedRepoError as error:
        raise BaseModelError(
            f"{at} is gated: accept its terms on its hub page, then log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise BaseModelError(
            f"{at} is not on the hub, or is private (then log in with `hf auth login`); {KNOWN}"
        ) from error
    except HFValidationError as error:
        raise BaseModelError(f"the base {repo!r} is neither a folder nor a hub id; {KNOWN}") from error
    except RevisionNotFoundError as error:
        raise BaseModelError(f"the base {repo} has no revision {revision!r} on the hub") from error
    except _network_errors() as error:
        raise BaseModelError(
            f"{at} is not in the hub's cache on this machine, and the hub cannot be reached ({_first_line(error)}); "
            "connect once to fetch it, or give a diffusers folder"
        ) from error


def _network_errors() -> tuple[type[Exception], ...]:
    """Without a network the hub's HTTP library raises its own errors; their root is a base of the hub's error."""
    from huggingface_hub.errors import HfHubHTTPError

    return OSError, *(kind for kind in HfHubHTTPError.__bases__ if issubclass(kind, Exception))


def _cached(repo: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=["model_index.json"])
        )
    except LocalEntryNotFoundError:
        return None


def _fetch(repo: str, revision: str | None) -> Path:
    """Download what is needed, after checking that the disk holds it. An interrupted download goes on where it was."""
    from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download, try_to_load_from_cache

    info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    files = needed_files(info.siblings or [])
    if "model_index.json" not in files:
        raise BaseModelError(f"the base {repo} on the hub is no diffusers model: it has no model_index.json; {KNOWN}")
    # Gigabytes come only after the few bytes that tell whether they would be of use.
    _refuse_other_architectures(Path(hf_hub_download(repo, "model_index.json", revision=revision)), repo)
    wanted = sum(
        size
        for name, size in files.items()
        if not isinstance(try_to_load_from_cache(repo, name, revision=info.sha), str)
    )
    cache_dir = Path(constants.HF_HUB_CACHE).expanduser()
    free = shutil.disk_usage(next(place for place in (cache_dir, *cache_dir.parents) if place.exists())).free
    if wanted + _SLACK_BYTES > free:
        raise BaseModelError(
            f"the base {repo} needs {wanted / 1e9:.1f} GB in {cache_dir}, where {free / 1e9:.1f} GB are free; "
            "make room, or set HF_HOME to a larger disk"
        )
    return Path(snapshot_download(repo, revision=revision, allow_patterns=sorted(files)))


def needed_files(siblings: "list[RepoSibling]") -> dict[str, int]:
    """Of a repository's files those a Stable Diffusion base needs, with their sizes in bytes.

    The plain weights are taken where there are any, the fp16 variant otherwise.
    """
    sizes = {file.rfilename: file.size or 0 for file in siblings}
    files = {name: size for name, size in sizes.items() if _SMALL_FILES.fullmatch(name)}
    for component in COMPONENTS:
        stem = "model" if component == "text_encoder" else "diffusion_pytorch_model"
        for dotted in ("", ".fp16"):
            pattern = re.compile(rf"{component}/{stem}{re.escape(dotted)}(-\d+-of-\d+)?\.safetensors")
            if weights := {name: size for name, size in sizes.items() if pattern.fullmatch(name)}:
                whole = f"{component}/{stem}{dotted}.safetensors"
                files |= {whole: weights[whole]} if whole in weights else weights
                break
    return files


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
