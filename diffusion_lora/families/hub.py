"""Bases from the hub, by the hub's own cache: what lies there complete is used as it lies, the rest is fetched once.

A base does not change under its user, and everything works again offline. Only the files that are needed are fetched:
configs, tokenizers and safetensors, never pickles. Tokens are the hub library's own business; none is read or shown.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lora.errors import BaseModelError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WEIGHTY = ("unet", "vae", "text_encoder", "text_encoder_2")
_SMALL_FILES = re.compile(
    r"model_index\.json|(unet|vae|text_encoder(_2)?|scheduler)/[\w.]+\.json|tokenizer(_2)?/[\w.]+\.(json|txt)"
)
_DATASET_FILES = ("*.jpg", "*.jpeg", "*.png", "*.webp", "*.txt", "*.caption", "*metadata.jsonl", "*metadata.csv")
_SLACK_BYTES = 512 * 1024**2


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/name."""
    return _HUB_ID.fullmatch(name) is not None


def snapshot(
    repo: str,
    revision: str | None,
    *,
    known: str,
    check: Callable[[Path, str], object],
    missing: Callable[[Path], str | None],
) -> Path:
    """The folder of a diffusers repository: from the cache if `missing` finds nothing missing, else fetched.

    `check` is shown a folder with `model_index.json` before gigabytes come. Raises BaseModelError.
    """
    with _told(repo, revision, known):
        cached = _cached(repo, revision)
        return cached if cached and missing(cached) is None else _fetch(repo, revision, known, check)


def hub_file(
    repo: str, name: str, revision: str | None = None, *, known: str = "", what: str = "base"
) -> Path:
    """One file of a repository, from the cache or fetched; `what` it is called in a sentence. Raises BaseModelError."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    with _told(repo, revision, known or "say an id such as owner/name", what):
        try:
            return Path(hf_hub_download(repo, name, revision=revision))
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError as error:
            raise BaseModelError(f"{repo} on the hub has no {name}") from error


def cached_file(repo: str, name: str) -> Path | None:
    """One file of a repository if the cache holds it; the network is not asked."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, name)
    return Path(found) if isinstance(found, str) else None


def dataset_folder(repo: str, revision: str | None = None) -> Path:
    """The pictures and captions of a data set of the hub, fetched into its cache. Raises BaseModelError."""
    from huggingface_hub import snapshot_download

    with _told(repo, revision, "say an id such as owner/name", "data set"):
        return Path(
            snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=list(_DATASET_FILES))
        )


def needed_files(siblings: "list[RepoSibling]") -> dict[str, int]:
    """Of a repository's files those a Stable Diffusion base needs, with their sizes in bytes.

    The plain weights are taken where there are any, the fp16 variant otherwise.
    """
    sizes = {file.rfilename: file.size or 0 for file in siblings}
    files = {name: size for name, size in sizes.items() if _SMALL_FILES.fullmatch(name)}
    for component in _WEIGHTY:
        stem = "model" if component.startswith("text_encoder") else "diffusion_pytorch_model"
        for dotted in ("", ".fp16"):
            pattern = re.compile(rf"{component}/{stem}{re.escape(dotted)}(-\d+-of-\d+)?\.safetensors")
            if weights := {name: size for name, size in sizes.items() if pattern.fullmatch(name)}:
                whole = f"{component}/{stem}{dotted}.safetensors"
                files |= {whole: weights[whole]} if whole in weights else weights
                break
    return files


@contextmanager
def _told(repo: str, revision: str | None, known: str, what: str = "base") -> Iterator[None]:
    """What the hub and its library raise, as one sentence each."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f"the {what} {repo}" + (f" at {revision}" if revision else "")
    try:
        yield
    except GatedRepoError as error:
        raise BaseModelError(
            f"{at} is gated: accept its terms on its hub page, then log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise BaseModelError(
            f"{at} is not on the hub, or is private (then log in with `hf auth login`); {known}"
        ) from error
    except HFValidationError as error:
        raise BaseModelError(f"the {what} {repo!r} is neither a folder nor a hub id; {known}") from error
    except RevisionNotFoundError as error:
        raise BaseModelError(f"the {what} {repo} has no revision {revision!r} on the hub") from error
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


def _fetch(repo: str, revision: str | None, known: str, check: Callable[[Path, str], object]) -> Path:
    """Download what is needed, after checking that the disk holds it. An interrupted download goes on where it was."""
    from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download, try_to_load_from_cache

    info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    files = needed_files(info.siblings or [])
    if "model_index.json" not in files:
        raise BaseModelError(f"the base {repo} on the hub is no diffusers model: it has no model_index.json; {known}")
    # Gigabytes come only after the few bytes that tell whether they would be of use.
    check(Path(hf_hub_download(repo, "model_index.json", revision=revision)).parent, repo)
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


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
