"""The adapter files that requests name: read once, checked, and put into the model while they are needed.

An adapter that no request at hand names is taken out of the model again, so that it costs nothing; its tensors stay in
memory, so that it comes back at once. A file that changes on disk is read anew.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from diffusion_lora.errors import AdapterFileError
from diffusion_lora.families.family import Model
from diffusion_lora.generate.request import LoraUse, Request
from diffusion_lora.lora.adapter import Adapter, read_adapter
from diffusion_lora.lora.bank import AdapterBank
from diffusion_lora.lora.header import tensor_hash

Mix = dict[str, float]


@dataclass(frozen=True)
class _File:
    """What a path held when it was last read; `stamp` is its time of change and size."""

    stamp: tuple[int, int]
    sha: str
    adapter: Adapter


@dataclass(frozen=True)
class _Loaded:
    """An adapter in the bank: its name there, whether it has a text encoder part, what the bank said of it."""

    name: str
    acts_on_text: bool
    notes: tuple[str, ...]


class Shelf:
    """The adapters of one model's requests. Names in the bank are the requests' own, made unique."""

    def __init__(self, model: Model) -> None:
        self._bank = AdapterBank(model.components, model.layout.title, base_hash=model.weights_hash)
        self._files: dict[Path, _File] = {}
        self._loaded: dict[str, _Loaded] = {}  # by SHA-256 of the tensors
        self.loads = 0  # adapters put into the model so far

    def resolve(self, use: LoraUse) -> LoraUse:
        """The use with the hash of its file filled in. Raises AdapterFileError when the file is not the one meant."""
        file = self._read(use.path)
        if use.sha and not file.sha.startswith(use.sha.lower()):
            raise AdapterFileError(
                f"{use.path} holds another LoRA ({file.sha[:12]}) than the one asked for ({use.sha[:12]}): name that"
            )
        return replace(use, sha=file.sha)

    def hold(self, requests: Iterable[Request]) -> None:
        """Make the bank carry the adapters of these resolved requests, and no others."""
        wanted = {use.sha: use for request in requests for use in request.loras if use.sha}
        for sha in self._loaded.keys() - wanted.keys():
            self._bank.unload(self._loaded.pop(sha).name)
        for sha, use in wanted.items():
            if sha not in self._loaded:
                adapter = self._files[use.path.absolute()].adapter
                name = use.name if use.name not in self._bank.names else f"{use.name} ({sha[:12]})"
                notes = self._bank.load(name, adapter)
                self.loads += 1
                self._loaded[sha] = _Loaded(name, any(part != "unet" for part in adapter.components), notes)

    def unet_mix(self, request: Request) -> Mix:
        """Strengths in the UNet, by name in the bank; a file named twice acts twice."""
        return _mix((self._of(use).name, use.strength) for use in request.loras)

    def text_mix(self, request: Request) -> Mix:
        """Strengths in the text encoder, of the adapters that have a part there."""
        uses = (use for use in request.loras if self._of(use).acts_on_text)
        return _mix((self._of(use).name, use.strength_of_text) for use in uses)

    def mixed(self, rows: Sequence[Mix]) -> AbstractContextManager[None]:
        """Inside, batch row b has the mix rows[b]."""
        return self._bank.mix(rows[0] if all(row == rows[0] for row in rows) else rows)

    def notes(self, request: Request) -> tuple[str, ...]:
        """What the bank said about the request's adapters when it took them."""
        return tuple(note for use in request.loras for note in self._of(use).notes)

    def _of(self, use: LoraUse) -> _Loaded:
        assert use.sha is not None, "only resolved requests are drawn"
        return self._loaded[use.sha]

    def _read(self, path: Path) -> _File:
        place = path.absolute()
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size)
        except OSError:
            stamp = (0, 0)  # reading it below says in a sentence what is wrong
        known = self._files.get(place)
        if known is None or known.stamp != stamp:
            known = self._files[place] = _File(stamp, tensor_hash(path), read_adapter(path))
        return known


def _mix(strengths: Iterable[tuple[str, float]]) -> Mix:
    mix: Mix = {}
    for name, strength in strengths:
        mix[name] = mix.get(name, 0.0) + strength
    return {name: strength for name, strength in mix.items() if strength}
